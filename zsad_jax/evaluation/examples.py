"""Qualitative examples: false positives, false negatives, borderline cases."""

import dataclasses
import heapq
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from zsad_jax.types import ANOMALOUS

# Kind -> the images it selects.
KINDS = {
  "missed": "anomalous, lowest scores",
  "false alarm": "normal, highest scores",
  "borderline": "closest to the threshold",
  "found": "anomalous, highest scores",
  "clear": "normal, lowest scores",
}


@dataclasses.dataclass(frozen=True)
class Example:
  """Prediction of one image.

  Attributes:
    number: index of the image in its category.
    score: image score.
    anomaly_map: float32 (m, n).
    gt_mask: bool (m, n), or None where unknown.
  """

  number: int
  score: float
  anomaly_map: np.ndarray
  gt_mask: np.ndarray | None


class ExampleSelector:
  """Selects qualitative examples of a category in one pass.

  Args:
    num_per_kind: number of images of each kind in `KINDS`.
    threshold: threshold of image scores for borderline images; None: none are
      selected.
    always: indices of images that are kept whatever their scores.
  """

  def __init__(
    self,
    *,
    num_per_kind: int,
    threshold: float | None,
    always: Collection[int] = (),
  ):
    self._num_per_kind, self._threshold = num_per_kind, threshold
    self._always = frozenset(always)
    self._heaps: dict[str, list[tuple[float, int, Example]]] = {
      kind: [] for kind in KINDS
    }
    self.kept: dict[int, Example] = {}

  def update(self, label: int, example: Example) -> None:
    """Add an image; label is 0 for normal, 1 for anomalous."""
    if example.number in self._always:
      self.kept[example.number] = example
    score = example.score
    ranks = (
      {"found": score, "missed": -score}
      if label == ANOMALOUS
      else {"false alarm": score, "clear": -score}
    )
    if self._threshold is not None:
      ranks["borderline"] = -abs(score - self._threshold)
    for kind, rank in ranks.items():
      self._push(kind, (rank, -example.number, example))

  def _push(self, kind, item):
    heap = self._heaps[kind]
    heapq.heappush(heap, item)
    if len(heap) > self._num_per_kind:
      heapq.heappop(heap)

  def to_dict(self) -> dict[str, Any]:
    """Return the examples as arrays and numbers, for other processes.

    An example of several kinds is stored once.
    """
    ranks = {
      kind: [[rank, -number] for rank, number, _ in heap]
      for kind, heap in self._heaps.items()
    }
    examples = {e.number: e for heap in self._heaps.values() for *_, e in heap}
    fields = lambda e: [e.number, e.score, e.anomaly_map, e.gt_mask]
    return {
      "kept": [*self.kept],
      "ranks": ranks,
      "examples": [fields(e) for e in {**examples, **self.kept}.values()],
    }

  def merge_dict(self, stored: Mapping[str, Any]) -> None:
    """Add the examples of another process, as `to_dict` returns them."""
    examples = {fields[0]: Example(*fields) for fields in stored["examples"]}
    self.kept |= {number: examples[number] for number in stored["kept"]}
    for kind, ranks in stored["ranks"].items():
      for rank, number in ranks:
        self._push(kind, (rank, -number, examples[number]))

  def compute(self) -> dict[str, list[Example]]:
    """Return examples by kind, most extreme first; each image occurs once."""
    seen, result = set(), {}
    for kind, heap in self._heaps.items():
      ordered = [example for _, _, example in sorted(heap, reverse=True)]
      new = [e for e in ordered if e.number not in seen]
      seen |= {e.number for e in new}
      if new:
        result[kind] = new
    return result
