"""Means over square neighborhoods in a grid of patches."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def mean(
  x: Float[Array, "*b h w c"], size: int, *, padding: Literal["edge", "zero"]
) -> Float[Array, "*b h w c"]:
  """Average each channel over the size x size neighbors of each patch.

  Args:
    x: values of a grid of patches.
    size: an odd number.
    padding: values outside of the grid: "edge" repeats the outermost patches,
      "zero" counts zeros.

  Returns:
    The means, sums divided by size^2.
  """
  for axis in (-3, -2):
    x = _extended(x, size // 2, axis, padding)
  window = (1,) * (x.ndim - 3) + (size, size, 1)
  total = jax.lax.reduce_window(
    x, 0.0, jax.lax.add, window, (1,) * x.ndim, "VALID"
  )
  return total / size**2


def _extended(x, count, axis, padding):
  """Add patches on both sides of an axis.

  As `jnp.pad` does with other slices: its mode "edge" reads the last element of
  the batch too, which a batch of unknown size in ONNX does not allow.
  """
  first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
  last = jax.lax.slice_in_dim(x, -1, None, axis=axis)
  if padding == "zero":
    first, last = jnp.zeros_like(first), jnp.zeros_like(last)
  return jnp.concatenate([first] * count + [x] + [last] * count, axis)
