"""Prompt trie: common prefixes of prompts are computed once.

Under a causal mask a token depends only on the tokens before it, so equal
prefixes have equal rows in every layer. Prompts are joined to a trie whose
nodes attend to their ancestors; the results equal those of the single prompts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from zsad_jax.types import TextBackbone


class PromptTrie(NamedTuple):
  """k prompts of t tokens as n nodes, the start token first.

  Attributes:
    source: index of the node's token among the k * t tokens.
    position: position of the node in its prompts.
    attention_mask: True for the nodes (columns) that a node attends to: its
      ancestors and itself.
    end: node of each prompt's end token.
  """

  source: Int[np.ndarray, "*b n"]
  position: Int[np.ndarray, "*b n"]
  attention_mask: Bool[np.ndarray, "*b n n"]
  end: Int[np.ndarray, "*b k"]


def build(
  ids: Int[np.ndarray, "k t"], end: Int[np.ndarray, " k"]
) -> PromptTrie:
  """Join prompts up to their end tokens.

  Args:
    ids: tokens; equal ones after equal prefixes are one node. All prompts
      start with the same token.
    end: position of each prompt's end token.

  Returns:
    The trie.
  """
  nodes: dict[tuple[int, ...], int] = {}
  source, parents, ends = [], [], []
  for prompt, last in enumerate(end):
    for position in range(last + 1):
      prefix = tuple(ids[prompt, : position + 1])
      if prefix not in nodes:
        nodes[prefix] = len(nodes)
        source.append(prompt * ids.shape[1] + position)
        parents.append(nodes.get(prefix[:-1]))
    ends.append(nodes[tuple(ids[prompt, : last + 1])])
  attention_mask = np.eye(len(nodes), dtype=bool)
  for node, parent in enumerate(parents):  # A parent comes first.
    if parent is not None:
      attention_mask[node] |= attention_mask[parent]
  position = attention_mask.sum(axis=1) - 1
  return PromptTrie(np.array(source), position, attention_mask, np.array(ends))


def stack(tries: Sequence[PromptTrie]) -> PromptTrie:
  """Stack tries of equally many prompts, padded with unattended nodes."""
  size = max(len(trie.position) for trie in tries)

  def padded(trie):
    more = size - len(trie.position)
    attention_mask = np.pad(trie.attention_mask, (0, more))
    np.fill_diagonal(attention_mask, True)  # A softmax needs one key.
    source, position = (
      np.pad(x, (0, more)) for x in (trie.source, trie.position)
    )
    return PromptTrie(source, position, attention_mask, trie.end)

  return PromptTrie(*map(np.stack, zip(*map(padded, tries))))


def tokenize(
  backbone: TextBackbone, prompts: Sequence[Sequence[str]]
) -> dict[str, Array]:
  """Build and stack the tries of several sets of prompts.

  Args:
    backbone: frozen text encoder.
    prompts: n sets of equally many prompts.

  Returns:
    "ids", tokens of the nodes, "positions", "attention_mask" and "end", each
    with a leading axis n.
  """
  found = [backbone.tokenize(texts) for texts in prompts]
  trie = stack([build(*pair) for pair in found])
  ids = [pair[0].ravel()[at] for pair, at in zip(found, trie.source)]
  return {
    "ids": jnp.asarray(np.stack(ids)),
    "positions": jnp.asarray(trie.position),
    "attention_mask": jnp.asarray(trie.attention_mask),
    "end": jnp.asarray(trie.end),
  }
