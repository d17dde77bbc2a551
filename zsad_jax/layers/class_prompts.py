"""Prompts of learned context vectors and a class name, as in CoOp.

Zhou et al., IJCV 2022, arXiv:2109.01134; CoCoOp and TCP extend it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.layers import prompt_learner, prompt_trie, tokens
from zsad_jax.types import TextBackbone

Prompts = Mapping[str, Array]  # See `build`.
Position = Literal["end", "middle", "front"]  # Of the class in a prompt.


def check(states: Sequence[str]) -> None:
  """Check that each state is a phrase with one place for the name.

  Raises:
    ValueError: one is not.
  """
  for state in states:
    if state.count("{}") != 1 or state.replace("{}", "").count("{"):
      raise ValueError(
        'config.method.states are phrases with one "{}" for the name of the '
        f"class, got {state!r}."
      )


def init_context(
  rng: jax.Array, backbone: TextBackbone, length: int, initial: str = ""
) -> Float[Array, "m c"]:
  """Initialize context vectors.

  Args:
    rng: key.
    backbone: frozen text encoder.
    length: number of random vectors, see `prompt_learner.init`.
    initial: words whose token embeddings are taken instead, one for each word;
      those of longer words are cut off, as in the authors' code.
  """
  if not initial:
    return prompt_learner.init(rng, length, backbone.text_width)
  ids, _ = backbone.tokenize([initial])
  return backbone.embed_tokens(ids[0, 1 : 1 + len(initial.split())])


def placeholder_words(length: int, initial: str = "") -> str:
  """Return the words in place of the context, one for each vector."""
  return initial or " ".join(["X"] * length)


def phrases(
  class_names: Sequence[str], states: Sequence[str]
) -> list[list[str]]:
  """Return the phrases of each class, such as "damaged metal nut".

  Args:
    class_names: n names; "_" becomes a space.
    states: one phrase for each state, with "{}" for the name.
  """
  names = [name.replace("_", " ") for name in class_names]
  return [[state.format(name) for state in states] for name in names]


def placeholder(words: str, phrase: str) -> str:
  """Return the text of a prompt, with words in place of the vectors."""
  return f"{words} {phrase}."


def build(
  backbone: TextBackbone,
  groups: Sequence[Sequence[str]],
  words: str,
  *,
  position: Position = "end",
  own_vectors: bool = False,
) -> dict[str, Array]:
  """Arrange learned vectors and the tokens of phrases in prompts.

  The prompts of a group are joined to a trie, so that the text tower computes
  their common beginnings once; see `layers/prompt_trie.py`.

  Args:
    backbone: frozen text encoder.
    groups: n groups of s phrases each.
    words: m words, one for each vector; only their number matters.
    position: of the phrase: after the vectors ("end"), after the first m // 2
      ("middle"), or before them ("front"). A full stop is the last token.
    own_vectors: if each phrase of a group has m vectors of its own, instead of
      the same ones.

  Returns:
    "embeds" (n, t, c), embeddings of the nodes of each trie; "vector" (n, t),
    index of the learned vector that a node is, -1 for none; "positions" (n, t),
    "attention_mask" (n, t, t) and "end" (n, s) as the text tower takes them.
  """
  return arrange(
    backbone,
    [
      list(_symbols(backbone, group, words, position, own_vectors))
      for group in groups
    ],
  )


def arrange(
  backbone: TextBackbone, groups: Sequence[Sequence[Sequence[int]]]
) -> dict[str, Array]:
  """Join the prompts of each group to a trie.

  Args:
    backbone: frozen text encoder.
    groups: n groups of s prompts each, the end token last; an element is the id
      of a token, or -1 - i for the learned vector i.

  Returns:
    See `build`.
  """
  length = max(len(prompt) for group in groups for prompt in group)
  ids = np.array(
    [
      [[*prompt, *[0] * (length - len(prompt))] for prompt in group]
      for group in groups
    ]
  )
  trie = prompt_trie.stack(
    [
      prompt_trie.build(table, np.array([len(prompt) - 1 for prompt in group]))
      for table, group in zip(ids, groups)
    ]
  )
  nodes = np.take_along_axis(ids.reshape(len(ids), -1), trie.source, axis=1)
  return {
    "embeds": jnp.asarray(backbone.embed_tokens(np.maximum(nodes, 0))),
    "vector": jnp.asarray(np.where(nodes < 0, -1 - nodes, -1)),
    "positions": jnp.asarray(trie.position),
    "attention_mask": jnp.asarray(trie.attention_mask),
    "end": jnp.asarray(trie.end),
  }


def _symbols(
  backbone: TextBackbone,
  group: Sequence[str],
  words: str,
  position: Position,
  own_vectors: bool,
) -> Iterator[list[int]]:
  """Yield the prompts of a group: token ids, and -1 - i for the vector i."""
  ids, end = backbone.tokenize([placeholder(words, x) for x in group])
  # The end token is the one after the start token and those of the phrase.
  lengths = backbone.tokenize(group)[1] - 1
  m = len(words.split())
  before = {"end": m, "middle": m // 2, "front": 0}[position]
  for i, (row, last, length) in enumerate(zip(ids.tolist(), end, lengths)):
    first = i * m if own_vectors else 0
    vectors = [-1 - first - j for j in range(m)]
    phrase, rest = row[1 + m : 1 + m + length], row[1 + m + length : last + 1]
    yield [row[0], *vectors[:before], *phrase, *vectors[before:], *rest]


def select(prompts: Prompts, rows: Int[Array, " b"]) -> dict[str, Array]:
  """Return the groups of prompts with these indices."""
  return jax.tree.map(lambda x: x[rows], dict(prompts))


def encode(
  backbone: TextBackbone,
  groups: Prompts,
  vectors: Float[Array, "_ m c"],
  **hooks: Any,
) -> Float[Array, "n s d"]:
  """Embed the prompts of each group.

  Args:
    backbone: frozen text encoder.
    groups: prompts, see `build`.
    vectors: learned vectors, one set for all groups (leading axis 1) or one
      for each.
    **hooks: keywords of `backbone.text`.

  Returns:
    The embeddings, not of unit length.
  """
  embeds, _ = backbone.text(
    tokens.overwrite(groups["embeds"], vectors, groups["vector"]),
    groups["end"],
    positions=groups["positions"],
    attention_mask=groups["attention_mask"],
    **hooks,
  )
  return embeds


def num_tokens(prompts: Prompts) -> int:
  """Return the number of tokens of a group of prompts."""
  return prompts["positions"].shape[1]
