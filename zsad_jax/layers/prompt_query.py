"""Prompt-query adapter of AdaptCLIP: compares an image with normal references.

Gao et al., AAAI 2026, Sec. 3.3. One pair of heads serves all levels, including
its running statistics (authors' code): the statistics are updated level by
level, in order.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.layers import (
  batch_norm,
  conv,
  fused_heads,
  linear,
  memory_bank,
  resample,
  score_fusion,
)
from zsad_jax.torch_io.rules import Rule, batch_norm_stats
from zsad_jax.torch_io.rules import norm as norm_rules
from zsad_jax.types import ANOMALOUS, Params


def align(
  query: Float[Array, "b l d"], bank: Float[Array, "m s l2 d"]
) -> tuple[Float[Array, "b l d"], Float[Array, "b l"]]:
  """Find the nearest reference patches and their distances (Eq. 5).

  By cosine; for unit vectors the Euclidean distance has the same minimum.
  """
  distance, index = memory_bank.nearest(query, bank)
  return memory_bank.take(bank, index), distance


def joint(
  query: Float[Array, "b l d"],
  aligned: Float[Array, "b l d"],
  *,
  context: bool,
) -> Float[Array, "b l d"]:
  """Return query + |query - aligned|, or the residual alone (Eq. 6)."""
  residual = jnp.abs(query - aligned)
  return query + residual if context else residual


def local_head(
  params: Params,
  stats: Params,
  x: Float[Array, "b g g2 d"],
  *,
  weight: Float[Array, " b"] | None,
) -> tuple[Float[Array, "b h w 2"], Params]:
  """Compute logits of the states at four times the resolution (Eq. 7).

  This is the definition; `forward` runs the equal `fused_heads.local_head`.

  Args:
    params: of the head.
    stats: of the head.
    x: joint features after the level's batch normalization.
    weight: see `forward`.

  Returns:
    The logits and the new statistics.
  """
  x = conv.apply(params["conv1"], x)
  x, norm1 = batch_norm.apply(params["norm1"], stats["norm1"], x, weight=weight)
  x = conv.apply_transposed(params["up1"], jax.nn.relu(x))
  x = conv.apply(params["conv2"], x)
  x, norm2 = batch_norm.apply(params["norm2"], stats["norm2"], x, weight=weight)
  x = conv.apply_transposed(params["up2"], jax.nn.relu(x))
  return conv.apply(params["out"], x), {"norm1": norm1, "norm2": norm2}


def pool(x: Float[Array, "b l d"], *, topk: int) -> Float[Array, "b d"]:
  """Average the mean and the mean of the `topk` largest values (Eq. 8).

  topk = 1 is the paper's average and max pooling. This is the definition;
  `forward` runs the equal `fused_heads.pool`.
  """
  largest, _ = jax.lax.top_k(jnp.swapaxes(x, 1, 2), topk)
  return 0.5 * (x.mean(axis=1) + largest.mean(axis=-1))


def global_head(
  params: Params,
  stats: Params,
  pooled: Float[Array, "b d"],
  *,
  weight: Float[Array, " b"] | None,
) -> tuple[Float[Array, "b 2"], Params]:
  """Compute logits of the states from pooled patches, see `pool` (Eq. 8).

  Args:
    params: of the head.
    stats: of the head.
    pooled: pooled features after the level's batch normalization.
    weight: see `forward`.

  Returns:
    The logits and the new statistics.
  """
  x, new = pooled, {}
  for k in (1, 2):
    x = linear.apply(params[f"fc{k}"], x)
    x, new[f"norm{k}"] = batch_norm.apply(
      params[f"norm{k}"], stats[f"norm{k}"], x, weight=weight
    )
    x = jax.nn.relu(x)
  return linear.apply(params["out"], x), new


def forward(
  params: Params,
  stats: Params,
  query: Float[Array, "b n l d"],
  references: Float[Array, "m s n l d"],
  size: tuple[int, int],
  *,
  context: bool,
  topk: int,
  weight: Float[Array, " b"] | None,
) -> tuple[list[dict[str, Array]], Params]:
  """Compare each level with the references, in order.

  Args:
    params: see `init`.
    stats: see `init`.
    query: unit patches of the levels.
    references: unit patches of s references, per image (m = b) or shared by
      all (m = 1).
    size: height and width of the maps in pixels.
    context: see `joint`.
    topk: see `pool`.
    weight: weight of the images in the batch's statistics (training), or None
      for the running statistics.

  Returns:
    Per level "logits" (b, 2), "maps" (b, h, w, 2), probabilities, and
    "distance" (b, h, w); and the new statistics.

  Raises:
    ValueError: there are fewer patches than `topk`.
  """
  if topk > query.shape[2]:
    raise ValueError(
      f"config.method.pool_topk is {topk}, but an image has {query.shape[2]} "
      "patches: config.image_size has to be larger, or pool_topk smaller."
    )
  new = {name: dict(stats[name]) for name in stats}
  side = round(query.shape[2] ** 0.5)
  results = []
  for i in range(query.shape[1]):
    level, head = str(i), str(i % len(params["local"]))  # Shared: always 0.
    aligned, distance = align(query[:, i], references[:, :, i])
    x = joint(query[:, i], aligned, context=context)
    norm = params["norms"][level]  # Applied in the fused heads.
    x_hat, new["norms"][level] = batch_norm.normalize(
      stats["norms"][level], x, weight=weight
    )
    grid = x_hat.reshape(x_hat.shape[0], side, side, -1)
    local, new["local"][head] = fused_heads.local_head(
      params["local"][head], new["local"][head], grid, norm, weight=weight
    )
    logits, new["global"][head] = global_head(
      params["global"][head],
      new["global"][head],
      fused_heads.pool(x_hat, norm, topk=topk),
      weight=weight,
    )
    grid = distance.reshape(-1, side, side, 1)
    results.append(
      {
        "logits": logits,
        # Probabilities are interpolated, not logits (authors' code).
        "maps": resample.resize(jax.nn.softmax(local), size, method="bilinear"),
        "distance": resample.resize(grid, size, method="bilinear")[..., 0],
      }
    )
  return results, new


def summary(
  levels: Sequence[Mapping[str, Array]],
) -> tuple[Float[Array, "b h w"], Float[Array, " b"], Float[Array, "b h w"]]:
  """Return mean map, mean score and harmonic mean distance of `forward`."""
  mean = score_fusion.mean
  maps = mean([x["maps"][..., ANOMALOUS] for x in levels])
  scores = mean([jax.nn.softmax(x["logits"])[:, ANOMALOUS] for x in levels])
  return (
    maps,
    scores,
    score_fusion.harmonic_mean([x["distance"] for x in levels]),
  )


def init(
  rng: jax.Array,
  d: int,
  *,
  levels: int,
  widths: tuple[int, int],
  share_heads: bool,
) -> tuple[Params, Params]:
  """Initialize parameters and statistics as torch does.

  Args:
    rng: key.
    d: width of the patches.
    levels: number of levels.
    widths: of the two stages of each head.
    share_heads: if all levels share one pair of heads.

  Returns:
    Parameters and statistics, each {"norms", "local", "global"} with one
    entry per level or head.
  """
  heads = 1 if share_heads else levels
  params = {"norms": {}, "local": {}, "global": {}}
  stats = {"norms": {}, "local": {}, "global": {}}
  for i in range(levels):
    params["norms"][str(i)], stats["norms"][str(i)] = batch_norm.init(d)
  for i, key in enumerate(jax.random.split(rng, heads)):
    kinds = (("local", _init_local), ("global", _init_global))
    for (name, make), rng_head in zip(kinds, jax.random.split(key)):
      head = make(rng_head, d, *widths)
      params[name][str(i)], norms = head, {}
      for k, width in enumerate(widths, start=1):
        head[f"norm{k}"], norms[f"norm{k}"] = batch_norm.init(width)
      stats[name][str(i)] = norms
  return params, stats


def _init_local(rng, d, wide, narrow):
  rngs = jax.random.split(rng, 5)
  return {
    "conv1": conv.init(rngs[0], d, wide, 3, bias=False),
    "up1": conv.init_transposed(rngs[1], wide, wide, 2),
    "conv2": conv.init(rngs[2], wide, narrow, 3, bias=False),
    "up2": conv.init_transposed(rngs[3], narrow, narrow, 2),
    "out": conv.init(rngs[4], narrow, 2, 1, bias=True),
  }


def _init_global(rng, d, wide, narrow):
  rngs = jax.random.split(rng, 3)
  return {
    "fc1": linear.init(rngs[0], d, wide, bias=False),
    "fc2": linear.init(rngs[1], wide, narrow, bias=False),
    "out": linear.init(rngs[2], narrow, 2, bias=False),
  }


# ---- Names in the authors' checkpoint.


def copies(name: str, levels: int) -> list[str]:
  """Return the names of the other levels' heads that share a tensor.

  With shared heads the authors' list repeats one module, and their file
  repeats its tensors.

  Args:
    name: of a tensor; only those of the first level's heads have copies.
    levels: number of levels.
  """
  match = re.fullmatch(r"(pq_learner\.\w+_adapter)\.0\.(.*)", name)
  if not match:
    return []
  return [f"{match[1]}.{i}.{match[2]}" for i in range(1, levels)]


# The heads' layers by their number in the authors' modules.
_CONVS = {"0": "conv1", "3": "up1", "4": "conv2", "7": "up2", "8": "out"}
_LINEARS = {"0": "fc1", "3": "fc2", "6": "out"}
_NORMS = [(r"pq_learner\.sharebn\.(\d+)", r"prompt_query/norms/\1")]
for _head, _numbers in (("local", "15"), ("global", "14")):
  for _k, _number in enumerate(_numbers, start=1):
    _NORMS.append(
      (
        rf"pq_learner\.{_head}_adapter\.(\d+)\.{_number}",
        rf"prompt_query/{_head}/\1/norm{_k}",
      )
    )


def _layer_rules(head, number, name, layout):
  torch = rf"pq_learner\.{head}_adapter\.(\d+)\.{number}"
  path = rf"prompt_query/{head}/\1/{name}"
  return (
    Rule(rf"{torch}\.weight", f"{path}/kernel", layout),
    Rule(rf"{torch}\.bias", f"{path}/bias"),
  )


def _names() -> Iterator[Rule]:
  for number, name in _CONVS.items():
    layout = "transposed_conv" if name.startswith("up") else "conv"
    yield from _layer_rules("local", number, name, layout)
  for number, name in _LINEARS.items():
    yield from _layer_rules("global", number, name, "linear")
  for torch, path in _NORMS:
    yield from norm_rules(torch, path)


TORCH_NAMES = tuple(_names())
TORCH_STATS = tuple(r for norm in _NORMS for r in batch_norm_stats(*norm))
