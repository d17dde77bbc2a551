"""Overlapping tiles of large images, and the anomaly map merged from theirs.

The grid lies on the pixels of the merged map, whose scale is that of a tile at
the size of the model. Tiles have whole positions there, so that their maps are
merged without interpolation, as a weighted mean.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from absl import flags
from jaxtyping import Float, Float32

_LARGEST_OVERLAP = 0.9
_DEFAULT_OVERLAP = 0.25


@dataclasses.dataclass(frozen=True)
class Tiling:
  """Size and overlap of tiles.

  Attributes:
    size: side in pixels of the image; an image that is smaller along an axis
      has one tile along it.
    overlap: share of a tile that its neighbor covers, at least, in [0, 0.9].

  Raises:
    ValueError: a value is out of range.
  """

  size: int
  overlap: float = _DEFAULT_OVERLAP

  def __post_init__(self) -> None:
    if self.size < 1:
      raise ValueError(
        f"The size of tiles is {self.size}; expected a positive number of "
        "pixels."
      )
    if not 0 <= self.overlap <= _LARGEST_OVERLAP:
      raise ValueError(
        f"The overlap of tiles is {self.overlap:g}; expected a share in "
        f"[0, {_LARGEST_OVERLAP}]."
      )

  @classmethod
  def of(
    cls, size: int | None, overlap: float = _DEFAULT_OVERLAP
  ) -> "Tiling | None":
    """Return the tiling of a size in pixels; None for whole images."""
    return None if size is None else cls(size, overlap)

  def describe(self) -> str:
    """Return the tiling as text."""
    return f"tiles of {self.size} px, overlap {self.overlap:g}"

  @property
  def label(self) -> str:
    """Short text for names of folders, such as "tile512"."""
    suffix = f"_overlap{self.overlap:g}" * (self.overlap != _DEFAULT_OVERLAP)
    return f"tile{self.size}{suffix}"

  def grid(self, image_size: tuple[int, int], side: int) -> "Grid":
    """Return the tiles of an image.

    Args:
      image_size: height and width of the image in pixels.
      side: height and width of a tile's map, the size of the model.
    """
    return Grid(
      side,
      self.overlap,
      tuple(self._axis(length, side) for length in image_size),
    )

  def _axis(self, length: int, side: int) -> "Axis":
    """Return the positions of tiles along an axis of the image."""
    cells = max(side, round(length * side / min(self.size, length)))
    # A whole number: offsets, which are rounded, are at most this far apart.
    step = max(1, math.floor(round(side * (1 - self.overlap), 6)))
    count = 1 + math.ceil((cells - side) / step)
    offsets = np.rint(np.linspace(0, cells - side, count)).astype(int)
    return Axis(length, cells, tuple(offsets.tolist()))


class Axis(NamedTuple):
  """Tiles along one axis.

  Attributes:
    length: pixels of the image.
    cells: pixels of the merged map.
    offsets: first pixels of the tiles in the merged map.
  """

  length: int
  cells: int
  offsets: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Grid:
  """Tiles of one image, numbered row by row.

  Attributes:
    side: height and width of a tile's map.
    overlap: see `Tiling`.
    axes: the tiles along height and width.
  """

  side: int
  overlap: float
  axes: tuple[Axis, ...]

  @property
  def shape(self) -> tuple[int, int]:
    """Height and width of the merged map."""
    rows, columns = self.axes
    return rows.cells, columns.cells

  def __len__(self) -> int:
    rows, columns = self.axes
    return len(rows.offsets) * len(columns.offsets)

  def box(self, number: int) -> tuple[float, float, float, float]:
    """Return left, upper, right and lower border in pixels of the image.

    Borders are fractions of pixels where the scale is no whole number.
    """
    (top, bottom), (left, right) = (
      (offset * axis.length / axis.cells, end * axis.length / axis.cells)
      for axis, offset in zip(self.axes, self._offsets(number))
      for end in [offset + self.side]
    )
    return left, top, right, bottom

  def _offsets(self, number: int) -> tuple[int, int]:
    rows, columns = self.axes
    row, column = divmod(number, len(columns.offsets))
    return rows.offsets[row], columns.offsets[column]


def define_flags(refused: str = "") -> None:
  """Define the flags --tile and --tile_overlap; see `from_flags`.

  Args:
    refused: help of a command whose error names alternatives to tiles.
  """
  flags.DEFINE_integer(
    "tile",
    None,
    refused
    or "Side of tiles in pixels of the images, for large images with small "
    "defects: each tile is resized to the size of the model, and the maps of "
    "the tiles are merged. Default: the whole image is resized.",
    lower_bound=1,
  )
  flags.DEFINE_float(
    "tile_overlap",
    _DEFAULT_OVERLAP,
    refused or "Share of a tile that the next one covers, at least.",
    lower_bound=0,
    upper_bound=_LARGEST_OVERLAP,
  )


def from_flags(options: flags.FlagValues) -> Tiling | None:
  """Return the tiling of the flags of `define_flags`; None without --tile.

  Raises:
    ValueError: there is an overlap without a size, or a value is out of range.
  """
  if options.tile is not None:
    return Tiling(options.tile, options.tile_overlap)
  if options["tile_overlap"].present:
    raise ValueError("--tile_overlap is that of tiles: give --tile, too.")
  return None


class MapMerger:
  """Weighted mean of the maps of tiles, which are added one by one.

  The weight of a tile decreases linearly to its borders over the overlap, so
  that the merged map has no seams. The weights of a pixel sum to 1.

  Args:
    grid: the tiles.
  """

  def __init__(self, grid: Grid) -> None:
    self._grid = grid
    self._map = np.zeros(grid.shape, np.float32)
    self._window = _window(grid.side, grid.overlap)
    self._sums = [_sum_of_windows(axis, self._window) for axis in grid.axes]
    self._missing = set(range(len(grid)))

  def add(self, number: int, anomaly_map: Float[np.ndarray, "s s"]) -> None:
    """Add the map of a tile, once."""
    self._missing.remove(number)
    side, offsets = self._grid.side, self._grid._offsets(number)
    parts = tuple(slice(offset, offset + side) for offset in offsets)
    rows, columns = (
      self._window / total[part] for total, part in zip(self._sums, parts)
    )
    self._map[parts] += anomaly_map * (rows[:, None] * columns)

  @property
  def complete(self) -> bool:
    """Whether the maps of all tiles were added."""
    return not self._missing

  def result(self) -> Float32[np.ndarray, "m n"]:
    """Return the merged map.

    Raises:
      ValueError: a tile is missing.
    """
    if self._missing:
      raise ValueError(f"The map of tile {min(self._missing)} is missing.")
    return self._map


def _window(side: int, overlap: float) -> np.ndarray:
  """Return weights (side,) along an axis, the largest of which is 1."""
  at = np.arange(side) + 0.5
  ramp = max(1.0, overlap * side)
  return np.minimum(1.0, np.minimum(at, side - at) / ramp)


def _sum_of_windows(axis: Axis, window: np.ndarray) -> np.ndarray:
  """Return the sum of the weights of all tiles along an axis."""
  total = np.zeros(axis.cells)
  for offset in axis.offsets:
    total[offset : offset + len(window)] += window
  return total
