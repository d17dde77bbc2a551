"""Residual MLP with a normalized bottleneck."""

import jax
from jaxtyping import Array, Float

from zsad_jax.layers import batch_norm, linear
from zsad_jax.torch_io.rules import Rule, Table, batch_norm_stats, norm
from zsad_jax.types import Params


def init(rng: jax.Array, d: int, hidden: int) -> tuple[Params, Params]:
  """Initialize parameters and statistics; linear layers as in torch."""
  rngs = jax.random.split(rng)
  normed, stats = batch_norm.init(hidden)
  params = {
    "down": linear.init(rngs[0], d, hidden, bias=False),
    "norm": normed,
    "up": linear.init(rngs[1], hidden, d, bias=False),
  }
  return params, {"norm": stats}


def apply(
  params: Params,
  stats: Params,
  x: Float[Array, "b *n d"],
  *,
  weight: Float[Array, " b"] | None,
) -> tuple[Float[Array, "b *n d"], Params]:
  """Compute x + up(relu(norm(down(x)))).

  Args:
    params: see `init`.
    stats: see `init`.
    x: tokens.
    weight: see `batch_norm.apply`.

  Returns:
    The tokens and the new statistics.
  """
  hidden, normed = batch_norm.apply(
    params["norm"],
    stats["norm"],
    linear.apply(params["down"], x),
    weight=weight,
  )
  return x + linear.apply(params["up"], jax.nn.relu(hidden)), {"norm": normed}


def rules(torch: str, path: str) -> Table:
  """Return the rules for the names of the parameters."""
  return (
    Rule(rf"{torch}\.fc\.0\.weight", f"{path}/down/kernel", "linear"),
    *norm(rf"{torch}\.fc\.1", f"{path}/norm"),
    Rule(rf"{torch}\.fc\.3\.weight", f"{path}/up/kernel", "linear"),
  )


def stats_rules(torch: str, path: str) -> Table:
  """Return the rules for the names of the statistics."""
  return batch_norm_stats(rf"{torch}\.fc\.1", f"{path}/norm")
