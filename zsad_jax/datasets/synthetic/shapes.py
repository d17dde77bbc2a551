"""Plane geometry on arrays: signed distances and tilings, nothing drawn.

Every function takes coordinates `x, y` of one shape, float32 (n, n), in units
where the picture spans about [-1, 1], y pointing down. A signed distance is
negative inside and positive outside, in the same units.
"""

import numpy as np

TABLE = 64  # Random tables repeat after this many cells; a picture has fewer.


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  return np.sqrt(x * x + y * y)  # Several times faster than np.hypot.


def _wrapped(t: np.ndarray, period: Number) -> np.ndarray:
  """Moves into [-period / 2, period / 2); several times faster than np.mod."""
  return t - period * np.floor(t * (1 / period) + 0.5)


def circle(x: np.ndarray, y: np.ndarray, radius: Number) -> np.ndarray:
  return _length(x, y) - radius


def ring(x: np.ndarray, y: np.ndarray, radius: Number, width: Number) -> np.ndarray:
  """Signed distance of a ring whose middle line has `radius`."""
  return np.abs(_length(x, y) - radius) - width / 2


def box(x: np.ndarray, y: np.ndarray, half_width: Number, half_height: Number, corner: Number=0.0) -> np.ndarray:
  """Signed distance of a rectangle with rounded corners."""
  qx = np.abs(x) - (half_width - corner)
  qy = np.abs(y) - (half_height - corner)
  outside = _length(np.maximum(qx, 0), np.maximum(qy, 0))
  return outside + np.minimum(np.maximum(qx, qy), 0) - corner


def polygon(x: np.ndarray, y: np.ndarray, sides: int, radius: Number) -> np.ndarray:
  """Distance bound of a regular polygon whose inscribed circle has `radius`."""
  step = 2 * np.pi / sides
  angle = _wrapped(np.arctan2(y, x), step)
  return _length(x, y) * np.cos(angle) - radius


def turned(x: np.ndarray, y: np.ndarray, angle: Number) -> tuple[np.ndarray, np.ndarray]:
  """Returns the coordinates seen from axes turned by `angle` (radians)."""
  cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
  return cos * x + sin * y, cos * y - sin * x


def smoothstep(t: np.ndarray) -> np.ndarray:
  """Maps 0..1 onto 0..1 with flat ends; clips outside."""
  t = np.clip(t, 0, 1)
  return t * t * (3 - 2 * t)


def sawtooth(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Splits into the integer cell and the offset from its middle (-.5, .5)."""
  cell = np.floor(t)
  return cell, t - cell - np.float32(0.5)


def arch(t: np.ndarray) -> np.ndarray:
  """Cross-section of a round thread: 1 at the middle, 0 at offset +-0.5."""
  return np.maximum(1 - 4 * t * t, 0)


def hashed(i: np.ndarray, j: np.ndarray) -> np.ndarray:
  """Integer key in [0, TABLE^2) of a cell, to look up its random values."""
  i, j = np.asarray(i).astype(np.intp), np.asarray(j).astype(np.intp)
  return (i * 7 + j * 37 + (i * j & 15) * 101) & (TABLE * TABLE - 1)


def pebbles(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Voronoi cells of one random point per unit square.

  Returns:
    nearest: distance to the cell's point, float32 (n, n).
    gap: how much farther the second nearest point is; 0 on a border.
    key: integers (n, n) in [0, TABLE^2), the same all over a cell.
  """
  # Points keep off their square's border, so that the four squares around a
  # place are enough to look at.
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
  """Honeycomb of hexagons one unit wide.

  Returns:
    edge: signed distance to the cell's outline, float32, <= 0.
    key: integers in [0, TABLE^2), the same all over a cell.
  """
  tall = float(np.sqrt(3))
  ax, ay = _wrapped(x, 1), _wrapped(y, tall)
  bx, by = _wrapped(x - 0.5, 1), _wrapped(y - tall / 2, tall)
  first = ax * ax + ay * ay < bx * bx + by * by
  lx, ly = np.where(first, ax, bx), np.where(first, ay, by)
  key = hashed(np.rint(2 * (x - lx)), np.rint(2 * (y - ly) / tall))
  lx, ly = np.abs(lx), np.abs(ly)
  return np.maximum(lx, 0.5 * lx + tall / 2 * ly) - 0.5, key
