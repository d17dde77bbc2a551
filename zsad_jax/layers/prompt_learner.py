"""Learned vectors in sentences and in the text tower, after AnomalyCLIP.

Zhou et al., ICLR 2024, Sec. 3.2 and 3.3; FAPrompt and AdaptCLIP start from it.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.api import Backbone
from zsad_jax.layers import tokens
from zsad_jax.layers.torch_names import Rule

STD = 0.02  # Of all learned vectors (authors' code).

DEEP_RULE = Rule(r"prompt_learner\.compound_prompts_text\.(\d+)", r"deep/\1")


def init(rng, *shape: int) -> jax.Array:
  """Learned vectors, normal with deviation `STD`."""
  return STD * jax.random.normal(rng, shape)


def init_deep(rng, depth: int, length: int, c: int) -> dict[str, jax.Array]:
  """Tokens for the text layers 2 ... depth, `length` for each."""
  rngs = jax.random.split(rng, depth)
  return {str(k): init(rngs[k], length, c) for k in range(depth - 1)}


def placeholders(backbone: Backbone, texts: Sequence[str]) -> dict[str, Array]:
  """Token embeddings (k, t, c) and end positions (k,) of sentences."""
  ids, end = backbone.tokenize(texts)
  return {"embeds": backbone.embed_tokens(ids), "end": jnp.asarray(end)}


def with_context(
    embeds: Float[Array, "k t c"], vectors: Float[Array, "k m c"]
) -> Float[Array, "k t c"]:
  """Puts learned vectors in the place of the placeholder words."""
  return tokens.set_after_start(embeds, vectors)


def deep_prompts(deep: Mapping[str, jax.Array]) -> dict[int, jax.Array]:
  """Learned tokens by 0-based text block; the first block keeps its own."""
  return {int(k) + 1: vectors[None] for k, vectors in deep.items()}
