"""Patches of normal reference images and the search for the nearest patch.

A memory bank is (n, shots, l, d), unit vectors; n = 1 serves all images of a
batch. The search is that of `neighbors`.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from zsad_jax.layers import kernels, neighbors


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
  patches = bank.reshape(bank.shape[0], -1, bank.shape[-1])
  shared = patches.shape[0] == 1
  if not kernels.splits_loops(query.shape[0]):
    return _nearest(query, patches)
  # The loop over blocks would gather the images of all devices.
  split = jax.shard_map(
    _nearest,
    mesh=kernels.mesh(),
    in_specs=(P("data"), P() if shared else P("data")),
    out_specs=P("data"),
    check_vma=False,  # The start of the loop is the same on all devices.
  )
  return split(query, patches)


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


def _nearest(query, patches):
  """Search patches (n, m, d)."""
  if patches.shape[0] == 1:
    b, l, d = query.shape
    found = neighbors.nearest(query.reshape(b * l, d), patches[0])
    return found[0].reshape(b, l), found[1].reshape(b, l)
  if kernels.backend() == "cpu":  # Batched products are slower there.
    of_image = lambda pair: neighbors.nearest(*pair)
    return jax.lax.map(of_image, (query, patches))
  return jax.vmap(neighbors.nearest)(query, patches)
