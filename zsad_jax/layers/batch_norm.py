"""Batch normalization with torch's running statistics, passed explicitly.

Flax keeps the biased variance and defines the momentum the other way round.
Here the new statistics are returned to the caller, and items can have weight
0, so that padding affects neither the result nor the statistics.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.types import Params

EPS = 1e-5
MOMENTUM = 0.1  # Share of the new batch in the running statistics.


def init(c: int) -> tuple[Params, Params]:
  """Return the parameters and the running statistics of c channels."""
  params = {"scale": jnp.ones(c), "bias": jnp.zeros(c)}
  stats = {
    "mean": jnp.zeros(c),
    "var": jnp.ones(c),
    "count": jnp.zeros((), jnp.int32),
  }
  return params, stats


def apply(
  params: Params,
  stats: Params,
  x: Float[Array, "b *n c"],
  *,
  weight: Float[Array, " b"] | None = None,
) -> tuple[Float[Array, "b *n c"], Params]:
  """Normalize, scale and shift every channel.

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
  stats: Params,
  x: Float[Array, "b *n c"],
  *,
  weight: Float[Array, " b"] | None = None,
) -> tuple[Float[Array, "b *n c"], Params]:
  """Normalize every channel without scale and bias.

  Args:
    stats: see `apply`.
    x: see `apply`.
    weight: see `apply`.

  Returns:
    The normalized items and the new statistics: items are normalized by the
    biased variance, the running variance is the unbiased one (torch).
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
  some = w.sum() > 0  # Padding alone leaves the statistics unchanged.
  blend = lambda old, new: old + MOMENTUM * some * (new - old)
  new = {
    "mean": blend(stats["mean"], mean),
    "var": blend(stats["var"], unbiased),
    "count": stats["count"] + some,
  }
  return _normalize(x, mean, var), new


def _normalize(x, mean, var):
  return (x - mean) / jnp.sqrt(var + EPS)
