"""Cosine similarities and maps of patch values."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.layers import kernels, resample
from zsad_jax.types import Features, ImageBackbone


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """Normalize to Euclidean length 1 over the last axis."""
  # Not jnp.linalg.norm: the gradient at a zero vector would be NaN. The
  # floor is far below any norm that a CLIP tower yields.
  square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x / jnp.sqrt(jnp.maximum(square, 1e-24))


def cosines(
  units: Float[Array, "b *l d"], text_units: Float[Array, "*n s d"]
) -> Float[Array, "b *l s"]:
  """Compute cosines of each item with the states.

  Args:
    units: unit embeddings.
    text_units: of the states, (s, d) for all items or (b, s, d).

  Returns:
    Cosines in [-1, 1], states last.
  """
  # Exact: logits are cosines times up to 100.
  product = functools.partial(jnp.einsum, precision=kernels.EXACT)
  if text_units.ndim == 2:
    return product("b...d,sd->b...s", units, text_units)
  return product("b...d,bsd->b...s", units, text_units)


def state_prob(
  units: Float[Array, "b *l d"],
  text_units: Float[Array, "*n s d"],
  temperature: float,
) -> Float[Array, "b *l s"]:
  """Compute probabilities of the states: softmax(cosine / temperature)."""
  return jax.nn.softmax(cosines(units, text_units) / temperature)


def compare(
  image: Float[Array, "b d"],
  patches: Float[Array, "b l d"],
  text_units: Float[Array, "s d"],
  temperature: float,
) -> tuple[Float[Array, "b s"], Float[Array, "b l s"]]:
  """Compute image logits and patch probabilities of the states.

  Args:
    image: embeddings, not normalized.
    patches: embeddings, not normalized.
    text_units: unit embeddings of the states.
    temperature: of the softmax.
  """
  logits = cosines(unit(image), text_units) / temperature
  return logits, state_prob(unit(patches), text_units, temperature)


def to_map(
  patch_values: Float[Array, "b l s"], size: tuple[int, int], *, method: str
) -> Float[Array, "b h w s"]:
  """Arrange patch values as a square grid and resize it to `size`.

  Args:
    patch_values: l is a square number.
    size: height and width of the maps.
    method: see `resample.matrix`.

  Returns:
    The maps.
  """
  b, l, s = patch_values.shape
  side = round(l**0.5)
  grid = patch_values.reshape(b, side, side, s)
  return resample.resize(grid, size, method=method)


def value_map(
  values: Float[Array, "b l"], size: tuple[int, int]
) -> Float[Array, "b h w"]:
  """Apply `to_map` to one value per patch, bilinear with half-pixel centers."""
  return to_map(values[..., None], size, method="bilinear")[..., 0]


def to_maps(
  patch_values: Float[Array, "b n l s"], size: tuple[int, int], *, method: str
) -> Float[Array, "b n h w s"]:
  """Apply `to_map` to n maps per image."""
  b, n, l, s = patch_values.shape
  maps = to_map(patch_values.reshape(b * n, l, s), size, method=method)
  return maps.reshape(b, n, *size, s)


def prob_maps(
  patch_logits: Float[Array, "b n l s"], size: tuple[int, int]
) -> Float[Array, "b n h w s"]:
  """Resize logits, corner on corner, and compute probabilities of the states.

  APRIL-GAN, AdaCLIP and VCP-CLIP apply the softmax after the interpolation.
  """
  maps = to_maps(patch_logits, size, method="bilinear_corners")
  return jax.nn.softmax(maps)


def image_size(
  backbone: ImageBackbone, features: Features, name: str = "patch_units"
) -> tuple[int, int]:
  """Return height and width of the square images of the patches `name`."""
  side = round(features[name].shape[-2] ** 0.5)
  return side * backbone.patch_size, side * backbone.patch_size
