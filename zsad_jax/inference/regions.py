"""Connected regions of anomalous pixels, and their run lengths."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

LIMIT = 1000  # Regions that are described of an image, see `find`.
_NEIGHBORS = np.ones((3, 3), int)  # Diagonal neighbors are connected.
_BLOCK = 1 << 20  # Pixels that are measured at once, to save memory.


class Region(NamedTuple):
  """A connected region of anomalous pixels.

  Attributes:
    box: left, top, width and height in pixels; the smallest rectangle.
    area: number of pixels.
    peak: largest value of the anomaly map in the region.
    mean: mean of the anomaly map over the region.
  """

  box: tuple[int, int, int, int]
  area: int
  peak: float
  mean: float


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """Regions of an image.

  Attributes:
    count: number of all regions.
    largest_area: pixels of the largest region; 0 without one.
    regions: the regions by decreasing peak, at most as many as were asked for.
    labels: number of the region of each pixel, see `label`.
    numbers: numbers of `regions` in `labels`.
  """

  count: int
  largest_area: int
  regions: tuple[Region, ...]
  labels: Int[np.ndarray, "h w"] = dataclasses.field(repr=False)
  numbers: tuple[int, ...] = dataclasses.field(repr=False)

  def run_lengths(self) -> list[list[int]]:
    """Return the run-length encoding of each of `regions`.

    Pixels are counted column by column. Lengths of runs outside and inside of
    the region alternate; the first, which may be 0, is outside (uncompressed
    RLE of COCO).
    """
    flat = self.labels.ravel(order="F")
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate([[0], starts])
    values = flat[starts]
    lengths = np.diff(starts, append=flat.size)
    wanted = np.flatnonzero(np.isin(values, self.numbers))
    order = wanted[np.argsort(values[wanted], kind="stable")]
    values, starts, lengths = (x[order] for x in (values, starts, lengths))
    first = np.searchsorted(values, self.numbers, "left")
    last = np.searchsorted(values, self.numbers, "right")
    return [
      _alternating(starts[a:b], lengths[a:b], flat.size)
      for a, b in zip(first, last)
    ]


def _alternating(starts, lengths, size) -> list[int]:
  """Return the lengths of runs outside and inside, from those inside."""
  ends = starts + lengths
  counts = np.empty(2 * len(starts), np.int64)
  counts[0::2] = starts - np.concatenate([[0], ends[:-1]])
  counts[1::2] = lengths
  rest = size - int(ends[-1])
  return counts.tolist() + [rest] * (rest > 0)


def label(
  mask: Bool[np.ndarray, "h w"],
) -> tuple[Int[np.ndarray, "h w"], int]:
  """Number the 8-connected regions of a mask from 1; 0 is normal."""
  labels, count = ndimage.label(mask, _NEIGHBORS)  # pyright: ignore[reportGeneralTypeIssues]
  return labels, count


def find(
  anomaly_map: Float[np.ndarray, "h w"],
  mask: Bool[np.ndarray, "h w"],
  *,
  limit: int = LIMIT,
) -> Found:
  """Find the 8-connected regions of a mask.

  A region may be a single pixel. In a noisy map there can be millions: all are
  counted, and those with the largest peaks are described.

  Args:
    anomaly_map: higher is more anomalous.
    mask: the anomalous pixels.
    limit: largest number of regions that are described.
  """
  labels, count = label(mask)
  measured = _measure(anomaly_map, labels, count)
  # Of equal peaks, the region that comes first in the image.
  order = np.argsort(-measured.peak, kind="stable")[:limit]
  return Found(
    count=count,
    largest_area=int(measured.area.max(initial=0)),
    regions=tuple(measured.region(i) for i in order.tolist()),
    labels=labels,
    numbers=tuple((order + 1).tolist()),
  )


class _Measured(NamedTuple):
  """Measures of regions, each of shape (regions,)."""

  area: np.ndarray
  total: np.ndarray
  peak: np.ndarray
  top: np.ndarray
  bottom: np.ndarray
  left: np.ndarray
  right: np.ndarray

  def region(self, i: int) -> Region:
    """Return one region."""
    left, top = int(self.left[i]), int(self.top[i])
    width, height = int(self.right[i]) + 1 - left, int(self.bottom[i]) + 1 - top
    return Region(
      box=(left, top, width, height),
      area=int(self.area[i]),
      peak=float(self.peak[i]),
      mean=float(self.total[i] / self.area[i]),
    )


def _measure(anomaly_map, labels, count) -> _Measured:
  """Measure all regions in time that does not depend on their shapes."""
  found = _Measured(
    area=np.zeros(count, np.int64),
    total=np.zeros(count),
    peak=np.full(count, -np.inf),
    top=np.full(count, labels.shape[0]),
    bottom=np.full(count, -1),
    left=np.full(count, labels.shape[1]),
    right=np.full(count, -1),
  )
  step = max(1, _BLOCK // labels.shape[1])
  for first in range(0, len(labels), step):
    part = labels[first : first + step]
    rows, columns = np.nonzero(part)
    numbers = part[rows, columns].astype(np.intp) - 1
    values = anomaly_map[first : first + step][rows, columns].astype(float)
    rows += first
    np.add.at(found.area, numbers, 1)
    np.add.at(found.total, numbers, values)
    np.maximum.at(found.peak, numbers, values)
    np.minimum.at(found.top, numbers, rows)
    np.maximum.at(found.bottom, numbers, rows)
    np.minimum.at(found.left, numbers, columns)
    np.maximum.at(found.right, numbers, columns)
  return found
