"""AdaptCLIP's visual adapter: residual MLPs of image and patch tokens (Eq. 3).

Gao et al., AAAI 2026, Sec. 3.2.
"""

import jax
from jaxtyping import Array, Float

from zsad_jax.layers import residual_mlp
from zsad_jax.types import Params

# MLP -> its name in the authors' checkpoint ("adater" is its spelling).
_NAMES = {"local": "local_adater", "global": "global_adapter"}


def init(rng: jax.Array, d: int, hidden: int) -> tuple[Params, Params]:
  """Initialize parameters and statistics of both MLPs."""
  params, stats = {}, {}
  for name, key in zip(("global", "local"), jax.random.split(rng)):
    params[name], stats[name] = residual_mlp.init(key, d, hidden)
  return params, stats


def apply(
  params: Params,
  stats: Params,
  image: Float[Array, "b d"],
  tokens: Float[Array, "b n d"],
  *,
  weight: Float[Array, " b"] | None,
) -> tuple[tuple[Float[Array, "b d"], Float[Array, "b n d"]], Params]:
  """Adapt the image embedding and the patch tokens (Eq. 3).

  Args:
    params: see `init`.
    stats: see `init`.
    image: embeddings, not normalized.
    tokens: embeddings, not normalized.
    weight: see `batch_norm.apply`.

  Returns:
    Image and tokens, and the new statistics.
  """
  image, new_global = residual_mlp.apply(
    params["global"], stats["global"], image, weight=weight
  )
  tokens, new_local = residual_mlp.apply(
    params["local"], stats["local"], tokens, weight=weight
  )
  return (image, tokens), {"global": new_global, "local": new_local}


TORCH_NAMES = tuple(
  rule
  for name, torch in _NAMES.items()
  for rule in residual_mlp.rules(rf"visual_learner\.{torch}", f"visual/{name}")
)
TORCH_STATS = tuple(
  rule
  for name, torch in _NAMES.items()
  for rule in residual_mlp.stats_rules(
    rf"visual_learner\.{torch}", f"visual/{name}"
  )
)
