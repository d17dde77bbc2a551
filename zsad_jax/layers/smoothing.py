"""Gaussian smoothing of maps on the device, equal to scipy's."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import ndimage


@functools.cache
def matrix(size: int, sigma: float) -> np.ndarray:
  """The (size, size) matrix that smooths one axis.

  scipy.ndimage.gaussian_filter1d of the unit vectors: cut off at 4 sigma,
  borders mirrored with the edge sample repeated.
  """
  return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0)


def gaussian(x: Float[Array, "b h w"], sigma: float) -> Float[Array, "b h w"]:
  """Smooths each map; sigma in pixels, 0 for none."""
  if not sigma:
    return x
  rows, columns = (
    jnp.asarray(matrix(side, sigma), x.dtype) for side in x.shape[1:]
  )
  return jnp.einsum("Hh,bhw,Ww->bHW", rows, x, columns)
