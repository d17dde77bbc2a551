"""Plane geometry on arrays: signed distances and tilings.

Functions take coordinates `x, y` of one shape, float32 (n, n), in units in
which the image spans about [-1, 1], y pointing down. A signed distance is
negative inside and positive outside, in the same units.
"""

import numpy as np

Array = np.ndarray
Number = float | int
Rng = np.random.Generator

TABLE = 64  # Random tables repeat after this many cells; a image has fewer.


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.sqrt(x * x + y * y)  # Several times faster than np.hypot.


def _wrapped(t: np.ndarray, period: Number) -> np.ndarray:
  """Map into [-period / 2, period / 2); several times faster than np.mod."""
  return t - period * np.floor(t * (1 / period) + 0.5)


def circle(x: np.ndarray, y: np.ndarray, radius: Number) -> np.ndarray:
  """Return the signed distance of a circle."""
  return _length(x, y) - radius


def ring(
  x: np.ndarray, y: np.ndarray, radius: Number, width: Number
) -> np.ndarray:
  """Return the signed distance of a ring whose middle line has `radius`."""
  return np.abs(_length(x, y) - radius) - width / 2


def box(
  x: np.ndarray,
  y: np.ndarray,
  half_width: Number,
  half_height: Number,
  corner: Number = 0.0,
) -> np.ndarray:
  """Return the signed distance of a rectangle with rounded corners."""
  qx = np.abs(x) - (half_width - corner)
  qy = np.abs(y) - (half_height - corner)
  outside = _length(np.maximum(qx, 0), np.maximum(qy, 0))
  return outside + np.minimum(np.maximum(qx, qy), 0) - corner


def polygon(
  x: np.ndarray, y: np.ndarray, sides: int, radius: Number
) -> np.ndarray:
  """Return a distance bound of a regular polygon of this inscribed radius."""
  step = 2 * np.pi / sides
  angle = _wrapped(np.arctan2(y, x), step)
  return _length(x, y) * np.cos(angle) - radius


def turned(
  x: np.ndarray, y: np.ndarray, angle: Number
) -> tuple[np.ndarray, np.ndarray]:
  """Return the coordinates on axes rotated by `angle` (radians)."""
  cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
  return cos * x + sin * y, cos * y - sin * x


def smoothstep(t: np.ndarray) -> np.ndarray:
  """Map [0, 1] smoothly onto [0, 1] with flat ends; clip outside."""
  t = np.clip(t, 0, 1)
  return t * t * (3 - 2 * t)


def sawtooth(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Split into the integer cell and the offset from its middle (-.5, .5)."""
  cell = np.floor(t)
  return cell, t - cell - np.float32(0.5)


def arch(t: np.ndarray) -> np.ndarray:
  """Return the profile of a round thread: 1 at the middle, 0 at +-0.5."""
  return np.maximum(1 - 4 * t * t, 0)


def hashed(i: np.ndarray, j: np.ndarray) -> np.ndarray:
  """Return an integer key in [0, TABLE^2) of a cell, for random tables."""
  i, j = np.asarray(i).astype(np.intp), np.asarray(j).astype(np.intp)
  return (i * 7 + j * 37 + (i * j & 15) * 101) & (TABLE * TABLE - 1)


def pebbles(
  x: np.ndarray, y: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return the Voronoi cells of one random point per unit square.

  Args:
    x: coordinates, float32 (n, n).
    y: likewise.
    rng: random numbers of the points.

  Returns:
    nearest: distance to the cell's point, float32 (n, n).
    gap: how much farther the second nearest point is; 0 on a border.
    key: integers (n, n) in [0, TABLE^2), constant in a cell.
  """
  # Points keep a distance from their square's border, so that the nearest ones
  # are in the four squares around a position.
  points = 0.2 + 0.6 * rng.random((2, TABLE * TABLE), dtype=np.float32)
  left, top = np.floor(x - 0.5), np.floor(y - 0.5)
  fx, fy = x - left, y - top
  left, top = left.astype(np.intp), top.astype(np.intp)
  nearest = np.full(x.shape, np.inf, np.float32)
  second, key = nearest.copy(), np.zeros(x.shape, np.intp)
  for dy in (0, 1):
    row = ((top + dy) & (TABLE - 1)) * TABLE
    for dx in (0, 1):
      k = row + ((left + dx) & (TABLE - 1))
      px, py = points[0].take(k) + (dx - fx), points[1].take(k) + (dy - fy)
      squared = px * px + py * py
      second = np.minimum(second, np.maximum(squared, nearest))
      key = np.where(squared < nearest, k, key)
      nearest = np.minimum(nearest, squared)
  nearest = np.sqrt(nearest)
  return nearest, np.sqrt(second) - nearest, key


def hexagons(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return a honeycomb of hexagons one unit wide.

  Args:
    x: coordinates, float32 (n, n).
    y: likewise.

  Returns:
    edge: signed distance to the cell's outline, float32, <= 0.
    key: integers in [0, TABLE^2), constant in a cell.
  """
  tall = float(np.sqrt(3))
  ax, ay = _wrapped(x, 1), _wrapped(y, tall)
  bx, by = _wrapped(x - 0.5, 1), _wrapped(y - tall / 2, tall)
  first = ax * ax + ay * ay < bx * bx + by * by
  lx, ly = np.where(first, ax, bx), np.where(first, ay, by)
  key = hashed(np.rint(2 * (x - lx)), np.rint(2 * (y - ly) / tall))
  lx, ly = np.abs(lx), np.abs(ly)
  return np.maximum(lx, 0.5 * lx + tall / 2 * ly) - 0.5, key
