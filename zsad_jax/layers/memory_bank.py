"""Patches of normal reference images and the search for the nearest patch.

A memory bank is (n, shots, l, d), unit vectors; n = 1 serves all images of a
batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zsad_jax.layers import kernels


def nearest(
  query: Float[Array, "b l d"], bank: Float[Array, "n s m d"]
) -> tuple[Float[Array, "b l"], Int[Array, "b l"]]:
  """Find the nearest patch of all references by cosine distance.

  Args:
    query: unit patches.
    bank: unit patches of s references; n is b or 1.

  Returns:
    The distance in [0, 2] and the index among the s * m patches of the bank;
    the first index where several patches are equally near.
  """
  b, l, _ = query.shape
  size = bank.shape[2]

  def update(best, shot):
    number, patches = shot
    # One reference at a time: the product with all of them may be large.
    value, index = _best(query, patches)
    better = value > best[0]
    chosen = jnp.where(better, number * size + index, best[1])
    return (jnp.where(better, value, best[0]), chosen), None

  start = jnp.full((b, l), -jnp.inf), jnp.zeros((b, l), jnp.int32)
  shots = jnp.arange(bank.shape[1], dtype=jnp.int32), jnp.moveaxis(bank, 1, 0)
  (cosine, index), _ = jax.lax.scan(update, start, shots)
  return jnp.maximum(1.0 - cosine, 0.0), index  # Rounding may exceed 1.


def nearest_each(
  query: Float[Array, "b l d"], images: Float[Array, "m p d"]
) -> Float[Array, "b l m"]:
  """Return the cosine distance to the nearest patch of each of m images.

  Args:
    query: unit patches.
    images: unit patches of the images.

  Returns:
    Distances in [0, 2].
  """

  def best(patches):
    # One image at a time: the product with all of them may be large.
    product = jnp.matmul(query, patches.T, precision=kernels.EXACT)
    return product.max(axis=-1)

  cosine = jnp.moveaxis(jax.lax.map(best, images), 0, -1)
  return jnp.maximum(1.0 - cosine, 0.0)


def take(
  bank: Float[Array, "n s m d"], index: Int[Array, "b l"]
) -> Float[Array, "b l d"]:
  """Return the patches at the indices of `nearest`."""
  patches = bank.reshape(bank.shape[0], -1, bank.shape[-1])
  if patches.shape[0] == 1:
    return patches[0][index]
  return jnp.take_along_axis(patches, index[..., None], axis=1)


def _best(query, patches):
  """Return the largest cosine with patches (n, m, d) and its index."""

  def of_image(query, patches):
    # Exact: the nearest patch and a small distance, 1 - cosine, depend on it.
    cosines = jnp.matmul(query, patches.T, precision=kernels.EXACT)
    best = cosines.max(axis=-1)
    # argmax by two plain reductions, which a CPU vectorizes.
    number = jnp.arange(cosines.shape[-1], dtype=jnp.int32)
    at_best = jnp.where(cosines == best[:, None], number, number.size)
    return best, at_best.min(axis=-1)

  if patches.shape[0] == 1:
    b, l, d = query.shape
    found = of_image(query.reshape(b * l, d), patches[0])
    return tuple(x.reshape(b, l) for x in found)
  if kernels.one_cpu():  # Batched products are slower there.
    return jax.lax.map(lambda pair: of_image(*pair), (query, patches))
  return jax.vmap(of_image)(query, patches)
