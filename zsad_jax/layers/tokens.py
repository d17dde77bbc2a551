"""Learned vectors among the tokens of a sentence."""

import jax.numpy as jnp
from jaxtyping import Array, Float


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
