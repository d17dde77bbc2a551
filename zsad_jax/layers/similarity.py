"""Cosine similarities, and the maps made of them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.layers import resample


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Divides by the Euclidean norm over the last axis."""
  # Not jnp.linalg.norm: the gradient at a zero vector would be NaN. The
  # floor is far below any norm that a CLIP tower yields.
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x / jnp.sqrt(jnp.maximum(square, 1e-24))


def to_map(
    patch_values: Float[Array, "b l s"], size: tuple[int, int], *, method: str
) -> Float[Array, "b h w s"]:
  """Lays square grids of patch values out and resizes them to `size`."""
  b, l, s = patch_values.shape
  side = round(l**0.5)
  grid = patch_values.reshape(b, side, side, s)
  return resample.resize(grid, size, method=method)
