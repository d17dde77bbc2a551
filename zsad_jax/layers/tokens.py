"""Learned vectors among the tokens of a prompt."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def set_after_start(
  x: Float[Array, "k t c"],
  vectors: Float[Array, "_ m c"],
  *,
  replace: bool = True,
) -> Float[Array, "k t2 c"]:
  """Put m vectors after the start token.

  Args:
    x: tokens of k prompts.
    vectors: one set for all prompts (leading axis 1) or one for each.
    replace: overwrite rows 1 ... m; otherwise the prompts become m rows
      longer.

  Returns:
    The tokens with the vectors.
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
  """Overwrite positions 1 ... m of prompts that are joined to tries.

  Args:
    x: nodes of b tries.
    vectors: one set for all tries (leading axis 1) or one for each.
    positions: of each node in its prompts.

  Returns:
    The nodes with the vectors.
  """
  m = vectors.shape[1]
  return overwrite(x, vectors, jnp.where(positions > m, -1, positions - 1))


def overwrite(
  x: Float[Array, "b n c"],
  vectors: Float[Array, "_ m c"],
  index: Int[Array, "b n"],
) -> Float[Array, "b n c"]:
  """Replace tokens by vectors.

  Args:
    x: tokens.
    vectors: one set for all rows (leading axis 1) or one for each.
    index: of the vector that replaces a token; negative for none.

  Returns:
    The tokens with the vectors.
  """
  vectors = jnp.broadcast_to(vectors, (x.shape[0], *vectors.shape[1:]))
  chosen = jnp.clip(index, 0, vectors.shape[1] - 1)[..., None]
  chosen = jnp.take_along_axis(vectors, chosen, axis=1)
  return jnp.where((index >= 0)[..., None], chosen, x)


def extend_mask(mask: Bool[Array, "b n n"], m: int) -> Bool[Array, "b o o"]:
  """Extend a trie's attention mask by m vectors after the start token.

  Args:
    mask: of b tries; the start token is node 0.
    m: number of vectors.

  Returns:
    The mask of the n + m rows: the vectors attend causally, all other nodes
    attend to all vectors.
  """
  b, n, _ = mask.shape
  before = jnp.tri(1 + m, 1 + m + n - 1, dtype=bool)
  after = jnp.ones((b, n - 1, 1 + m), bool)
  after = jnp.concatenate([after, mask[:, 1:, 1:]], axis=2)
  before = jnp.broadcast_to(before, (b, *before.shape))
  return jnp.concatenate([before, after], axis=1)
