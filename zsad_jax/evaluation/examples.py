"""The images worth a look: the clearest, the worst and the closest calls."""

import dataclasses
import heapq

import numpy as np

KINDS = {
  "missed": "anomalous, lowest scores",
  "false alarm": "normal, highest scores",
  "borderline": "closest to the threshold",
  "found": "anomalous, highest scores",
  "clear": "normal, lowest scores",
}


@dataclasses.dataclass(frozen=True)
class Example:
  """One image of a gallery.

  Attributes:
    number: of the image in its category.
    score: of the image.
    anomaly_map: float32 (s, s).
    gt_mask: bool (s, s), or None where unknown.
  """

  number: int
  score: float
  anomaly_map: np.ndarray
  gt_mask: np.ndarray | None


class Gallery:
  """Keeps a few images of each kind while a category goes by.

  Args:
    each: number of images of a kind.
    threshold: on image scores, of borderline images; None: there are none.
    always: numbers of images that are kept whatever their scores.
  """

  def __init__(self, *, each: int, threshold: float | None, always=()):
    self._each, self._threshold = each, threshold
    self._always = frozenset(always)
    self._heaps = {kind: [] for kind in KINDS}
    self.kept: dict[int, Example] = {}

  def add(self, label: int, example: Example) -> None:
    """Shows it an image; label is 0 for normal, 1 for anomalous."""
    if example.number in self._always:
      self.kept[example.number] = example
    score = example.score
    ranks = (
      {"found": score, "missed": -score}
      if label
      else {"false alarm": score, "clear": -score}
    )
    if self._threshold is not None:
      ranks["borderline"] = -abs(score - self._threshold)
    for kind, rank in ranks.items():
      self._push(kind, (rank, -example.number, example))

  def _push(self, kind, item):
    heap = self._heaps[kind]
    heapq.heappush(heap, item)
    if len(heap) > self._each:
      heapq.heappop(heap)

  def merge(self, other: "Gallery") -> None:
    """Adds what another gallery has seen of the same category."""
    self.kept |= other.kept
    for kind, heap in other._heaps.items():
      for item in heap:
        self._push(kind, item)

  def kinds(self) -> dict[str, list[Example]]:
    """Examples by kind, the most telling first; each image is shown once."""
    seen, result = set(), {}
    for kind, heap in self._heaps.items():
      ordered = [example for _, _, example in sorted(heap, reverse=True)]
      new = [e for e in ordered if e.number not in seen]
      seen |= {e.number for e in new}
      if new:
        result[kind] = new
    return result
