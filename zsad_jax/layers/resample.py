"""Separable resampling as one small matrix per axis.

CLIP's position tables and the methods' maps are resized by several methods, of
which `jax.image.resize` has only some (and no `align_corners`). As matrices
they are exact, cheap at these sizes, differentiable and exportable.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.layers import kernels

CUBIC_TORCH = -0.75  # Coefficient of torch's bicubic without antialiasing.
CUBIC_KEYS = -0.5  # Of torch's antialiased bicubic, and of Pillow's.


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
  """Evaluate Keys' cubic convolution kernel, zero beyond |t| = 2."""
  t = np.abs(t)
  inner = ((a + 2) * t - (a + 3)) * t**2 + 1
  outer = a * (((t - 5) * t + 8) * t - 4)
  return np.where(t <= 1, inner, np.where(t < 2, outer, 0.0))


def _triangle(t: np.ndarray) -> np.ndarray:
  """Evaluate the kernel of linear interpolation, zero beyond |t| = 1."""
  return np.maximum(0.0, 1.0 - np.abs(t))


def _gather(
  source: np.ndarray,
  kernel: Callable[[np.ndarray], np.ndarray],
  reach: int,
  size: int,
) -> np.ndarray:
  """Weight `2 * reach` samples around `source`; those outside are clamped."""
  matrix = np.zeros((len(source), size))
  rows = np.arange(len(source))
  for offset in range(1 - reach, 1 + reach):
    index = np.floor(source).astype(int) + offset
    # Weights of clamped samples add up on the border sample.
    clamped = np.clip(index, 0, size - 1)
    np.add.at(matrix, (rows, clamped), kernel(source - index))
  return matrix


@functools.cache
def matrix(size_in: int, size_out: int, method: str) -> np.ndarray:
  """Return the float64 (size_out, size_in) matrix that resizes one axis.

  Args:
    size_in: samples before.
    size_out: samples after.
    method: "bilinear" and "bicubic" (a = -0.75) take half-pixel centres and
      no antialiasing; "bicubic_antialias" (a = -0.5) stretches the kernel
      when shrinking, drops samples outside and renormalizes;
      "bilinear_corners" maps corner samples on corner samples.

  Returns:
    The matrix; rows sum to 1.

  Raises:
    ValueError: unknown method.

  References:
    torch.nn.functional.interpolate, modes of the same names.
  """
  centre = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
  if method == "bilinear":
    return _gather(np.maximum(centre, 0.0), _triangle, 1, size_in)
  if method == "bicubic":
    kernel = functools.partial(_cubic, a=CUBIC_TORCH)
    return _gather(centre, kernel, 2, size_in)
  if method == "bicubic_antialias":
    stretch = max(1.0, size_in / size_out)
    distance = (np.arange(size_in) - centre[:, None]) / stretch
    weights = _cubic(distance, CUBIC_KEYS)
    return weights / weights.sum(axis=1, keepdims=True)
  if method == "bilinear_corners":
    step = (size_in - 1) / max(size_out - 1, 1)
    return _gather(np.arange(size_out) * step, _triangle, 1, size_in)
  raise ValueError(
    f"Unknown resampling {method!r}; expected bilinear, bicubic, "
    "bicubic_antialias or bilinear_corners."
  )


def resize(
  x: Float[Array, "*b h w c"], size: tuple[int, int], *, method: str
) -> Float[Array, "*b h2 w2 c"]:
  """Resize the two axes before the last one to `size` (rows, columns)."""
  if x.shape[-3:-1] == tuple(size):
    return x
  rows = jnp.asarray(matrix(x.shape[-3], size[0], method), x.dtype)
  columns = jnp.asarray(matrix(x.shape[-2], size[1], method), x.dtype)
  product = functools.partial(jnp.einsum, precision=kernels.EXACT)
  x = product("Hh,...hwc->...Hwc", rows, x)
  return product("Ww,...hwc->...hWc", columns, x)


def resize_position_table(
  table: Float[Array, "n c"], grid: tuple[int, int], *, method: str
) -> Float[Array, "m c"]:
  """Resize CLIP's position table; row 0, of the class token, is kept.

  Args:
    table: 1 + side**2 rows, a square grid in row-major order after row 0.
    grid: patches per column and per row of the new grid.
    method: see `matrix`.

  Returns:
    1 + rows * columns rows.
  """
  side = round((table.shape[0] - 1) ** 0.5)
  patches = table[1:].reshape(side, side, -1)
  patches = resize(patches, grid, method=method)
  return jnp.concatenate([table[:1], patches.reshape(-1, table.shape[1])])
