"""Learned vectors in prompts and in the text tower, after AnomalyCLIP.

Zhou et al., ICLR 2024, Sec. 3.2 and 3.3; FAPrompt and AdaptCLIP extend it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.layers import prompt_trie, tokens
from zsad_jax.torch_io.rules import CheckpointSpec, Rule, Table
from zsad_jax.types import ImageBackbone, Params, TextBackbone

STD = 0.02  # Of all learned vectors (authors' code).
CONTEXT = 77  # Tokens of a prompt in the authors' checkpoints.
PROJECTED = 896  # Width of layers that are stored there and never used.

DEEP_RULE = Rule(r"prompt_learner\.compound_prompts_text\.(\d+)", r"deep/\1")


class PromptTemplate(NamedTuple):
  """Prompt of one state with placeholders for learned vectors."""

  text: str
  vectors: int  # Placeholders, the first words.
  prompts: int = 1  # Prompts that are learned from it.


def init(rng: jax.Array, *shape: int) -> jax.Array:
  """Initialize learned vectors, normal with deviation `STD`."""
  return STD * jax.random.normal(rng, shape)


def init_deep(
  rng: jax.Array, depth: int, length: int, c: int
) -> dict[str, jax.Array]:
  """Initialize `length` tokens for each of the text layers 2 ... depth."""
  rngs = jax.random.split(rng, depth)
  return {str(k): init(rngs[k], length, c) for k in range(depth - 1)}


def require_text(backbone: ImageBackbone) -> TextBackbone:
  """Return the backbone as a text encoder.

  Raises:
    ValueError: it has none.
  """
  if not isinstance(backbone, TextBackbone):
    raise ValueError(
      "This configuration compares images with text, but config.backbone has "
      "no text encoder: choose another backbone, or switch off the parts of "
      "the method that need text."
    )
  return backbone


def placeholders(
  backbone: TextBackbone, texts: Sequence[str]
) -> dict[str, Array]:
  """Return token embeddings (k, t, c) and end positions (k,) of prompts."""
  ids, end = backbone.tokenize(texts)
  return {"embeds": backbone.embed_tokens(ids), "end": jnp.asarray(end)}


def with_context(
  embeds: Float[Array, "k t c"], vectors: Float[Array, "k m c"]
) -> Float[Array, "k t c"]:
  """Replace the placeholder words by learned vectors."""
  return tokens.set_after_start(embeds, vectors)


def deep_prompts(deep: Params) -> dict[int, jax.Array]:
  """Return learned tokens by 0-based text block; the first block has none."""
  return {int(k) + 1: vectors[None] for k, vectors in deep.items()}


def shared_prefix_trie(
  k: int, length: int, shared: int
) -> prompt_trie.PromptTrie:
  """Build the trie of k prompts with a common prefix.

  Args:
    k: number of prompts.
    length: tokens of each prompt.
    shared: tokens of the common prefix.
  """
  ids = np.arange(k * length).reshape(k, length)
  ids[:, :shared] = ids[0, :shared]
  return prompt_trie.build(ids, np.full(k, length - 1))


def trie_inputs(
  trie: prompt_trie.PromptTrie, embeds: Float[Array, "b k t c"]
) -> tuple[Float[Array, "b n c"], Int[Array, "b k"], dict[str, Array]]:
  """Arrange the prompts of b images, which share one trie, for the text tower.

  Args:
    trie: of the k prompts of each image.
    embeds: token embeddings of the prompts.

  Returns:
    Embeddings of the nodes, their end tokens, and the hooks `positions` and
    `attention_mask`.
  """
  b, k, t, c = embeds.shape
  chosen = embeds.reshape(b, k * t, c)[:, jnp.asarray(trie.source)]
  each = lambda x: jnp.broadcast_to(jnp.asarray(x), (b, *x.shape))
  hooks = {
    "positions": each(trie.position),
    "attention_mask": each(trie.attention_mask),
  }
  return chosen, each(trie.end), hooks


def checkpoint(
  names: Table,
  *groups: str,
  templates: Sequence[PromptTemplate],
  unused_depth: int = 1,
  stats: Table = (),
  copies: Callable[[Any, str], Iterable[str]] = lambda method, name: (),
) -> CheckpointSpec:
  """Describe the authors' checkpoint of a method with learned prompts.

  Args:
    names: see `rules.CheckpointSpec`.
    *groups: see `rules.CheckpointSpec`; the first one has the prompts' tokens.
    templates: prompts of the normal and the anomalous state.
    unused_depth: text layers with learned tokens, see `unused`.
    stats: see `rules.CheckpointSpec`.
    copies: see `rules.CheckpointSpec`.
  """
  return CheckpointSpec(
    names,
    stats=stats,
    groups=groups,
    unused=lambda _, backbone: unused(backbone, unused_depth),
    buffers=lambda _, backbone: buffers(backbone, groups[0], templates),
    copies=copies,
  )


def unused(backbone: TextBackbone, depth: int) -> dict[str, tuple[int, ...]]:
  """Return shapes of layers that the authors store and never use.

  Args:
    backbone: frozen CLIP.
    depth: text layers with learned tokens; each but the first has a layer.
  """
  shapes = {}
  for k in range(depth - 1):
    name = f"prompt_learner.compound_prompt_projections.{k}"
    shapes[f"{name}.weight"] = (PROJECTED, backbone.text_width)
    shapes[f"{name}.bias"] = (PROJECTED,)
  return shapes


def buffers(
  backbone: TextBackbone, group: str, templates: Sequence[PromptTemplate]
) -> Mapping[str, np.ndarray]:
  """Return frozen tokens and ids of the prompts, as the authors store them.

  Args:
    backbone: frozen CLIP.
    group: first word of the names.
    templates: normal and anomalous.

  Returns:
    For each state, with n prompts of m vectors: token_prefix (1, n, 1, c),
    the start token; token_suffix (1, n, 76 - m, c), the tokens after the
    vectors; tokenized_prompts (1, n, 77).
  """
  result = {}
  for state, (text, m, n) in zip(("pos", "neg"), templates):
    ids, _ = backbone.tokenize([text])
    ids = np.pad(ids, ((0, 0), (0, CONTEXT - ids.shape[1])))
    embeds = np.asarray(backbone.embed_tokens(ids))
    repeat = lambda x, n=n: np.repeat(x[None], n, axis=1)
    result |= {
      f"{group}.token_prefix_{state}": repeat(embeds[:, :1]),
      f"{group}.token_suffix_{state}": repeat(embeds[:, 1 + m :]),
      f"{group}.tokenized_prompts_{state}": repeat(ids.astype(np.int32)),
    }
  return result
