"""Gaussian smoothing of maps on the device, equal to SciPy's."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import ndimage

from zsad_jax.layers import kernels


@functools.cache
def matrix(size: int, sigma: float, radius: int | None = None) -> np.ndarray:
  """Return the (size, size) matrix that smooths one axis.

  It is scipy.ndimage.gaussian_filter1d of the unit vectors: truncated at 4
  sigma or at `radius`, borders mirrored with the edge sample repeated.
  """
  return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, radius=radius)


def gaussian(
  x: Float[Array, "b h w"], sigma: float, radius: int | None = None
) -> Float[Array, "b h w"]:
  """Smooth each map.

  Args:
    x: maps.
    sigma: in pixels, 0 for no smoothing.
    radius: of the filter in pixels; None for 4 sigma.
  """
  if not sigma:
    return x
  rows, columns = (
    jnp.asarray(matrix(side, sigma, radius), x.dtype) for side in x.shape[1:]
  )
  # The metrics see each map after it.
  return jnp.einsum("Hh,bhw,Ww->bHW", rows, x, columns, precision=kernels.EXACT)
