"""Overlay anomalies, added to a finished image, drawn or photographed.

An overlay is a function `(image, region, rng) -> image`: float32 (h, w, 3) in
about [0, 1], float32 (h, w) in [0, 1] (where the object is), random numbers.
It changes no pixel outside the region. Lengths are in units of 1/112 of the
image's shorter side, so an anomaly looks the same at any size. `apply` adds the
mask, which is measured: it contains the pixels that changed visibly.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from zsad_jax.datasets.synthetic import shapes
from zsad_jax.datasets.synthetic.shapes import Array, Number, Rng

Overlay = Callable[[Array, Array, Rng], Array]
# Points (k, 2), and the widths at both ends.
Stroke = tuple[Sequence[Array] | Array, tuple[float, float]]

UNIT = 1 / 112
VISIBLE = 0.035  # Smallest change of a channel that counts as visible.
MIN_SHARE = 0.0013  # Of the image: about 16 pixels at 112.
MAX_SHARE = 0.33
ATTEMPTS = 20
PEN_SCALE = 4  # Strokes are drawn this much larger, then averaged.


class Sheet:
  """Geometry of one image: position of the anomaly, and shapes around it.

  Attributes:
    x, y: float32 (h, w), coordinates from the position, y down, in units.
    unit: length of a unit in pixels.
    tone: mean colour around the position, float32 (3,).
  """

  def __init__(self, image: Array, region: Array, rng: Rng) -> None:
    self.shape = image.shape[:2]
    self.unit = min(self.shape) * UNIT
    self.rng = rng
    self.row, self.col = self._place(region)
    rows, cols = np.indices(self.shape, dtype=np.float32)
    self.x = np.asarray((cols - self.col) / np.float32(self.unit))
    self.y = np.asarray((rows - self.row) / np.float32(self.unit))
    near = region * (self.x**2 + self.y**2 < 12**2)
    self.tone = (
      (image * near[..., None]).sum((0, 1)) / max(near.sum(), 1)
    ).astype(np.float32)

  def _place(self, region: Array) -> tuple[int, int]:
    """Return row and column of a point well inside the region."""
    inside = np.pad(region > 0.5, 1)
    depth = np.asarray(ndimage.distance_transform_edt(inside))[1:-1, 1:-1]
    rows, cols = np.nonzero(depth >= min(9 * self.unit, 0.5 * depth.max()))
    i = int(self.rng.random() * len(rows))
    return int(rows[i]), int(cols[i])

  def noise(self, grain: Number) -> Array:
    """Return smooth noise in about [-1, 1], (h, w), of `grain` units."""
    cells = [int(v / self.unit / grain) + 2 for v in self.shape]
    grid = Image.fromarray(self.rng.uniform(-1, 1, cells).astype(np.float32))
    return np.asarray(grid.resize(self.shape[::-1], Image.Resampling.BICUBIC))

  def blob(
    self,
    radius: Number,
    rough: Number = 0.25,
    aside: Sequence[float] | Array = (0.0, 0.0),
  ) -> Array:
    """Return the approximate signed distance of an irregular round patch."""
    stretch, angle = self.rng.uniform(0.7, 1), self.rng.uniform(0, np.pi)
    x, y = shapes.turned(self.x - aside[0], self.y - aside[1], angle)
    x, y = x * stretch, y / stretch
    around = np.arctan2(y, x)
    edge = 1.0
    for waves in (2, 3, 5, 8):
      phase = self.rng.uniform(0, 2 * np.pi)
      edge = edge + rough / waves * np.sin(waves * around + phase)
    return np.sqrt(x * x + y * y) - radius * edge

  def cover(self, sdf: Array, soft: Number = 0.0) -> Array:
    """Return the coverage of each pixel; the edge is `soft` units wide."""
    return np.clip(0.5 - sdf / max(1 / self.unit, soft), 0, 1)

  def strokes(self, paths: Sequence[Stroke]) -> Array:
    """Draw lines: coverage float32 (h, w) in [0, 1].

    Args:
      paths: pairs of points (k, 2), x and y in units from the position, and
        the widths at both ends in units.
    """
    large = [PEN_SCALE * v for v in self.shape[::-1]]
    image = Image.new("L", large)
    pen = ImageDraw.Draw(image)
    for points, (first, last) in paths:
      place = np.asarray(points) * self.unit + [self.col + 0.5, self.row + 0.5]
      place = place * PEN_SCALE
      widths = np.linspace(first, last, len(place) - 1)
      widths = widths * self.unit * PEN_SCALE
      for start, end, width in zip(place, place[1:], widths):
        pen.line([*start, *end], fill=255, width=max(2, round(width)))
    return np.asarray(image.reduce(PEN_SCALE), np.float32) / 255

  def bend(self, length: Number, curl: Number, step: Number = 1.5) -> Array:
    """Return points (k, 2) of a smooth line through the position, in units."""
    count = max(3, int(length / step))
    turns = np.convolve(
      self.rng.normal(0, curl, count + 6), np.ones(7) / 2.6, "valid"
    )
    heading = self.rng.uniform(0, 2 * np.pi) + np.cumsum(turns)
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0)
    return (points - points[count // 2]) * step


def _relief(height: Array) -> Array:
  """Return the shading of a relief (h, w) lit from the upper left."""
  gy, gx = np.gradient(height)
  return (gx + gy)[..., None]


def _mixed(image: Array, color: Array | np.float32, share: Array) -> Array:
  return image + (color - image) * share[..., None]


def _shifted(cover: Array, sheet: Sheet, far: Number) -> Array:
  """Return the shadow to the lower right, `far` units away."""
  return ndimage.shift(cover, far * sheet.unit, order=1)


def scratch(image: Array, region: Array, rng: Rng) -> Array:
  """Draw one to four nearly parallel grooves, lighter or darker than around."""
  sheet = Sheet(image, region, rng)
  main = sheet.bend(rng.uniform(22, 60), 0.03)
  paths = []
  for _ in range(rng.integers(1, 5)):
    first = int(rng.integers(0, max(1, len(main) // 3)))
    aside = rng.uniform(-3.5, 3.5, 2) if paths else np.zeros(2)
    last = len(main) - int(rng.integers(0, len(main) // 3))
    width = rng.uniform(0.6, 1.5)
    paths.append((main[first:last] + aside, (width, 0.5 * width)))
  groove = sheet.strokes(paths) * rng.uniform(0.45, 0.95)
  light = sheet.tone.mean() < rng.uniform(0.45, 0.75)
  color = np.float32(0.92) if light else sheet.tone * np.float32(0.35)
  return _mixed(image, color, groove) + 0.15 * _relief(groove)


def crack(image: Array, region: Array, rng: Rng) -> Array:
  """Draw a jagged dark line that branches and thins out."""
  sheet = Sheet(image, region, rng)
  width = rng.uniform(0.9, 2.0)
  paths = []

  def grow(start: Array, heading: Number, length: Number, width: float) -> None:
    points = [start]
    for _ in range(max(3, int(length / 2.5))):
      turn = heading + rng.normal(0, 0.5)
      step = 2.5 * np.array([np.cos(turn), np.sin(turn)])
      points.append(points[-1] + step)
      if rng.random() < 0.1 and width > 0.6:
        fork = heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        grow(points[-1], fork, 0.5 * length, 0.6 * width)
    paths.append((points, (width, 0.35 * width)))

  heading = rng.uniform(0, 2 * np.pi)
  for side in (0, np.pi):
    grow(np.zeros(2), heading + side, rng.uniform(10, 32), width)
  gap = sheet.strokes(paths) * rng.uniform(0.7, 1)
  return _mixed(image, sheet.tone * 0.18, gap) + 0.12 * _relief(gap)


def hole(image: Array, region: Array, rng: Rng) -> Array:
  """Draw a dark pit with a lit wall and a frayed rim."""
  sheet = Sheet(image, region, rng)
  edge = sheet.blob(rng.uniform(2.8, 8), 0.3) + 0.5 * sheet.noise(2)
  deep = sheet.cover(edge, 1.2)
  wall = np.clip(1.5 + edge / 4, 0, 1) * np.clip(
    0.35 + (sheet.x + sheet.y) / 14, 0, 1
  )
  dark = sheet.tone * (0.12 + 0.45 * wall[..., None])
  rim = np.exp(-(((edge - 0.7) / 0.9) ** 2)) * rng.uniform(0.05, 0.2)
  light = np.sign(sheet.x + sheet.y)
  return _mixed(image, dark, deep) + (rim * light * (1 - deep))[..., None]


def stain(image: Array, region: Array, rng: Rng) -> Array:
  """Draw a dried spill, a tint that is darkest along its border."""
  sheet = Sheet(image, region, rng)
  liquids = np.asarray(
    [(0.5, 0.34, 0.2), (0.3, 0.3, 0.34), (0.62, 0.4, 0.3), (0.4, 0.45, 0.3)],
    np.float32,
  )
  tint = liquids[rng.integers(len(liquids))]
  edge = sheet.blob(rng.uniform(7, 18), 0.35) + 1.6 * sheet.noise(6)
  inside = sheet.cover(edge, 3)
  border = np.exp(-(((edge + 1.2) / 1.3) ** 2))
  share = (
    rng.uniform(0.3, 0.75)
    * inside
    * (0.7 + 0.15 * sheet.noise(5) + 0.35 * border)
  )
  return image * (1 - share[..., None] * (1 - tint))


def contamination(image: Array, region: Array, rng: Rng) -> Array:
  """Draw foreign matter on top: a fibre or crumbs, with a shadow."""
  sheet = Sheet(image, region, rng)
  colors = np.asarray(
    [
      (0.75, 0.15, 0.15),
      (0.15, 0.3, 0.65),
      (0.1, 0.1, 0.1),
      (0.9, 0.88, 0.82),
      (0.3, 0.5, 0.2),
      (0.5, 0.35, 0.2),
    ],
    np.float32,
  )
  # A colour close to the ground's would hide it; the farther half is used.
  far = np.argsort(np.abs(colors - sheet.tone).sum(1))[len(colors) // 2 :]
  color = colors[rng.choice(far)] * np.float32(rng.uniform(0.85, 1.1))
  if rng.random() < 0.5:
    width = rng.uniform(0.9, 1.9)
    body = sheet.strokes(
      [(sheet.bend(rng.uniform(25, 60), 0.22), (width, width))]
    )
  else:
    body = np.zeros(sheet.shape, np.float32)
    for _ in range(rng.integers(1, 8)):
      aside = rng.normal(0, 6, 2).astype(np.float32)
      crumb = sheet.blob(rng.uniform(1.2, 3.8), 0.5, aside)
      body = np.maximum(body, sheet.cover(crumb))
  shaded = image * (1 - 0.45 * _shifted(body, sheet, 1.1))[..., None]
  bulge = ndimage.gaussian_filter(body, 0.8 * sheet.unit) * sheet.unit
  return _mixed(shaded, color + 0.5 * _relief(bulge), body)


def dent(image: Array, region: Array, rng: Rng) -> Array:
  """Press the surface in: its texture shifts, and one side is darker."""
  sheet = Sheet(image, region, rng)
  radius = rng.uniform(6, 13)
  edge = sheet.blob(0, 0) / radius
  bowl = np.exp(-(edge**2) * 1.4) * (edge < 1.8)
  pull = rng.uniform(0.2, 0.45) * bowl
  rows, cols = np.indices(sheet.shape, dtype=np.float32)
  pull = pull * sheet.unit
  place = [rows + pull * sheet.y, cols + pull * sheet.x]
  moved = np.stack(
    [
      ndimage.map_coordinates(image[..., c], place, order=1, mode="nearest")
      for c in range(3)
    ],
    axis=-1,
  )
  slope = (sheet.x + sheet.y) / radius * bowl * rng.uniform(0.3, 0.65)
  image = np.where(bowl[..., None] > 0, moved, image)
  return image * (1 + slope)[..., None]


def discoloration(image: Array, region: Array, rng: Rng) -> Array:
  """Draw a patch of another tone: rusty, bleached, scorched or off-colour."""
  sheet = Sheet(image, region, rng)
  edge = sheet.blob(rng.uniform(8, 19), 0.35) + 2.5 * sheet.noise(7)
  mottle = np.clip(0.85 + 0.35 * sheet.noise(3), 0, 1)
  share = rng.uniform(0.4, 0.85) * sheet.cover(edge, 5) * mottle
  gray = image.mean(axis=-1, keepdims=True)
  tones = (
    gray * np.asarray([1.15, 0.66, 0.36], np.float32),
    0.35 + 0.6 * gray,
    gray * np.asarray([0.5, 0.42, 0.38], np.float32),
    image[..., [1, 2, 0]],
  )
  # A change of hue shows on colours only, scorching on what is not dark.
  visible = (
    0,
    3 if np.ptp(sheet.tone) > 0.12 else 0,
    2 if sheet.tone.mean() > 0.4 else 1,
  )
  return _mixed(image, tones[visible[rng.integers(3)]], share)


def glue(image: Array, region: Array, rng: Rng) -> Array:
  """Draw a clear glossy drop: bright spot, dark border, blurred inside."""
  sheet = Sheet(image, region, rng)
  edge = sheet.blob(rng.uniform(5, 11), 0.3)
  inside = sheet.cover(edge, 1.5)
  blurred = ndimage.gaussian_filter(image, (1.2 * sheet.unit,) * 2 + (0,))
  wet = blurred * np.asarray([0.86, 0.84, 0.74], np.float32) + np.float32(0.05)
  dome = ndimage.gaussian_filter(inside, 1.6 * sheet.unit)
  shine = np.clip(_relief(dome) * sheet.unit * 4 - 0.35, 0, 1)
  return (
    _mixed(image, wet, inside * rng.uniform(0.75, 1))
    + (shine + 0.35 * _relief(dome) * sheet.unit) * inside[..., None]
  )


def cut(image: Array, region: Array, rng: Rng) -> Array:
  """Draw an open slit: dark inside, its edges turned up."""
  sheet = Sheet(image, region, rng)
  x, y = shapes.turned(sheet.x, sheet.y, rng.uniform(0, np.pi))
  half, gape = rng.uniform(9, 20), rng.uniform(1.0, 2.6)
  y = y + 0.012 * rng.uniform(-1, 1) * x * x
  edge = np.abs(y) - gape * np.maximum(1 - (x / half) ** 2, -1)
  slit = sheet.cover(edge, 0.8)
  lips = np.exp(-(((edge - 0.9) / 0.9) ** 2)) * (np.abs(x) < half)
  lips = lips * np.sign(-y) * rng.uniform(0.24, 0.4)
  return _mixed(image * (1 + lips)[..., None], sheet.tone * 0.15, slit)


def abrasion(image: Array, region: Array, rng: Rng) -> Array:
  """Draw a worn patch: paler, without grain, finely scored."""
  sheet = Sheet(image, region, rng)
  edge = sheet.blob(rng.uniform(8, 17), 0.3) + 2 * sheet.noise(4)
  share = sheet.cover(edge, 4) * rng.uniform(0.55, 0.9)
  angle = rng.uniform(0, np.pi)
  lines = ndimage.gaussian_filter1d(rng.normal(0, 1, 400), 1.2) * 1.5
  across = shapes.turned(sheet.x, sheet.y, angle)[1]
  scored = np.interp(across, np.linspace(-120, 120, 400), lines)
  worn = ndimage.gaussian_filter(image, (2 * sheet.unit,) * 2 + (0,))
  worn = 0.12 + 1.05 * worn + 0.05 * scored.astype(np.float32)[..., None]
  return _mixed(image, worn, share)


OVERLAYS: dict[str, Overlay] = {
  draw.__name__: draw
  for draw in (
    scratch,
    crack,
    hole,
    stain,
    contamination,
    dent,
    discoloration,
    glue,
    cut,
    abrasion,
  )
}


def changed(before: Array, after: Array) -> Array:
  """Return the pixels that differ visibly, small gaps closed.

  Args:
    before: float32 (h, w, 3) in about [0, 1].
    after: likewise.

  Returns:
    uint8 (h, w) in {0, 1}.
  """
  differs = np.abs(after - before).max(axis=-1) > VISIBLE
  reach = max(1, round(min(differs.shape) * UNIT))
  closed = ndimage.binary_closing(differs, np.ones((3, 3)), iterations=reach)
  labels: Any = ndimage.label(closed | differs, np.ones((3, 3)))
  parts, count = labels
  # Single pixels are rounding at an edge, not an anomaly.
  sizes = np.bincount(parts.ravel(), minlength=count + 1)
  kept = sizes >= 3 * reach**2
  kept[0] = False
  return kept[parts].astype(np.uint8)


def fits(mask: Array) -> bool:
  """Return whether a mask is neither too small nor too large."""
  return bool(MIN_SHARE <= mask.mean() <= MAX_SHARE)


def apply(
  kind: str, image: Array, region: Array, rng: Rng
) -> tuple[Array, Array]:
  """Add an overlay anomaly to an image.

  Args:
    kind: a key of `OVERLAYS`.
    image: float32 (h, w, 3) in about [0, 1].
    region: float32 (h, w) in [0, 1], where the anomaly may be.
    rng: random numbers; the same give the same anomaly.

  Returns:
    The image, unchanged outside the mask, and the mask, uint8 (h, w).

  Raises:
    ValueError: no visible anomaly of this kind fits into the region.
  """
  if region.max() <= 0.5:
    raise ValueError("The region is empty; expected pixels above one half.")
  for _ in range(ATTEMPTS):
    result = _mixed(image, OVERLAYS[kind](image, region, rng), region)
    mask = changed(image, result)
    if fits(mask):
      return np.where(mask[..., None] == 1, result, image), mask
  raise ValueError(
    f"No visible {kind} in {ATTEMPTS} attempts; the region has "
    f"{int((region > 0.5).sum())} of {region.size} pixels."
  )
