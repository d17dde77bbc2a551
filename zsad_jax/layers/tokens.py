"""Learned vectors among the tokens of a sentence."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def set_after_start(
  x: Float[Array, "k t c"],
  vectors: Float[Array, "_ m c"],
  *,
  replace: bool = True,
) -> Float[Array, "k t2 c"]:
  """Puts m vectors after the start token, over the rows there or before them.

  Args:
    x: tokens of k sentences.
    vectors: one set for all sentences (leading axis 1) or one for each.
    replace: over rows 1 ... m; else the sentences become m rows longer.
  """
  m = vectors.shape[1]
  vectors = jnp.broadcast_to(vectors, (x.shape[0], m, x.shape[2]))
  rest = x[:, 1 + m :] if replace else x[:, 1:]
  return jnp.concatenate([x[:, :1], vectors, rest], axis=1)


def overwrite_positions(
  x: Float[Array, "b n c"],
  vectors: Float[Array, "_ m c"],
  positions: Int[Array, "b n"],
) -> Float[Array, "b n c"]:
  """Puts m vectors over rows 1 ... m of sentences that are joined to trees.

  Args:
    x: nodes of b trees.
    vectors: one set for all trees (leading axis 1) or one for each.
    positions: of each node in its sentences.
  """
  b, m = x.shape[0], vectors.shape[1]
  vectors = jnp.broadcast_to(vectors, (b, *vectors.shape[1:]))
  place = jnp.clip(positions - 1, 0, m - 1)[..., None]
  set_here = ((positions >= 1) & (positions <= m))[..., None]
  return jnp.where(set_here, jnp.take_along_axis(vectors, place, axis=1), x)


def extend_mask(mask: Bool[Array, "b n n"], m: int) -> Bool[Array, "b o o"]:
  """What nodes see once m vectors stand after the start token, node 0."""
  b, n, _ = mask.shape
  before = jnp.tri(1 + m, 1 + m + n - 1, dtype=bool)
  after = jnp.ones((b, n - 1, 1 + m), bool)
  after = jnp.concatenate([after, mask[:, 1:, 1:]], axis=2)
  before = jnp.broadcast_to(before, (b, *before.shape))
  return jnp.concatenate([before, after], axis=1)
