"""Gaussian smoothing of maps: on the device, equal to SciPy's, or by SciPy."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
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


def on_host(
  maps: Float[Array | np.ndarray, "b h w"],
  keep: Bool[np.ndarray, " b"],
  sigma: float,
) -> Float[Array | np.ndarray, "b h w"]:
  """Smooth maps by SciPy where the predictor has not smoothed them.

  Args:
    maps: maps of a batch.
    keep: images; the padding of the last batch is left as it is.
    sigma: in pixels, 0 for no smoothing.
  """
  if not sigma or kernels.smooths_maps():
    return maps
  smooth = np.array(maps)
  smooth[keep] = ndimage.gaussian_filter(smooth[keep], (0, sigma, sigma))
  return smooth
