"""Learned vectors in sentences and in the text tower, after AnomalyCLIP.

Zhou et al., ICLR 2024, Sec. 3.2 and 3.3; FAPrompt and AdaptCLIP start from it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.layers import prompt_trie, tokens
from zsad_jax.torch_io.rules import CheckpointSpec, Rule, Table
from zsad_jax.types import Backbone

STD = 0.02  # Of all learned vectors (authors' code).
CONTEXT = 77  # Tokens of a sentence in the authors' checkpoints.
PROJECTED = 896  # Width of layers that are stored there and never used.

DEEP_RULE = Rule(r"prompt_learner\.compound_prompts_text\.(\d+)", r"deep/\1")


class PromptTemplate(NamedTuple):
  """A sentence about a state, with placeholders for learned vectors."""

  text: str
  vectors: int  # Placeholders, the first words.
  prompts: int = 1  # Prompts that are learned from it.


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


def branches(k: int, length: int, shared: int) -> prompt_trie.PromptTrie:
  """k sentences of `length` tokens, which begin with `shared` equal ones."""
  ids = np.arange(k * length).reshape(k, length)
  ids[:, :shared] = ids[0, :shared]
  return prompt_trie.build(ids, np.full(k, length - 1))


def nodes(
  tree: prompt_trie.PromptTrie, embeds: Float[Array, "b k t c"]
) -> tuple[Float[Array, "b n c"], Int[Array, "b k"], dict[str, Array]]:
  """The sentences of b images, all joined alike, as the text tower takes them.

  Returns:
    Embeddings of the nodes, their end tokens, and the hooks `row` and `seen`.
  """
  b, k, t, c = embeds.shape
  chosen = embeds.reshape(b, k * t, c)[:, jnp.asarray(tree.source)]
  each = lambda x: jnp.broadcast_to(jnp.asarray(x), (b, *x.shape))
  hooks = {
    "positions": each(tree.position),
    "attention_mask": each(tree.attention_mask),
  }
  return chosen, each(tree.end), hooks


def checkpoint(names: Table, *groups: str, **fields) -> CheckpointSpec:
  """How a method is stored that has a function `sentences`.

  Args:
    names: see `torch_names.CheckpointSpec`.
    *groups: likewise; the first one has the tokens of the sentences.
    **fields: likewise.
  """
  return CheckpointSpec(
    names,
    groups=groups,
    buffers=lambda method, backbone: buffers(
      backbone, groups[0], method.prompt_templates()
    ),
    **fields,
  )


def unused(method, backbone: Backbone) -> dict[str, tuple[int, ...]]:
  """Shapes of layers beside the deep prompts, which the authors never use."""
  shapes = {}
  for k in range(method.deep_depth - 1):
    name = f"prompt_learner.compound_prompt_projections.{k}"
    shapes[f"{name}.weight"] = (PROJECTED, backbone.text_width)
    shapes[f"{name}.bias"] = (PROJECTED,)
  return shapes


def buffers(
  backbone: Backbone, group: str, sentences: Sequence[PromptTemplate]
) -> dict[str, np.ndarray]:
  """Frozen tokens and ids of the sentences, which the authors store, too.

  Args:
    backbone: whose tokens they are.
    group: first word of the names.
    sentences: normal and anomalous.

  Returns:
    For each state, with n prompts of m vectors: token_prefix (1, n, 1, c),
    the start token; token_suffix (1, n, 76 - m, c), what follows the vectors;
    tokenized_prompts (1, n, 77).
  """
  result = {}
  for state, (text, m, n) in zip(("pos", "neg"), sentences):
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
