"""Pixel metrics from integer histograms: constant memory, exact merging.

A pixel's bin is the leading bits of its float32 score in an order-preserving
form, so no range has to be known and any finite or infinite score has a bin.
From 1/2 to 1 it is that of the distance from 1: probabilities that saturate are
told apart as finely at that end as at 0. A bin counts its anomalous and its
normal pixels, and the share of every region that lies in it, all as integers:
states add up to the same bits in whatever order and number of parts the images
came.

Inside a bin the order is unknown. It can move a curve only within the bin's
rectangle, which bounds the error of every metric; `PixelState.finalize` reports
these bounds beside the values.
"""

import dataclasses
import io
import math
import pathlib

import numpy as np
from jaxtyping import Shaped, UInt32

from zsad_jax.metrics import exact
from zsad_jax.runtime import files

BITS = 21  # 12 bits of mantissa; 51 MB for three histograms.
REGION = 2**40  # What all pixels of a region weigh together, rounded down.
_SIGN = np.uint32(1 << 31)
_HALF = np.array([0.5], np.float32)


@dataclasses.dataclass(frozen=True)
class Bounded:
  """A value, and how far at most the exact one is away from it."""

  value: float
  bound: float


@dataclasses.dataclass
class PixelState:
  """Histograms of the pixels of a category.

  Attributes:
    bits: of a score that decide its bin.
    anomalous, normal: int64 (num_bins(bits),), pixels by bin.
    pro: int64 like these, weights of anomalous pixels; a region of A pixels
      gives each of them `REGION // A`.
    num_regions: of all masks.
    largest_region: pixels of the largest one.
  """

  bits: int
  anomalous: np.ndarray
  normal: np.ndarray
  pro: np.ndarray
  num_regions: int = 0
  largest_region: int = 0

  @classmethod
  def init(cls, bits: int = BITS) -> "PixelState":
    """The state of no image.

    Args:
      bits: of a score that decide its bin, 10 to 24. With 16, maps in bfloat16
        are ranked exactly.

    Raises:
      ValueError: another number of bits.
    """
    if not 10 <= bits <= 24:
      raise ValueError(f"bits must lie in 10..24, got {bits}.")
    return cls(bits, *(np.zeros(num_bins(bits), np.int64) for _ in range(3)))

  @property
  def num_anomalous(self) -> int:
    return int(self.anomalous.sum())

  @property
  def num_normal(self) -> int:
    return int(self.normal.sum())

  def update(
    self,
    gt_mask: Shaped[np.ndarray, "n h w"],
    anomaly_map: Shaped[np.ndarray, "n h w"],
  ) -> None:
    """Counts the pixels of some images.

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
    place = bins(score, self.bits)
    first = int(bins(low[None], self.bits)[0])
    counted = np.bincount(place - np.uint32(first))
    self.normal[first : first + counted.size] += counted
    is_anomalous = np.asarray(mask != 0)
    if not is_anomalous.any():
      return
    place = place[is_anomalous.ravel()].astype(np.intp)
    np.add.at(self.anomalous, place, 1)
    np.subtract.at(self.normal, place, 1)
    region, area = exact.regions(is_anomalous)
    np.add.at(self.pro, place, (REGION // area)[region])
    self.num_regions += area.size
    self.largest_region = max(self.largest_region, int(area.max()))

  def merge(self, other: "PixelState") -> "PixelState":
    """The state of the images of both: the same bits in any order.

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

  def curves(self) -> exact.Curves:
    """ROC, precision over recall ("pr") and PRO, thinned to be drawn.

    Raises:
      metrics.UndefinedError: there is no normal or no anomalous pixel.
    """
    return _Curve.of(self).drawn()

  def quantile(self, share: float) -> float:
    """The lowest score of the bin below which this share of pixels lies.

    Raises:
      ValueError: no pixel was counted, or the share is not in [0, 1].
    """
    total = np.cumsum(self.anomalous + self.normal)
    if not (total[-1] and 0 <= share <= 1):
      raise ValueError(
        f"No quantile at {share} of {total[-1]} pixels; it needs a share in "
        "[0, 1] and pixels."
      )
    place = np.searchsorted(total, max(1, math.ceil(share * total[-1])))
    return lowest(int(place), self.bits)

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the bins that are not empty."""
    data = io.BytesIO()
    np.savez_compressed(data, **self.__getstate__())
    files.write_bytes(pathlib.Path(path), data.getvalue())

  def __getstate__(self):
    """The bins that are not empty: what is written, and sent to other hosts."""
    used = np.flatnonzero(self.anomalous + self.normal)
    return dict(
      bits=self.bits,
      used=used,
      anomalous=self.anomalous[used],
      normal=self.normal[used],
      pro=self.pro[used],
      regions=(self.num_regions, self.largest_region),
    )

  def __setstate__(self, stored):
    empty = self.init(int(stored["bits"]))
    for name in ("anomalous", "normal", "pro"):
      getattr(empty, name)[stored["used"]] = stored[name]
    empty.num_regions, empty.largest_region = map(int, stored["regions"])
    vars(self).update(vars(empty))

  @classmethod
  def load(cls, path: str | pathlib.Path) -> "PixelState":
    """Reads what `save` wrote.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not one of these.
    """
    try:
      with np.load(path, allow_pickle=False) as stored:
        state = cls.__new__(cls)
        state.__setstate__(stored)
    except FileNotFoundError:
      raise
    except Exception as error:  # Whatever NumPy and zipfile make of it.
      raise ValueError(
        f"{path} holds no state of pixel metrics ({error}). Delete it and "
        "evaluate again."
      ) from error
    return state

  def finalize(self, *, max_fpr: float = exact.MAX_FPR) -> dict[str, Bounded]:
    """Computes auroc, ap, f1_max, f1_threshold and aupro.

    Args:
      max_fpr: upper end of the AUPRO integral, in (0, 1].

    Returns:
      Values with the bounds of their errors. `f1_max` is reached by flagging
      scores of at least `f1_threshold`.

    Raises:
      metrics.UndefinedError: there is no normal or no anomalous pixel.
      ValueError: `max_fpr` is out of range.
    """
    return _Curve.of(self).metrics(max_fpr)


def num_bins(bits: int) -> int:
  """How many bins there are."""
  return (1 << bits) + _more(bits)


def bins(
  score: Shaped[np.ndarray, "*n"], bits: int
) -> UInt32[np.ndarray, "*n"]:
  """The bin of each float32 score, below `num_bins`; in the scores' order."""
  place = _key(score, bits)
  high = np.flatnonzero(score >= 0.5)
  if high.size:
    distance = 1 - score[high]  # Exact where it counts, from 1/2 to 1.
    place[high] = np.where(
      distance > 0,
      2 * _key(_HALF, bits) - _key(distance, bits),
      place[high] + np.uint32(_more(bits)),
    )
  return place


def lowest(place: int, bits: int) -> float:
  """The lowest score of a bin."""
  half, shift = int(_key(_HALF, bits)[0]), 32 - bits
  one = half + (1 << (bits - 9)) + _more(bits)
  if half <= place < one:
    farthest = _score(((2 * half - place + 1) << shift) - 1)
    return max(0.5, 1 - math.floor(farthest * 2**24) / 2**24)
  score = _score((place if place < half else place - _more(bits)) << shift)
  return -math.inf if math.isnan(score) else score  # Of the last bin.


def _more(bits):
  """Bins from 1/2 to 1, 23 octaves of distances, above the octave's own."""
  return 22 * (1 << (bits - 9)) + 1


def _key(score, bits):
  # Negative floats order against their bits, positive ones with them.
  flip = (score.view(np.int32) >> 31).view(np.uint32) | _SIGN
  return (score.view(np.uint32) ^ flip) >> np.uint32(32 - bits)


def _score(key):
  """The score whose 32 ordered bits these are."""
  pattern = np.uint32(key) ^ (_SIGN if key >> 31 else np.uint32(2**32 - 1))
  return float(np.array(pattern).view(np.float32))


@dataclasses.dataclass(frozen=True)
class _Curve:
  """Bins that are not empty, from high scores to low, and sums before them.

  Attributes:
    place, p, q, r: bin, its anomalous and normal pixels, its share of PRO.
    tp, fp, pro: sums over the bins above.
    num_p, num_q: all anomalous and normal pixels.
    weight_error: of PRO, by rounding the weights down.
    bits: of a bin.
  """

  place: np.ndarray
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
  def of(cls, state):
    place = np.flatnonzero(state.anomalous + state.normal)[::-1]
    p, q, pro = (x[place] for x in (state.anomalous, state.normal, state.pro))
    num_p, num_q = int(p.sum()), int(q.sum())
    exact.check_states(num_p, num_p + num_q, "pixels")
    before = lambda x: np.cumsum(x) - x
    total = pro.sum()
    return cls(
      place,
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

  def metrics(self, max_fpr):
    if not 0.0 < max_fpr <= 1.0:
      raise ValueError(f"max_fpr must lie in (0, 1], got {max_fpr}.")
    return {
      "auroc": self.auroc(),
      "ap": self.average_precision(),
      **self.f1_max(),
      "aupro": self.aupro(max_fpr),
    }

  def drawn(self):
    start = lambda x: np.append(0.0, x)
    tp, fp = self.tp + self.p, self.fp + self.q
    recall, fpr = tp / self.num_p, fp / self.num_q
    some = tp > 0
    return {
      "roc": exact.thin(start(fpr), start(recall)),
      "pr": exact.thin(recall[some], (tp / (tp + fp))[some]),
      "pro": exact.thin(start(fpr), start(self.pro + self.r)),
    }

  def auroc(self):
    """A bin is a tie; its order moves the area by half of its rectangle."""
    pairs = 2.0 * self.num_p * self.num_q
    value = np.sum(self.q * (2.0 * self.tp + self.p)) / pairs
    return Bounded(float(value), float(np.sum(1.0 * self.p * self.q) / pairs))

  def average_precision(self):
    """Both kinds evenly mixed within a bin.

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

  def f1_max(self):
    """Reached at the end of a bin; at best all anomalous pixels come first."""
    tp = self.tp + self.p
    f1 = 2 * tp / (tp + self.fp + self.q + self.num_p)
    highest = np.max(2 * tp / (tp + self.fp + self.num_p))
    best = int(np.argmax(f1))
    threshold = lowest(int(self.place[best]), self.bits)
    return {
      "f1_max": Bounded(float(f1[best]), float(highest - f1[best])),
      "f1_threshold": Bounded(threshold, 0.0),
    }

  def aupro(self, max_fpr):
    """A trapezoid per bin; the bin where the curve is cut counts in full."""
    start, width = self.fp / self.num_q, self.q / self.num_q
    end = np.minimum(start + width, max_fpr)
    inside = np.maximum(end - start, 0.0)
    share = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    area = inside * (self.pro + share * self.r / 2)
    cut = (start < max_fpr) & (start + width > max_fpr)
    error = inside * self.r * np.where(cut, 1.0, 0.5)
    bound = error.sum() / max_fpr + self.weight_error
    return Bounded(float(area.sum() / max_fpr), float(bound))
