"""Canvas of a family, its lighting, and the camera.

A family paints albedo and relief on a `Stage`; `Stage.render` lights them. All
lengths are in units of half the image's side, so a drawing looks the same at
any size. A `Camera` then turns the lit scene into pixels.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from zsad_jax.datasets.synthetic.shapes import Number

SUPERSAMPLE = 2  # Scenes are drawn this much larger, then averaged.
REACH = 2.2  # Noise covers [-REACH, REACH]: corners stay inside.
AMBIENT = 0.35  # Share of the light that comes from everywhere.
SHARPNESS = 5  # The highlight is a cosine to the power of two to this.


@dataclasses.dataclass(frozen=True)
class Flaw:
  """A structural anomaly that a family draws itself, or none.

  It has a random generator of its own, so that the rest of the scene is
  the same with and without it.
  """

  kind: str | None
  rng: np.random.Generator

  def amount(self, kind: str, low: Number, high: Number) -> float:
    """Return a number in [low, high) for this kind of flaw, else 0."""
    return self.rng.uniform(low, high) if self.kind == kind else 0.0

  def pick(self, kind: str, count: int) -> int:
    """Return the index of the affected part for this kind of flaw, else -1."""
    return int(self.rng.integers(count)) if self.kind == kind else -1

  def sign(self) -> int:
    """Return 1 or -1 at random."""
    return 1 if self.rng.random() < 0.5 else -1


@dataclasses.dataclass(frozen=True)
class Scene:
  """A lit drawing: image float32 (s, s, 3), region float32 (s, s) in [0, 1].

  The region is where the object is, everything for a texture.
  """

  image: np.ndarray
  region: np.ndarray


@dataclasses.dataclass(frozen=True)
class Family:
  """A category of drawn images and its kinds of anomalies.

  Attributes:
    draw: `(rng, size, flaw) -> Scene`, `size` pixels wide.
    kind: "texture" or "object".
    overlays: kinds of `defects.OVERLAYS` that suit it.
    structural: kinds of flaw that `draw` draws itself.
  """

  draw: Callable[[np.random.Generator, int, Flaw], Scene]
  kind: str
  overlays: tuple[str, ...]
  structural: tuple[str, ...] = ()

  @property
  def defects(self) -> tuple[str, ...]:
    """All kinds of anomalies."""
    return self.overlays + self.structural


def rgb(*color: float) -> np.ndarray:
  """Return a colour of three numbers as float32 (3, 1, 1)."""
  return np.asarray(color, np.float32).reshape(3, 1, 1)


def tinted(
  rng: np.random.Generator,
  color: tuple[float, float, float],
  spread: float = 0.03,
) -> np.ndarray:
  """Return a colour near `color`, float32 (3, 1, 1)."""
  lightness = 1 + rng.uniform(-2 * spread, 2 * spread)
  return rgb(
    *(np.asarray(color) * lightness + rng.uniform(-spread, spread, 3) / 4)
  )


def mix(
  first: np.ndarray, second: np.ndarray, share: np.ndarray | Number
) -> np.ndarray:
  """Blend two colours or images (3, ...); `share` (n, n) is of `second`."""
  return first + (second - first) * np.asarray(share, np.float32)


class Stage:
  """Albedo and relief of a scene, seen from a randomly moved viewpoint.

  Attributes:
    x, y: float32 (n, n), coordinates on the scene's plane.
    px: width of one of the n pixels in those units.
    albedo: float32 (3, n, n).
    height, gloss, region: float32 (n, n).
  """

  def __init__(
    self,
    rng: np.random.Generator,
    size: int,
    color: np.ndarray,
    *,
    turn: Number = 0.0,
    wander: Number = 0.0,
    zoom: Number = 0.08,
    tilt: Number = 0.05,
  ) -> None:
    """Set up view and light over a plain ground.

    Args:
      rng: random numbers for view, light and ground.
      size: side of the final image in pixels.
      color: of the ground, (3, 1, 1).
      turn: largest rotation, in radians.
      wander: largest shift of the scene's middle.
      zoom: largest relative change of scale.
      tilt: largest foreshortening from the middle to an edge.
    """
    n = self.n = size * SUPERSAMPLE
    self._view = self._viewpoint(rng, turn, wander, zoom, tilt)
    unit = (np.arange(n, dtype=np.float32) + 0.5) * 2 / n - 1
    ux, uy = np.meshgrid(unit, unit)
    row = lambda r: (
      np.float32(r[0]) * ux + np.float32(r[1]) * uy + np.float32(r[2])
    )
    depth = row(self._view[2])
    self.x, self.y = row(self._view[0]) / depth, row(self._view[1]) / depth
    self.px = 2 / n * float(np.hypot(*self._view[:2, 0]))
    self.light = self._sun(rng)
    ground = 0.6 * self.noise(rng, 2) + 0.4 * self.noise(rng, 25)
    self._ground = color * (1 + 0.04 * ground)
    self.albedo: np.ndarray = self._ground.copy()
    self.height: np.ndarray = np.zeros((n, n), np.float32)
    self.gloss: np.ndarray = self.height.copy()
    self.region: np.ndarray = self.height.copy()

  @staticmethod
  def _viewpoint(
    rng: np.random.Generator,
    turn: Number,
    wander: Number,
    zoom: Number,
    tilt: Number,
  ) -> np.ndarray:
    """Return the homography (3, 3) from image to scene coordinates."""
    angle, scale = rng.uniform(-turn, turn), 1 + rng.uniform(-zoom, zoom)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    dx, dy = rng.uniform(-wander, wander, 2)
    tilt_x, tilt_y = rng.uniform(-tilt, tilt, 2)
    turned = np.array([[cos, -sin, dx], [sin, cos, dy], [0, 0, 1]])
    return turned @ np.array([[1, 0, 0], [0, 1, 0], [tilt_x, tilt_y, 1]])

  @staticmethod
  def _sun(rng: np.random.Generator) -> np.ndarray:
    """Return the unit vector towards the light: above, to the upper left."""
    azimuth = np.pi * 1.25 + rng.uniform(-0.5, 0.5)
    elevation = rng.uniform(0.75, 0.95)
    flat = np.cos(elevation)
    return np.array(
      [flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)],
      np.float32,
    )

  def noise(
    self, rng: np.random.Generator, across: Number, along: Number | None = None
  ) -> np.ndarray:
    """Return smooth noise in about [-1, 1] on the scene's plane.

    Args:
      rng: random numbers; their number does not depend on the size.
      across: grains per unit in x.
      along: grains per unit in y; as many as in x by default.
    """
    along = across if along is None else along
    shape = [int(2 * REACH * f) + 2 for f in (along, across)]
    grid = Image.fromarray(rng.uniform(-1, 1, shape).astype(np.float32))
    # Wide grains are sampled coarsely and enlarged, which is much faster;
    # linear interpolation is visible in the widest only.
    fine = max(across, along)
    n = self.n if fine > 20 else -(-self.n // (2 if fine > 8 else 4))
    pixel = np.array([[2 / n, 0, -1], [0, 2 / n, -1], [0, 0, 1]])
    lay = np.array(
      [
        [across, 0, REACH * across + 1],
        [0, along, REACH * along + 1],
        [0, 0, 1],
      ]
    )
    view = lay @ self._view @ pixel
    method = Image.Resampling.BILINEAR if fine > 8 else Image.Resampling.BICUBIC
    noise = grid.transform(
      (n, n),
      Image.Transform.PERSPECTIVE,
      (view / view[2, 2]).ravel()[:8],
      method,
    )
    if n < self.n:
      noise = noise.resize((self.n, self.n), Image.Resampling.BICUBIC)
    return np.asarray(noise)

  def clouds(
    self, rng: np.random.Generator, frequency: Number, octaves: int = 3
  ) -> np.ndarray:
    """Return noise of several scales, each half as strong as the last."""
    total = sum(
      self.noise(rng, frequency * 2**i) / 2**i for i in range(octaves)
    )
    return total / (2 - 2 ** (1 - octaves))

  def cover(self, sdf: np.ndarray, soft: Number = 0.0) -> np.ndarray:
    """Return the coverage of each pixel; the edge is `soft` units wide."""
    return np.clip(0.5 - sdf / max(self.px, soft), 0, 1)

  def paint(
    self,
    sdf: np.ndarray,
    color: np.ndarray,
    *,
    lift: Number = 0.0,
    bevel: Number = 0.0,
    gloss: Number = 0.0,
  ) -> None:
    """Paint a part on top of the scene.

    Args:
      sdf: signed distance of the part's outline (n, n).
      color: (3, 1, 1) or (3, n, n).
      lift: height above the surface below; negative sinks.
      bevel: width of the rounded edge; 0 for a sharp step.
      gloss: strength of the highlight, 0 (matt) to 1.
    """
    cover = self.cover(sdf)
    self.albedo = mix(self.albedo, color, cover)
    self.gloss += cover * (gloss - self.gloss)
    self.region = np.maximum(self.region, cover)
    if lift:
      t = np.clip(-sdf / bevel, 0, 1) if bevel else cover
      self.height += np.float32(lift) * t * (2 - t)

  def cut(self, sdf: np.ndarray) -> None:
    """Cut a shape out of everything, down to the ground."""
    keep = 1 - self.cover(sdf)
    self.albedo = mix(self._ground, self.albedo, keep)
    for layer in (self.height, self.gloss, self.region):
      layer *= keep

  def chipped(
    self, sdf: np.ndarray, flaw: Flaw, low: Number = 0.07, high: Number = 0.17
  ) -> np.ndarray:
    """Return the outline, for a chipped edge with a jagged notch."""
    if flaw.kind != "chipped_edge":
      return sdf
    rows, cols = np.nonzero(np.abs(sdf) < self.px)
    i = int(flaw.rng.random() * len(rows))
    x, y = self.x - self.x[rows[i], cols[i]], self.y - self.y[rows[i], cols[i]]
    angle, radius = np.arctan2(y, x), flaw.rng.uniform(low, high)
    for waves, depth in ((2, 0.2), (5, 0.16), (9, 0.1)):
      phase = flaw.rng.uniform(0, 2 * np.pi)
      radius = radius * (1 + depth * np.sin(waves * angle + phase))
    return np.maximum(sdf, radius - np.hypot(x, y))

  def render(self) -> Scene:
    """Light the relief and return the `Scene`."""
    gy, gx = np.gradient(self.height, self.px)
    upright = 1 / np.sqrt(1 + gx * gx + gy * gy)
    lx, ly, lz = self.light
    facing = np.maximum((lz - lx * gx - ly * gy) * upright, 0) / lz
    half = (self.light + [0, 0, 1]) / np.linalg.norm(self.light + [0, 0, 1])
    hx, hy, hz = half.astype(np.float32)
    mirror = np.maximum((hz - hx * gx - hy * gy) * upright, 0)
    for _ in range(SHARPNESS):
      mirror *= mirror
    lit = AMBIENT * self._openness() + (1 - AMBIENT) * facing * self._sunlit()
    image = self.albedo * np.minimum(lit, 1.7) + self.gloss * mirror
    image, region = _shrunk(image), _shrunk(self.region[None])[0]
    return Scene(np.ascontiguousarray(np.moveaxis(image, 0, -1)), region)

  def _openness(self) -> np.ndarray:
    """Return the visible fraction of the sky: crevices are darker."""
    wide = ndimage.uniform_filter(self.height, max(3, int(0.08 / self.px)))
    return np.clip(1 + 10 * np.minimum(self.height - wide, 0), 0.3, 1)

  def _sunlit(self) -> np.ndarray:
    """Return 1 in the light, 0 in the shadow of a higher part, soft between."""
    steps, length = 6, 0.2
    reach = int(np.ceil(length / self.px)) + 1
    padded = np.pad(self.height, reach, mode="edge")
    shade = np.zeros_like(self.height)
    flat = np.hypot(*self.light[:2])
    for far in np.linspace(length / steps, length, steps, dtype=np.float32):
      col, row = (
        reach + int(np.rint(far / self.px * v / flat)) for v in self.light[:2]
      )
      higher = padded[row : row + self.n, col : col + self.n] - self.height
      shade = np.maximum(shade, higher - far * self.light[2] / flat)
    soft = ndimage.uniform_filter(
      np.minimum(shade * 25, 1), max(3, int(0.03 / self.px))
    )
    return 1 - 0.75 * soft


class Camera:
  """Uneven light, a slight blur and sensor noise, drawn once per image."""

  def __init__(self, rng: np.random.Generator, size: int) -> None:
    unit = np.linspace(-1, 1, size, dtype=np.float32)
    slope_x, slope_y = rng.uniform(-0.09, 0.09, 2).astype(np.float32)
    vignette = np.float32(rng.uniform(0.02, 0.12))
    field = (
      1
      + slope_x * unit
      + slope_y * unit[:, None]
      - vignette * (unit**2 + unit[:, None] ** 2)
    )
    cast = 1 + rng.uniform(-0.012, 0.012, 3)
    gain = rng.uniform(0.93, 1.07) * cast
    self._field = field[..., None] * gain.astype(np.float32)
    self._blur = size / 112 * rng.uniform(0.3, 0.5)
    grain = rng.normal(0, rng.uniform(0.006, 0.014), (size, size, 3))
    self._grain = grain.astype(np.float32)

  def expose(self, image: np.ndarray) -> np.ndarray:
    """Return the noiseless image of float32 (s, s, 3), same shape."""
    sharp = (self._blur, self._blur, 0)
    return ndimage.gaussian_filter(image * self._field, sharp, truncate=3)

  def develop(self, image: np.ndarray) -> np.ndarray:
    """Return uint8 (s, s, 3) with the sensor's noise."""
    noisy = (
      np.asarray(image, np.float32) + self._grain
    )  # Some overlays are float64.
    return (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)


def _shrunk(layers: np.ndarray) -> np.ndarray:
  """Average `SUPERSAMPLE` x `SUPERSAMPLE` blocks of (c, n, n)."""
  k = SUPERSAMPLE
  rows: Any = sum(layers[:, i::k] for i in range(k))
  total: Any = sum(rows[:, :, i::k] for i in range(k))
  return total / k**2
