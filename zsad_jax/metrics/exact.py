"""Exact metrics of detection and segmentation, NumPy only.

An item (an image or a pixel) is flagged where its score is at least the
threshold. All metrics depend only on the order of the scores: any scale is
valid, infinities are allowed, and equal scores are one step of every curve.

One sort serves all metrics: `Ranking` holds its result, and the functions
below read their values from it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from scipy import ndimage

MAX_FPR = 0.3  # Upper end of the AUPRO integral; Bergmann et al., IJCV 2021.
POINTS = 60  # A drawn curve has at most twice as many points.
_EIGHT_CONNECTED = np.ones((3, 3), int)

Curves = dict[str, tuple[list[float], list[float]]]  # x and y by name.


class UndefinedError(ValueError):
  """Undefined metric: there is no normal or no anomalous item."""


@dataclasses.dataclass(frozen=True)
class Ranking:
  """Counts of flagged items at each distinct score of an anomalous item.

  The scores are in descending order. No metric needs the thresholds between
  two of them, where only normal items are added: F1 decreases, AP gains no
  term, the curves are horizontal.

  Attributes:
    threshold: the k scores, strictly descending.
    true_pos: anomalous items with a score >= threshold.
    false_pos: normal items with a score >= threshold.
    false_pos_above: normal items with a score > threshold; from here to
      `false_pos` the curves rise in a straight line, the step of a tie.
    pro: per-region overlap in [0, 1], the mean over all regions of the flagged
      fraction of the region. For items without regions it is the recall.
    num_normal: number of all normal items, at least 1.
    num_anomalous: number of all anomalous items, at least 1.
  """

  threshold: Shaped[np.ndarray, " k"]
  true_pos: Int64[np.ndarray, " k"]
  false_pos: Int64[np.ndarray, " k"]
  false_pos_above: Int64[np.ndarray, " k"]
  pro: Float64[np.ndarray, " k"]
  num_normal: int
  num_anomalous: int

  def auroc(self) -> float:
    """Return the area under recall over false positive rate; see `auroc`."""
    return self._area(self.true_pos / self.num_anomalous, max_fpr=1.0)

  def average_precision(self) -> float:
    """Return the sum of gain in recall x precision; see the function."""
    gain = np.diff(self.true_pos, prepend=0)
    precision = self.true_pos / (self.true_pos + self.false_pos)
    return float(np.sum(gain * precision) / self.num_anomalous)

  def f1_max(self) -> tuple[float, float]:
    """Return the largest 2 TP / (TP + FP + P) and its threshold."""
    flagged = self.true_pos + self.false_pos
    f1 = 2 * self.true_pos / (flagged + self.num_anomalous)
    best = np.argmax(f1)  # The first of several: the largest threshold.
    return float(f1[best]), float(self.threshold[best])

  def aupro(self, *, max_fpr: float = MAX_FPR) -> float:
    """Return the area under `pro` over false positive rate; see `aupro`."""
    if not 0.0 < max_fpr <= 1.0:
      raise ValueError(f"max_fpr must lie in (0, 1], got {max_fpr}.")
    return self._area(self.pro, max_fpr=max_fpr) / max_fpr

  def curves(self) -> Curves:
    """Return ROC, precision over recall ("pr") and PRO, thinned for charts."""
    recall = self.true_pos / self.num_anomalous
    precision = self.true_pos / (self.true_pos + self.false_pos)
    return {
      "roc": thin(*self._vertices(recall)),
      "pr": thin(recall, precision),
      "pro": thin(*self._vertices(self.pro)),
    }

  def _vertices(self, rate):
    """Return false positive rates, and `rate` (k,) over them.

    Each threshold has two vertices, at the start and at the end of its tie;
    the first vertex is (0, 0), the last (1, 1).
    """
    ties = np.stack([self.false_pos_above, self.false_pos], axis=1).ravel()
    fpr = np.concatenate([[0], ties, [self.num_normal]]) / self.num_normal
    return fpr, np.concatenate([[0, 0], np.repeat(rate, 2)])

  def _area(self, rate, *, max_fpr):
    """Return the area under `rate` (k,) over the false positive rate."""
    fpr, y = self._vertices(rate)
    # The first vertex at or beyond the limit: a rise there is not counted.
    end = np.searchsorted(fpr, max_fpr)
    share = (max_fpr - fpr[end - 1]) / (fpr[end] - fpr[end - 1])
    y_end = y[end - 1] + share * (y[end] - y[end - 1])
    return float(
      np.trapezoid(np.append(y[:end], y_end), np.append(fpr[:end], max_fpr))
    )


def auroc(
  label: Shaped[np.ndarray, " n"], score: Shaped[np.ndarray, " n"]
) -> float:
  """Compute the area under the receiver operating characteristic.

  It is the probability that an anomalous item has a higher score than a normal
  one; a tie counts one half.

  Args:
    label: 0 or False = normal, 1 or True = anomalous.
    score: higher = more anomalous, any scale.

  Returns:
    Float in [0, 1].

  Raises:
    UndefinedError: there is no normal or no anomalous item.
    ValueError: a score is NaN, or a label is neither 0 nor 1.
  """
  return rank_items(label, score).auroc()


def average_precision(
  label: Shaped[np.ndarray, " n"], score: Shaped[np.ndarray, " n"]
) -> float:
  """Compute the sum over thresholds of (gain in recall) x precision.

  Arguments and errors are those of `auroc`. This is a step sum without
  interpolation; some codes call the trapezoid under the same curve AP, which
  is a different number.

  Returns:
    Float in (0, 1].
  """
  return rank_items(label, score).average_precision()


def f1_max(
  label: Shaped[np.ndarray, " n"], score: Shaped[np.ndarray, " n"]
) -> tuple[float, float]:
  """Compute the largest F1 over all thresholds.

  Arguments and errors are those of `auroc`.

  Returns:
    F1 in (0, 1], and the largest threshold that reaches it. The threshold is
    chosen with the labels, as is usual in published tables.
  """
  return rank_items(label, score).f1_max()


def aupro(
  gt_mask: Shaped[np.ndarray, "n h w"],
  anomaly_map: Shaped[np.ndarray, "n h w"],
  *,
  max_fpr: float = MAX_FPR,
) -> float:
  """Compute the area under the per-region-overlap (PRO) curve.

  PRO is the mean over ground-truth regions of the flagged fraction of the
  region, so that a small region counts as much as a large one. The false
  positive rate is taken over the normal pixels of all images.

  Args:
    gt_mask: nonzero = anomalous. Regions are 8-connected, within an image.
    anomaly_map: higher = more anomalous, any scale.
    max_fpr: upper end of the integral, in (0, 1]; the area is divided by it.

  Returns:
    Float in [0, 1]. A constant map scores max_fpr / 2.

  Raises:
    UndefinedError: there is no normal or no anomalous pixel.
    ValueError: a value is NaN, the shapes differ, or a wrong `max_fpr`.

  References:
    Bergmann et al., IJCV 129 (2021). Exact: one threshold per distinct value,
    the curve is cut at `max_fpr` by linear interpolation. The AnomalyCLIP code
    takes 200 equal steps of the score and rescales the FPR axis.
  """
  return rank_pixels(gt_mask, anomaly_map).aupro(max_fpr=max_fpr)


def pixels(
  function: Callable[[np.ndarray, np.ndarray], float],
) -> Callable[[np.ndarray, np.ndarray], float]:
  """Return a function of masks and maps from one of labels and scores."""
  return lambda gt_mask, anomaly_map: function(
    (gt_mask != 0).ravel().astype(int), anomaly_map.ravel()
  )


def thin(
  x: Shaped[np.ndarray, " n"], y: Shaped[np.ndarray, " n"]
) -> tuple[list[float], list[float]]:
  """Reduce a curve with increasing x to at most 2 x `POINTS` points.

  Most of them are at small x.
  """
  share = np.linspace(0, 1, POINTS) ** 2
  near = np.searchsorted(x, x[0] + share * (x[-1] - x[0]))
  even = np.linspace(0, len(x) - 1, POINTS).astype(int)
  kept = np.unique(np.concatenate([near, even]))
  return x[kept].tolist(), y[kept].tolist()


def rank_items(
  label: Shaped[np.ndarray, " n"], score: Shaped[np.ndarray, " n"]
) -> Ranking:
  """Rank items without regions; arguments and errors are those of `auroc`."""
  is_anomalous = check_items(label, score)
  anomalous = score[is_anomalous]
  return _rank(score[~is_anomalous], anomalous, np.ones(anomalous.size))


def rank_pixels(
  gt_mask: Shaped[np.ndarray, "n h w"],
  anomaly_map: Shaped[np.ndarray, "n h w"],
) -> Ranking:
  """Rank pixels, each weighted by one over the area of its region.

  Arguments and errors are those of `aupro`.
  """
  check_shapes("gt_mask", gt_mask, "anomaly_map", anomaly_map)
  for i, one_map in enumerate(anomaly_map):
    if np.isnan(one_map).any():
      raise ValueError(f"The anomaly map of image {i} contains NaN.")
  is_anomalous = gt_mask != 0
  check_states(int(is_anomalous.sum()), gt_mask.size, "pixels")
  weight = np.concatenate([_region_weight(mask) for mask in is_anomalous])
  return _rank(anomaly_map[~is_anomalous], anomaly_map[is_anomalous], weight)


def regions(
  mask: Shaped[np.ndarray, "h w"],
) -> tuple[Shaped[np.ndarray, " p"], Shaped[np.ndarray, " r"]]:
  """Find the 8-connected regions of a mask.

  Args:
    mask: nonzero = anomalous.

  Returns:
    For each anomalous pixel, in raster order, the index of its region (from
    0), and the number of pixels of each region.
  """
  labelled = np.zeros(mask.shape, np.int32)
  ndimage.label(mask, structure=_EIGHT_CONNECTED, output=labelled)
  region = labelled[mask != 0] - 1
  return region, np.bincount(region)


def _region_weight(mask):
  """Return one over the area of its region for each anomalous pixel."""
  region, area = regions(mask)
  return (1.0 / area)[region]


def _rank(normal, anomalous, weight):
  """Rank scores; those of the normal items are sorted in place.

  Normal scores (nearly all pixels of a category) are sorted alone, which is
  many times faster than sorting them together with their counts.
  """
  normal.sort()
  order = np.argsort(anomalous)[::-1]
  score = anomalous[order]
  last = np.append(score[1:] != score[:-1], True)  # Of a group of ties.
  threshold = score[last]
  found = np.cumsum(weight[order])
  below = lambda side: np.searchsorted(normal, threshold, side=side)
  return Ranking(
    threshold=threshold,
    true_pos=np.flatnonzero(last) + 1,
    false_pos=normal.size - below("left"),
    false_pos_above=normal.size - below("right"),
    pro=found[last] / found[-1],
    num_normal=normal.size,
    num_anomalous=anomalous.size,
  )


def check_shapes(
  name_a: str, a: np.ndarray, name_b: str, b: np.ndarray
) -> None:
  """Raise ValueError unless both arrays have the same shape."""
  if a.shape != b.shape:
    raise ValueError(
      f"{name_a} and {name_b} must have one shape, got {a.shape} and {b.shape}."
    )


def check_items(label: np.ndarray, score: np.ndarray) -> np.ndarray:
  """Check the arguments of `auroc`; return which items are anomalous."""
  check_shapes("label", label, "score", score)
  is_nan = np.isnan(score)
  if is_nan.any():
    raise ValueError(f"The score of item {np.argmax(is_nan)} is NaN.")
  wrong = np.setdiff1d(label, [0, 1])
  if wrong.size:
    raise ValueError(f"A label is 0 or 1, got {wrong[0]}.")
  is_anomalous = label == 1
  check_states(int(is_anomalous.sum()), label.size, "items")
  return is_anomalous


def check_states(anomalous: int, total: int, items: str) -> None:
  """Raise UndefinedError unless there are normal and anomalous items."""
  if anomalous in (0, total):
    raise UndefinedError(
      f"The metrics need normal and anomalous {items}, got {anomalous} "
      f"anomalous of {total}."
    )
