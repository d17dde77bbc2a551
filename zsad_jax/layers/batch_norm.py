"""Batch normalisation with torch's running statistics, threaded openly.

Flax's keeps the biased variance and writes the momentum the other way round.
Here the caller gets the new statistics back, and items can weigh nothing, so
that padding enters neither the result nor the statistics.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

EPS = 1e-5
MOMENTUM = 0.1  # Share of the new batch in the running statistics.


def init(c: int):
  """Returns the parameters and the statistics of c channels."""
  params = {"scale": jnp.ones(c), "bias": jnp.zeros(c)}
  stats = {
    "mean": jnp.zeros(c),
    "var": jnp.ones(c),
    "count": jnp.zeros((), jnp.int32),
  }
  return params, stats


def apply(
  params,
  stats,
  x: Float[Array, "b *n c"],
  *,
  weight: Float[Array, " b"] | None = None,
):
  """Normalises every channel, scales and shifts it.

  Args:
    params: scale and bias.
    stats: running mean, variance and number of updates.
    x: items of any shape, channels last.
    weight: 1 for items that count, 0 for padding; None to use the running
      statistics (evaluation) instead of the batch's (training).

  Returns:
    The items and the new statistics, see `normalize`.
  """
  x, stats = normalize(stats, x, weight=weight)
  return params["scale"] * x + params["bias"], stats


def normalize(
  stats,
  x: Float[Array, "b *n c"],
  *,
  weight: Float[Array, " b"] | None = None,
):
  """`apply` without what is learned.

  Returns:
    The normalised items and the new statistics: the variance that normalises
    is the biased one, the one that is kept the unbiased one (torch).
  """
  if weight is None:
    return _normalize(x, stats["mean"], stats["var"]), stats
  axes = tuple(range(x.ndim - 1))
  w = jnp.broadcast_to(
    weight.reshape(-1, *[1] * (x.ndim - 1)), (*x.shape[:-1], 1)
  )
  n = jnp.maximum(w.sum(), 1.0)
  mean = jnp.sum(w * x, axes) / n
  var = jnp.sum(w * jnp.square(x - mean), axes) / n
  unbiased = var * n / jnp.maximum(n - 1.0, 1.0)
  some = w.sum() > 0  # Padding alone leaves the statistics as they are.
  blend = lambda old, new: old + MOMENTUM * some * (new - old)
  new = {
    "mean": blend(stats["mean"], mean),
    "var": blend(stats["var"], unbiased),
    "count": stats["count"] + some,
  }
  return _normalize(x, mean, var), new


def _normalize(x, mean, var):
  return (x - mean) / jnp.sqrt(var + EPS)
