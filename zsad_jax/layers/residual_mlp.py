"""A residual MLP with a normalised bottleneck: AdaptCLIP's visual adapter."""

import jax

from zsad_jax.layers import batch_norm, linear
from zsad_jax.torch_io.rules import Rule, Table, batch_norm_stats, norm


def init(rng, d: int, hidden: int):
  """Parameters and statistics; linear layers as torch initialises them."""
  rngs = jax.random.split(rng)
  normed, stats = batch_norm.init(hidden)
  params = {
    "down": linear.init(rngs[0], d, hidden, bias=False),
    "norm": normed,
    "up": linear.init(rngs[1], hidden, d, bias=False),
  }
  return params, {"norm": stats}


def apply(params, stats, x, *, weight):
  """x + up(relu(norm(down(x)))): (b, ..., d), and the new statistics.

  `weight`, (b,) or None, is `batch_norm.apply`'s.
  """
  hidden, normed = batch_norm.apply(
    params["norm"],
    stats["norm"],
    linear.apply(params["down"], x),
    weight=weight,
  )
  return x + linear.apply(params["up"], jax.nn.relu(hidden)), {"norm": normed}


def rules(torch: str, path: str) -> Table:
  """Names of the parameters."""
  return (
    Rule(rf"{torch}\.fc\.0\.weight", f"{path}/down/kernel", "linear"),
    *norm(rf"{torch}\.fc\.1", f"{path}/norm"),
    Rule(rf"{torch}\.fc\.3\.weight", f"{path}/up/kernel", "linear"),
  )


def stats_rules(torch: str, path: str) -> Table:
  """Names of the statistics."""
  return batch_norm_stats(rf"{torch}\.fc\.1", f"{path}/norm")
