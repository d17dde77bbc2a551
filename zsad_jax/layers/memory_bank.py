"""Patches of normal reference images, and what is nearest to a patch.

A bank is (n, shots, l, d), unit vectors; n = 1 serves all images of a batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zsad_jax.layers import kernels


def nearest(
  query: Float[Array, "b l d"], bank: Float[Array, "n s m d"]
) -> tuple[Float[Array, "b l"], Int[Array, "b l"]]:
  """Cosine distance (in [0, 2]) to the nearest patch of any reference.

  Returns:
    The distance and the position of that patch among the s m of the bank;
    the first one where several are equally near.
  """
  b, l, _ = query.shape
  size = bank.shape[2]

  def look(best, shot):
    number, patches = shot
    # One reference at a time: the product with all of them may be large.
    value, index = _best(query, patches)
    better = value > best[0]
    chosen = jnp.where(better, number * size + index, best[1])
    return (jnp.where(better, value, best[0]), chosen), None

  start = jnp.full((b, l), -jnp.inf), jnp.zeros((b, l), jnp.int32)
  shots = jnp.arange(bank.shape[1], dtype=jnp.int32), jnp.moveaxis(bank, 1, 0)
  (cosine, index), _ = jax.lax.scan(look, start, shots)
  return jnp.maximum(1.0 - cosine, 0.0), index  # Rounding may cross 1.


def take(
  bank: Float[Array, "n s m d"], index: Int[Array, "b l"]
) -> Float[Array, "b l d"]:
  """The patches at `nearest`'s positions."""
  patches = bank.reshape(bank.shape[0], -1, bank.shape[-1])
  if patches.shape[0] == 1:
    return patches[0][index]
  return jnp.take_along_axis(patches, index[..., None], axis=1)


def _best(query, patches):
  """Largest cosine of each query with patches (n, m, d), and which one's."""

  def of_image(query, patches):
    cosines = query @ patches.T
    best = cosines.max(axis=-1)
    # argmax by two plain reductions, which a CPU's vector units take.
    number = jnp.arange(cosines.shape[-1], dtype=jnp.int32)
    at_best = jnp.where(cosines == best[:, None], number, number.size)
    return best, at_best.min(axis=-1)

  if patches.shape[0] == 1:
    b, l, d = query.shape
    found = of_image(query.reshape(b * l, d), patches[0])
    return tuple(x.reshape(b, l) for x in found)
  if kernels.one_cpu():  # Where batched products are slower.
    return jax.lax.map(lambda pair: of_image(*pair), (query, patches))
  return jax.vmap(of_image)(query, patches)
