"""Head of three linear layers for one score, with BatchNorm after each ReLU.

Zhu and Pang, CVPR 2024, arXiv:2403.06495 (InCTRL, authors' code).
"""

import jax
from jaxtyping import Array, Float

from zsad_jax.layers import batch_norm, linear
from zsad_jax.types import Params


def apply(
  params: Params,
  stats: Params,
  x: Float[Array, "b c"],
  weight: Float[Array, " b"] | None,
) -> tuple[Float[Array, " b"], Params]:
  """Compute the score of each item.

  Args:
    params: see `init`.
    stats: see `init`.
    x: items.
    weight: of the items in training; None uses the running statistics.

  Returns:
    Scores in [0, 1] and the new statistics.
  """
  new = dict(stats)
  for i in (1, 2):
    norm = f"norm{i + 1}"
    x = jax.nn.relu(linear.apply(params[f"linear{i}"], x))
    x, new[norm] = batch_norm.apply(params[norm], stats[norm], x, weight=weight)
  return jax.nn.sigmoid(linear.apply(params["linear3"], x)[:, 0]), new


def init(
  rng: jax.Array, width: int, hidden: tuple[int, int]
) -> tuple[Params, Params]:
  """Initialize as torch does.

  Args:
    rng: key.
    width: channels of the items.
    hidden: widths of the hidden layers.

  Returns:
    "linear1" to "linear3" and "norm1" to "norm3", of which the authors store
    the first and never use it; and the running statistics.
  """
  params, stats, sizes = {}, {}, (width, *hidden, 1)
  for i, key in enumerate(jax.random.split(rng, 3)):
    params[f"linear{i + 1}"] = linear.init(key, sizes[i], sizes[i + 1])
    norm = f"norm{i + 1}"
    params[norm], stats[norm] = batch_norm.init(sizes[i])
  return params, stats
