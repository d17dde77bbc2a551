"""Pixel metrics from integer histograms: constant memory, exact merging.

A pixel's bin is the leading bits of its float32 score in an order-preserving
form, so no range has to be known and any finite or infinite score has a bin.
From 1/2 to 1 it is the bin of the distance from 1: saturated probabilities are
resolved as finely near 1 as near 0. A bin counts its anomalous and normal
pixels and the fraction of every region that lies in it, all as integers:
merged states are bit-identical for any order and partition of the images.

Inside a bin the order is unknown. It can move a curve only within the bin's
rectangle, which bounds the error of every metric; the methods of `BinnedCurve`
return these bounds together with the values.
"""

import dataclasses
import io
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt32

import zsad_jax.metrics.exact as exact
from zsad_jax.runtime import files

BITS = 21  # 12 bits of mantissa; 51 MB for three histograms.
REGION = 2**40  # Total weight of the pixels of a region, rounded down.
_SIGN = np.uint32(1 << 31)
_HALF = np.array([0.5], np.float32)


@dataclasses.dataclass(frozen=True)
class Bounded:
  """A value and the largest possible distance of the exact value from it."""

  value: float
  bound: float


@dataclasses.dataclass
class PixelState:
  """Histograms of the pixels of a category.

  Attributes:
    bits: leading bits of a score that decide its bin.
    anomalous, normal: int64 (num_bins(bits),), pixels by bin.
    pro: int64 like these, weights of anomalous pixels; a region of A pixels
      gives each of them `REGION // A`.
    num_regions: number of regions of all masks.
    largest_region: number of pixels of the largest region.
  """

  bits: int
  anomalous: np.ndarray
  normal: np.ndarray
  pro: np.ndarray
  num_regions: int = 0
  largest_region: int = 0

  @classmethod
  def init(cls, bits: int = BITS) -> "PixelState":
    """Return the state before any image.

    Args:
      bits: leading bits of a score that decide its bin, 10 to 24. With 16,
        maps in bfloat16 are ranked exactly.

    Raises:
      ValueError: another number of bits.
    """
    if not 10 <= bits <= 24:
      raise ValueError(f"bits must lie in 10..24, got {bits}.")
    empty = lambda: np.zeros(num_bins(bits), np.int64)
    return cls(bits, empty(), empty(), empty())

  @property
  def num_anomalous(self) -> int:
    """Number of anomalous pixels."""
    return int(self.anomalous.sum())

  @property
  def num_normal(self) -> int:
    """Number of normal pixels."""
    return int(self.normal.sum())

  def update(
    self,
    gt_mask: Shaped[np.ndarray, "n h w"],
    anomaly_map: Shaped[np.ndarray, "n h w"],
  ) -> None:
    """Count the pixels of some images.

    Args:
      gt_mask: nonzero = anomalous. Regions are 8-connected, within an image.
      anomaly_map: higher = more anomalous; ranked as float32.

    Raises:
      ValueError: a value is NaN, or the shapes differ. The images before the
        one named are counted, it and those after it are not.
    """
    exact.check_shapes("gt_mask", gt_mask, "anomaly_map", anomaly_map)
    for i, (mask, one_map) in enumerate(zip(gt_mask, anomaly_map)):
      self._count(mask, one_map, i)

  def _count(self, mask, one_map, number):
    score = np.asarray(one_map, np.float32).ravel() + np.float32(0)  # No -0.0.
    low = score.min(initial=np.float32(np.inf))
    if np.isnan(low):
      raise ValueError(f"The anomaly map of image {number} contains NaN.")
    if not score.size:
      return
    index = bins(score, self.bits)
    first = int(bins(low[None], self.bits)[0])
    counted = np.bincount(index - np.uint32(first))
    self.normal[first : first + counted.size] += counted
    is_anomalous = np.asarray(mask != 0)
    if not is_anomalous.any():
      return
    index = index[is_anomalous.ravel()].astype(np.intp)
    np.add.at(self.anomalous, index, 1)
    np.subtract.at(self.normal, index, 1)
    region, area = exact.regions(is_anomalous)
    np.add.at(self.pro, index, (REGION // area)[region])
    self.num_regions += area.size
    self.largest_region = max(self.largest_region, int(area.max()))

  def merge(self, other: "PixelState") -> "PixelState":
    """Return the state of the images of both, bit-identical in any order.

    Raises:
      ValueError: the states have different bits.
    """
    if self.bits != other.bits:
      raise ValueError(
        f"States of {self.bits} and of {other.bits} bits do not merge."
      )
    return PixelState(
      self.bits,
      self.anomalous + other.anomalous,
      self.normal + other.normal,
      self.pro + other.pro,
      self.num_regions + other.num_regions,
      max(self.largest_region, other.largest_region),
    )

  def curve(self) -> "BinnedCurve":
    """Return the curve from which the metrics are computed.

    Raises:
      exact.UndefinedError: there is no normal or no anomalous pixel.
    """
    return BinnedCurve.from_state(self)

  def quantile(self, fraction: float) -> float:
    """Return the lowest score of the bin that holds this quantile.

    Raises:
      ValueError: no pixel was counted, or the fraction is not in [0, 1].
    """
    total = np.cumsum(self.anomalous + self.normal)
    if not (total[-1] and 0 <= fraction <= 1):
      raise ValueError(
        f"No quantile at {fraction} of {total[-1]} pixels; it needs a fraction "
        "in [0, 1] and at least one pixel."
      )
    index = np.searchsorted(total, max(1, math.ceil(fraction * total[-1])))
    return lowest(int(index), self.bits)

  def save(self, path: str | pathlib.Path) -> None:
    """Write the bins that are not empty."""
    data = io.BytesIO()
    stored = self.to_dict()
    np.savez_compressed(data, **stored)
    files.write_bytes(pathlib.Path(path), data.getvalue())

  def to_dict(self) -> dict[str, Any]:
    """Return the bins that are not empty, for files and other processes."""
    used = np.flatnonzero(self.anomalous + self.normal)
    return dict(
      bits=self.bits,
      used=used,
      anomalous=self.anomalous[used],
      normal=self.normal[used],
      pro=self.pro[used],
      regions=(self.num_regions, self.largest_region),
    )

  @classmethod
  def from_dict(cls, stored: Mapping[str, Any]) -> "PixelState":
    """Return the state of `to_dict`."""
    state = cls.init(int(stored["bits"]))
    for name in ("anomalous", "normal", "pro"):
      getattr(state, name)[stored["used"]] = stored[name]
    state.num_regions, state.largest_region = map(int, stored["regions"])
    return state

  @classmethod
  def load(cls, path: str | pathlib.Path) -> "PixelState":
    """Read a file written by `save`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not one of these.
    """
    try:
      with np.load(path, allow_pickle=False) as stored:
        return cls.from_dict(stored)
    except FileNotFoundError:
      raise
    except Exception as error:  # NumPy and zipfile raise many types.
      raise ValueError(
        f"{path} holds no state of pixel metrics ({error}). Delete it and "
        "evaluate again."
      ) from error


def num_bins(bits: int) -> int:
  """Return the number of bins."""
  return (1 << bits) + _more(bits)


def bins(
  score: Shaped[np.ndarray, "*n"], bits: int
) -> UInt32[np.ndarray, "*n"]:
  """Return the bin of each float32 score, in the order of the scores."""
  index = _key(score, bits)
  high = np.flatnonzero(score >= 0.5)
  if high.size:
    distance = 1 - score[high]  # Exact from 1/2 to 1 (Sterbenz).
    index[high] = np.where(
      distance > 0,
      2 * _key(_HALF, bits) - _key(distance, bits),
      index[high] + np.uint32(_more(bits)),
    )
  return index


def lowest(index: int, bits: int) -> float:
  """Return the lowest score of a bin."""
  half, shift = int(_key(_HALF, bits)[0]), 32 - bits
  one = half + (1 << (bits - 9)) + _more(bits)
  if half <= index < one:
    farthest = _score(((2 * half - index + 1) << shift) - 1)
    return max(0.5, 1 - math.floor(farthest * 2**24) / 2**24)
  score = _score((index if index < half else index - _more(bits)) << shift)
  return -math.inf if math.isnan(score) else score  # Of the last bin.


def _more(bits):
  """Return the number of extra bins from 1/2 to 1: 23 octaves, not one."""
  return 22 * (1 << (bits - 9)) + 1


def _key(score, bits):
  # Negative floats order against their bits, positive ones with them.
  flip = (score.view(np.int32) >> 31).view(np.uint32) | _SIGN
  return (score.view(np.uint32) ^ flip) >> np.uint32(32 - bits)


def _score(key):
  """Return the score with these 32 ordered bits."""
  pattern = np.uint32(key) ^ (_SIGN if key >> 31 else np.uint32(2**32 - 1))
  return float(np.array(pattern).view(np.float32))


@dataclasses.dataclass(frozen=True)
class BinnedCurve:
  """Non-empty bins in descending order of scores, with sums above each.

  Attributes:
    index, p, q, r: bin, its anomalous and normal pixels, its fraction of PRO.
    tp, fp, pro: sums over the bins above.
    num_p, num_q: number of all anomalous and all normal pixels.
    weight_error: error of PRO, because weights are rounded down.
    bits: leading bits of a score that decide its bin.
  """

  index: np.ndarray
  p: np.ndarray
  q: np.ndarray
  r: np.ndarray
  tp: np.ndarray
  fp: np.ndarray
  pro: np.ndarray
  num_p: int
  num_q: int
  weight_error: float
  bits: int

  @classmethod
  def from_state(cls, state: PixelState) -> "BinnedCurve":
    """Return the curve of a state; see `PixelState.curve`."""
    index = np.flatnonzero(state.anomalous + state.normal)[::-1]
    p, q, pro = (x[index] for x in (state.anomalous, state.normal, state.pro))
    num_p, num_q = int(p.sum()), int(q.sum())
    exact.check_states(num_p, num_p + num_q, "pixels")
    before = lambda x: np.cumsum(x) - x
    total = pro.sum()
    return cls(
      index,
      p,
      q,
      pro / total,
      before(p),
      before(q),
      before(pro) / total,
      num_p,
      num_q,
      2 * state.largest_region / REGION,
      state.bits,
    )

  def points(self) -> exact.Curves:
    """Return ROC, precision over recall ("pr") and PRO, thinned for charts."""
    start = lambda x: np.append(0.0, x)
    tp, fp = self.tp + self.p, self.fp + self.q
    recall, fpr = tp / self.num_p, fp / self.num_q
    some = tp > 0
    return {
      "roc": exact.thin(start(fpr), start(recall)),
      "pr": exact.thin(recall[some], (tp / (tp + fp))[some]),
      "pro": exact.thin(start(fpr), start(self.pro + self.r)),
    }

  def auroc(self) -> Bounded:
    """Compute AUROC with each bin as a tie.

    The order inside a bin moves the area by at most half of its rectangle.
    """
    pairs = 2.0 * self.num_p * self.num_q
    value = np.sum(self.q * (2.0 * self.tp + self.p)) / pairs
    return Bounded(float(value), float(np.sum(1.0 * self.p * self.q) / pairs))

  def average_precision(self) -> Bounded:
    """Compute AP with both kinds of pixels evenly mixed within a bin.

    At worst all normal pixels of a bin come first and its anomalous ones have
    the precision of the first of them; at best these come first, as one tie.
    """
    some = self.p > 0
    p, q, tp, fp = (
      x[some].astype(float) for x in (self.p, self.q, self.tp, self.fp)
    )
    worst = p * (tp + 1) / (tp + 1 + fp + q)
    best = p * (tp + p) / (tp + p + fp)
    # The j-th of p has about j q / (p + 1) normal ones of the bin before it;
    # the sum over j is the integral from 1/2 to p + 1/2.
    slope = 1 + q / (p + 1)
    found, flagged = tp + 0.5, tp + fp + slope / 2
    growth = np.log1p(slope * p / flagged)
    even = p / slope + (found - flagged / slope) / slope * growth
    even = np.clip(even, worst, best)
    value, low, high = (math.fsum(x) / self.num_p for x in (even, worst, best))
    return Bounded(value, max(high - value, value - low))

  def f1_max(self) -> Bounded:
    """Compute the largest F1 over the ends of the bins.

    At best all anomalous pixels of a bin come first.
    """
    f1 = self._f1()
    tp = self.tp + self.p
    highest = np.max(2 * tp / (tp + self.fp + self.num_p))
    best = int(np.argmax(f1))
    return Bounded(float(f1[best]), float(highest - f1[best]))

  def f1_threshold(self) -> float:
    """Return a threshold that reaches `f1_max`: scores >= it are flagged."""
    best = int(np.argmax(self._f1()))
    return lowest(int(self.index[best]), self.bits)

  def _f1(self):
    tp = self.tp + self.p
    return 2 * tp / (tp + self.fp + self.q + self.num_p)

  def aupro(self, *, max_fpr: float = exact.MAX_FPR) -> Bounded:
    """Compute AUPRO as one trapezoid per bin.

    The bin where the curve is cut counts in full for the bound.

    Args:
      max_fpr: upper end of the integral, in (0, 1].

    Raises:
      ValueError: `max_fpr` is out of range.
    """
    if not 0.0 < max_fpr <= 1.0:
      raise ValueError(f"max_fpr must lie in (0, 1], got {max_fpr}.")
    start, width = self.fp / self.num_q, self.q / self.num_q
    end = np.minimum(start + width, max_fpr)
    inside = np.maximum(end - start, 0.0)
    part = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    area = inside * (self.pro + part * self.r / 2)
    cut = (start < max_fpr) & (start + width > max_fpr)
    error = inside * self.r * np.where(cut, 1.0, 0.5)
    bound = error.sum() / max_fpr + self.weight_error
    return Bounded(float(area.sum() / max_fpr), float(bound))
