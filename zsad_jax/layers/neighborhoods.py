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
  pad = [(0, 0)] * (x.ndim - 3) + [(size // 2, size // 2)] * 2 + [(0, 0)]
  x = jnp.pad(x, pad, mode="edge" if padding == "edge" else "constant")
  window = (1,) * (x.ndim - 3) + (size, size, 1)
  total = jax.lax.reduce_window(
    x, 0.0, jax.lax.add, window, (1,) * x.ndim, "VALID"
  )
  return total / size**2
