"""Separable resampling as one small matrix per axis.

CLIP's position tables and the methods' maps are resized in five ways, of
which `jax.image.resize` has only some (and `align_corners` not at all). As
matrices they are exact, cheap at these sizes, differentiable and exportable.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

CUBIC_TORCH = -0.75  # Coefficient of torch's bicubic without antialiasing.
CUBIC_KEYS = -0.5  # Of torch's antialiased bicubic, and of Pillow's.


def _cubic(t: np.ndarray, a: float) -> np.ndarray:
  """Keys' cubic convolution kernel, zero beyond |t| = 2."""
  t = np.abs(t)
  inner = ((a + 2) * t - (a + 3)) * t**2 + 1
  outer = a * (((t - 5) * t + 8) * t - 4)
  return np.where(t <= 1, inner, np.where(t < 2, outer, 0.0))


def _triangle(t: np.ndarray) -> np.ndarray:
  return np.maximum(0.0, 1.0 - np.abs(t))


def _gather(source: np.ndarray, kernel, reach: int, size: int) -> np.ndarray:
  """Weights of `2 * reach` taps around `source`; taps outside are clamped."""
  matrix = np.zeros((len(source), size))
  rows = np.arange(len(source))
  for offset in range(1 - reach, 1 + reach):
    tap = np.floor(source).astype(int) + offset
    # Weights of clamped taps add up on the border sample.
    np.add.at(matrix, (rows, np.clip(tap, 0, size - 1)), kernel(source - tap))
  return matrix


@functools.cache
def matrix(size_in: int, size_out: int, method: str) -> np.ndarray:
  """Returns the float64 (size_out, size_in) matrix that resizes one axis.

  Args:
    size_in: samples before.
    size_out: samples after.
    method: "bilinear" and "bicubic" (a = -0.75) take half-pixel centres and
      no antialiasing; "bicubic_antialias" (a = -0.5) stretches the kernel
      when shrinking, drops taps outside and renormalises;
      "bilinear_corners" maps corner samples on corner samples.

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
    taps = (np.arange(size_in) - centre[:, None]) / stretch
    weights = _cubic(taps, CUBIC_KEYS)
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
  """Resizes the two axes before the last one to `size` (rows, columns)."""
  if x.shape[-3:-1] == tuple(size):
    return x
  rows = jnp.asarray(matrix(x.shape[-3], size[0], method), x.dtype)
  columns = jnp.asarray(matrix(x.shape[-2], size[1], method), x.dtype)
  x = jnp.einsum("Hh,...hwc->...Hwc", rows, x)
  return jnp.einsum("Ww,...hwc->...hWc", columns, x)


def resize_position_table(
  table: Float[Array, "n c"], grid: tuple[int, int], *, method: str
) -> Float[Array, "m c"]:
  """Resizes CLIP's position table; row 0, of the class token, is kept.

  Args:
    table: 1 + side**2 rows, a square grid in row-major order after row 0.
    grid: patches per column and per row of the new grid.
    method: see `matrix`.
  """
  side = round((table.shape[0] - 1) ** 0.5)
  patches = table[1:].reshape(side, side, -1)
  patches = resize(patches, grid, method=method)
  return jnp.concatenate([table[:1], patches.reshape(-1, table.shape[1])])
