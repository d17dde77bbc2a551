"""Prompts of one category with learned contexts for both states (PromptAD).

Li et al., CVPR 2024, arXiv:2404.05231.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.layers import class_prompts, defect_phrases, similarity
from zsad_jax.types import TextBackbone


@dataclasses.dataclass(frozen=True)
class Contexts:
  """Numbers of contexts, and of the vectors of each.

  Attributes:
    normal: normal contexts.
    length: vectors of a normal context.
    anomalous: anomalous contexts.
    anomalous_length: vectors of an anomalous context.
  """

  normal: int
  length: int
  anomalous: int
  anomalous_length: int

  @property
  def learned(self) -> int:
    """Number of learned anomalous prompts."""
    return self.normal * self.anomalous

  def prompts(self, category: str) -> tuple[list[str], list[str], list[str]]:
    """Return the normal, written and learned prompts of a category.

    Words "N" and "A" are in the place of the vectors.
    """
    context = " ".join(["N"] * self.length)
    both = " ".join([context, *["A"] * self.anomalous_length])
    name = defect_phrases.name_in_prompts(category)
    phrases = defect_phrases.phrases(category)
    return (
      [f"{context} {name}."] * self.normal,
      [f"{context} {x}." for x in phrases for _ in range(self.normal)],
      [f"{both} {name}."] * self.learned,
    )

  def symbols(
    self, backbone: TextBackbone, category: str
  ) -> tuple[list[list[int]], ...]:
    """Return the prompts of `prompts` as `class_prompts.arrange` takes them.

    Prompt r of each kind has the normal context r mod n, and a learned one the
    anomalous context r mod m: all pairs, where n and m have no common divisor.
    """
    normal, written, learned = (
      (texts, *backbone.tokenize(texts)) for texts in self.prompts(category)
    )
    result = []
    for (texts, ids, ends), m in ((normal, 0), (written, 0), (learned, 1)):
      rows = []
      for r in range(len(texts)):
        vectors = self._rows(0, self.length, r % self.normal)
        if m:
          first, length = self.normal * self.length, self.anomalous_length
          vectors += self._rows(first, length, r % self.anomalous)
        rest = ids[r, 1 + len(vectors) : ends[r] + 1].tolist()
        rows.append([int(ids[r, 0]), *(-1 - v for v in vectors), *rest])
      result.append(rows)
    return tuple(result)

  def _rows(self, first: int, length: int, number: int) -> list[int]:
    """Return the numbers of the vectors of a context."""
    return [first + number * length + j for j in range(length)]

  def arrange(
    self, backbone: TextBackbone, categories: Sequence[str]
  ) -> dict[str, Any]:
    """Arrange the prompts of each category.

    Returns:
      "prompts", see `class_prompts.build`: a group of the normal, written and
      learned prompts of each of n categories; and "used" (n, a), 1 for its
      anomalous prompts and 0 for those that fill the group of a category with
      fewer phrases than another one.
    """
    each = [self.symbols(backbone, name) for name in categories]
    most = max(len(written) for _, written, _ in each)
    groups, used = [], []
    for normal, written, learned in each:
      fill = most - len(written)
      groups.append([*normal, *written, *[written[-1]] * fill, *learned])
      used.append([1] * len(written) + [0] * fill + [1] * len(learned))
    return {
      "prompts": class_prompts.arrange(backbone, groups),
      "used": jnp.asarray(np.array(used, np.float32)),
    }


def anchors(
  text: Float[Array, "b s d"], used: Float[Array, "b a"]
) -> Float[Array, "b 2 d"]:
  """Return the unit means of the normal and of the anomalous prompts.

  Args:
    text: embeddings of the prompts, the a anomalous ones last; long ones have
      more weight.
    used: weights of the anomalous prompts, see `Contexts.arrange`.
  """
  normal = text.shape[1] - used.shape[1]
  mean = _mean(text[:, normal:], used)
  return similarity.unit(jnp.stack([text[:, :normal].mean(axis=1), mean], 1))


def gap(
  units: Float[Array, "b a d"], used: Float[Array, "b a"], learned: int
) -> Float[Array, " b"]:
  """Return the squared distance of the means of written and learned prompts.

  Args:
    units: unit embeddings of the anomalous prompts.
    used: their weights, see `Contexts.arrange`.
    learned: number of learned prompts, the last ones.
  """
  written = _mean(units[:, :-learned], used[:, :-learned])
  difference = written - _mean(units[:, -learned:], used[:, -learned:])
  return jnp.square(difference).sum(axis=1)


def _mean(x, weight):
  """Return the weighted mean over the second axis."""
  total = jnp.sum(weight[..., None] * x, axis=1)
  return total / weight.sum(axis=1, keepdims=True)
