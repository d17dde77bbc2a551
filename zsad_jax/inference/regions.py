"""Connected regions of anomalous pixels."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

_NEIGHBORS = np.ones((3, 3), int)  # Diagonal neighbors are connected.


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


def label(
  mask: Bool[np.ndarray, "h w"],
) -> tuple[Int[np.ndarray, "h w"], int]:
  """Number the 8-connected regions of a mask from 1; 0 is normal."""
  labels, count = ndimage.label(mask, _NEIGHBORS)  # pyright: ignore[reportGeneralTypeIssues]
  return labels, count


def find(
  anomaly_map: Float[np.ndarray, "h w"], labels: Int[np.ndarray, "h w"]
) -> list[Region]:
  """Return the regions in the order of their numbers; see `label`."""
  found = []
  for number, part in enumerate(ndimage.find_objects(labels), 1):
    rows, columns = part
    values = anomaly_map[part][labels[part] == number].astype(np.float64)
    width, height = columns.stop - columns.start, rows.stop - rows.start
    found.append(
      Region(
        box=(columns.start, rows.start, width, height),
        area=len(values),
        peak=float(values.max()),
        mean=float(values.mean()),
      )
    )
  return found
