"""Sentences that begin alike, with the beginning computed once.

Under a causal mask a token knows what stands before it and nothing else, so
equal beginnings have equal rows in every layer. Sentences are joined to a tree
whose nodes see their ancestors; its results are those of the sentences.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class PromptTrie(NamedTuple):
  """k sentences of t tokens as n nodes, the start token first.

  Attributes:
    source: a place among the k t tokens where the node's token stands.
    position: of the node in its sentences.
    attention_mask: True for the nodes (columns) that a node attends to: its
      ancestors and itself.
    end: node of each sentence's end token.
  """

  source: Int[np.ndarray, "*b n"]
  position: Int[np.ndarray, "*b n"]
  attention_mask: Bool[np.ndarray, "*b n n"]
  end: Int[np.ndarray, "*b k"]


def build(
  ids: Int[np.ndarray, "k t"], end: Int[np.ndarray, " k"]
) -> PromptTrie:
  """Joins sentences up to their end tokens.

  Args:
    ids: tokens; equal ones behind equal beginnings are one node. All sentences
      start with the same token.
    end: position of each sentence's end token.
  """
  nodes: dict[tuple[int, ...], int] = {}
  source, parents, ends = [], [], []
  for sentence, last in enumerate(end):
    for row in range(last + 1):
      beginning = tuple(ids[sentence, : row + 1])
      if beginning not in nodes:
        nodes[beginning] = len(nodes)
        source.append(sentence * ids.shape[1] + row)
        parents.append(nodes.get(beginning[:-1]))
    ends.append(nodes[tuple(ids[sentence, : last + 1])])
  seen = np.eye(len(nodes), dtype=bool)
  for node, parent in enumerate(parents):  # A parent comes first.
    if parent is not None:
      seen[node] |= seen[parent]
  row = seen.sum(axis=1) - 1
  return PromptTrie(np.array(source), row, seen, np.array(ends))


def stack(trees: Sequence[PromptTrie]) -> PromptTrie:
  """Trees of equally many sentences, padded by nodes that none of them sees."""
  size = max(len(tree.position) for tree in trees)

  def padded(tree):
    more = size - len(tree.position)
    seen = np.pad(tree.attention_mask, (0, more))
    np.fill_diagonal(seen, True)  # A softmax needs something to see.
    source, row = (np.pad(x, (0, more)) for x in (tree.source, tree.position))
    return PromptTrie(source, row, seen, tree.end)

  return PromptTrie(*map(np.stack, zip(*map(padded, trees))))
