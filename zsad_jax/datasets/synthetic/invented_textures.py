"""Textures of random proportions: surfaces that fill the image.

A function draws one kind: `(style, rng, size, flaw) -> Scene`.
"""

import numpy as np

from zsad_jax.datasets.synthetic import shapes
from zsad_jax.datasets.synthetic.canvas import Flaw, Scene, Stage, mix
from zsad_jax.datasets.synthetic.invented import Style, StyledFamily

OVERLAYS = (
  "scratch",
  "crack",
  "hole",
  "stain",
  "contamination",
  "dent",
  "discoloration",
  "glue",
  "cut",
  "abrasion",
)


def _surface(style: Style, rng: np.random.Generator, size: int) -> Stage:
  stage = Stage(rng, size, style.tint(rng, 0), turn=3, tilt=0.08, zoom=0.2)
  stage.region[:] = 1
  return stage


def _plane(stage: Stage, flaw: Flaw) -> tuple[np.ndarray, np.ndarray]:
  """Return x and y, locally displaced where a part is bent."""
  x, y = stage.x, stage.y
  middle = flaw.rng.uniform(-0.6, 0.6, 2)
  push = flaw.amount("bent_part", 0.08, 0.2)
  if not push:
    return x, y
  radius = flaw.rng.uniform(0.15, 0.35)
  bump = push * np.exp(
    -((x - middle[0]) ** 2 + (y - middle[1]) ** 2) / radius**2
  )
  angle = flaw.rng.uniform(0, 2 * np.pi)
  return x + bump * np.float32(np.cos(angle)), y + bump * np.float32(
    np.sin(angle)
  )


def _chosen(flaw: Flaw, *frequencies: float) -> list[int]:
  """Return the cell, near the middle, that a flaw affects."""
  return [int(np.floor(flaw.rng.uniform(-0.7, 0.7) * f)) for f in frequencies]


def _faulty(
  style: Style,
  rng: np.random.Generator,
  flaw: Flaw,
  color: np.ndarray,
  here: np.ndarray,
) -> np.ndarray:
  """Return the colour with the chosen cells in the ground's third colour."""
  share = flaw.amount("wrong_color", 0.5, 1)
  return mix(color, style.tint(rng, 2), here * share)


def cloth(
  style: Style, rng: np.random.Generator, size: int, flaw: Flaw
) -> Scene:
  """Draw twill or basket weave of two yarns."""
  stage = _surface(style, rng, size)
  x, y = _plane(stage, flaw)
  u, v = x * style.between(0, 5, 15), y * style.between(1, 5, 15)
  column, across = shapes.sawtooth(u)
  row, along = shapes.sawtooth(v)
  period = style.one_of(2, (2, 3, 4))
  over = np.mod(column + style.one_of(3, (1, 2)) * row, period) < period / 2
  warp = shapes.arch(across) * (0.4 + 0.6 * over)
  weft = shapes.arch(along) * (1.0 - 0.6 * over)
  yarn = _chosen(flaw, style.between(0, 5, 15))[0]
  here = (column == yarn) & (
    np.abs(y - flaw.rng.uniform(-0.5, 0.5)) < flaw.rng.uniform(0.2, 0.5)
  )
  if flaw.kind == "missing_part":
    warp = np.where(here, 0, warp)
  fibre = stage.noise(rng, 50)
  first = _faulty(style, rng, flaw, style.tint(rng, 0), here)
  color = mix(first, style.tint(rng, 1), weft > warp)
  top = np.maximum(warp, weft)
  stage.albedo = color * (0.55 + 0.45 * top + 0.1 * fibre)
  stage.height = 0.04 * top
  return stage.render()


def stripes(
  style: Style, rng: np.random.Generator, size: int, flaw: Flaw
) -> Scene:
  """Draw parallel bands, printed or raised."""
  stage = _surface(style, rng, size)
  x, y = _plane(stage, flaw)
  frequency = style.between(0, 2, 12)
  wobble = style.between(1, 0, 0.3) * stage.noise(rng, 2)
  band, across = shapes.sawtooth(x * frequency + wobble)
  share = style.between(2, 0.15, 0.4)
  line = shapes.smoothstep((share - np.abs(across)) * 8 + 0.5)
  here = (band == _chosen(flaw, frequency)[0]) & (
    np.abs(y - flaw.rng.uniform(-0.5, 0.5)) < flaw.rng.uniform(0.1, 0.4)
  )
  if flaw.kind == "missing_part":
    line = np.where(here, 0, line)
  body, stage.gloss[:] = style.surface(stage, rng, style.tint(rng, 0))
  second = _faulty(style, rng, flaw, style.tint(rng, 1), here)
  stage.albedo = mix(body, second, line * style.between(3, 0.2, 1))
  stage.height = style.between(4, 0, 0.03) * line
  return stage.render()


def dots(
  style: Style, rng: np.random.Generator, size: int, flaw: Flaw
) -> Scene:
  """Draw dots or studs; one may be missing, moved or of another colour."""
  stage = _surface(style, rng, size)
  x, y = _plane(stage, flaw)
  frequency = style.between(0, 2.5, 8)
  row, v = shapes.sawtooth(y * frequency)
  column, u = shapes.sawtooth(
    x * frequency + 0.5 * style.one_of(1, (0, 1)) * np.mod(row, 2)
  )
  column_hit, row_hit = _chosen(flaw, frequency, frequency)
  here = (column == column_hit) & (row == row_hit)
  if flaw.kind == "misplaced_part":
    du, dv = flaw.rng.uniform(0.15, 0.3, 2) * (flaw.sign(), flaw.sign())
    u, v = np.where(here, u - du, u), np.where(here, v - dv, v)
  sides, radius = style.one_of(2, (3, 4, 6, 60)), style.between(3, 0.15, 0.32)
  dot = shapes.polygon(u, v, sides, radius)
  if flaw.kind == "missing_part":
    dot = np.where(here, 1, dot)
  body, gloss = style.surface(stage, rng, style.tint(rng, 0))
  stage.albedo = body
  second = _faulty(style, rng, flaw, style.tint(rng, 1), here)
  stage.paint(
    dot / frequency,
    second,
    lift=style.between(4, -0.03, 0.04),
    bevel=0.04,
    gloss=gloss,
  )
  return stage.render()


def stone(
  style: Style, rng: np.random.Generator, size: int, flaw: Flaw
) -> Scene:
  """Draw grains of several tints, as in granite."""
  del flaw
  stage = _surface(style, rng, size)
  tints = np.concatenate([style.tint(rng, i) for i in (0, 1, 0)], axis=1)
  total = np.zeros_like(stage.albedo)
  for frequency in (style.between(0, 5, 14), style.between(1, 14, 28)):
    _, gap, key = shapes.pebbles(stage.x * frequency, stage.y * frequency, rng)
    kinds = rng.integers(3, size=shapes.TABLE**2)
    tone = rng.normal(1, 0.08, shapes.TABLE**2).astype(np.float32)
    edge = shapes.smoothstep(gap * 4 + style.between(2, 0.3, 1))
    total += tints[:, kinds, 0].take(key, axis=1) * tone.take(key) * edge / 2
  blend = style.between(3, 0.2, 0.8)
  stage.albedo = mix(
    style.tint(rng, 0) * (1 + 0.1 * stage.clouds(rng, 3)), total, blend
  )
  stage.gloss[:] = style.between(4, 0, 0.2)
  return stage.render()


def checks(
  style: Style, rng: np.random.Generator, size: int, flaw: Flaw
) -> Scene:
  """Draw squares of two colours; one may be wrong."""
  stage = _surface(style, rng, size)
  x, y = _plane(stage, flaw)
  frequency = style.between(0, 2, 7)
  column, _ = shapes.sawtooth(x * frequency)
  row, _ = shapes.sawtooth(y * frequency * style.between(1, 0.6, 1))
  column_hit, row_hit = _chosen(flaw, frequency, 0.6 * frequency)
  here = (column == column_hit) & (row == row_hit)
  color = mix(
    style.tint(rng, 0),
    style.tint(rng, 1),
    np.mod(column + row, 2) * style.between(2, 0.3, 1),
  )
  color = _faulty(style, rng, flaw, color, here)
  stage.albedo, stage.gloss[:] = style.surface(stage, rng, color)
  return stage.render()


def tiles(
  style: Style, rng: np.random.Generator, size: int, flaw: Flaw
) -> Scene:
  """Draw slabs in mortar; one may be missing, chipped or of another colour."""
  stage = _surface(style, rng, size)
  wide, tall = style.between(0, 1.3, 4), style.between(1, 1.3, 4)
  row, fy = shapes.sawtooth(stage.y * tall)
  shift = style.one_of(2, (0, 0.33, 0.5))
  column, fx = shapes.sawtooth(stage.x * wide + shift * row)
  column_hit, row_hit = _chosen(flaw, wide, tall)
  here = (column == column_hit) & (row == row_hit)
  joint = style.between(3, 0.01, 0.04)
  outline = shapes.box(
    fx / wide, fy / tall, 0.5 / wide - joint, 0.5 / tall - joint, 0.02
  )
  if flaw.kind == "missing_part":
    outline = np.where(here, 0.1, outline)
  outline = stage.chipped(outline, flaw)
  tone = rng.normal(1, style.between(4, 0, 0.12), shapes.TABLE**2)
  tone = tone.astype(np.float32).take(shapes.hashed(column, row))
  body, gloss = style.surface(stage, rng, style.tint(rng, 0) * tone)
  stage.albedo = style.tint(rng, 1) * (1 + 0.1 * stage.noise(rng, 50))
  stage.paint(
    outline,
    _faulty(style, rng, flaw, body, here),
    lift=0.03,
    bevel=0.03,
    gloss=gloss,
  )
  return stage.render()


def plaster(
  style: Style, rng: np.random.Generator, size: int, flaw: Flaw
) -> Scene:
  """Draw a cloudy, gritty surface, smooth or rough."""
  del flaw
  stage = _surface(style, rng, size)
  clouds = stage.clouds(rng, style.between(0, 1, 6), 4)
  grit = stage.noise(rng, style.between(1, 20, 70))
  tone = (
    1 + style.between(2, 0, 0.25) * clouds + style.between(3, 0, 0.14) * grit
  )
  stage.albedo = (
    mix(style.tint(rng, 0), style.tint(rng, 1), np.clip(0.4 * clouds, 0, 0.4))
    * tone
  )
  stage.height = style.between(4, 0, 0.012) * grit
  stage.gloss[:] = style.between(5, 0, 0.3)
  return stage.render()


def mat(style: Style, rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw rows of bumps or ribs pressed into the material."""
  stage = _surface(style, rng, size)
  x, y = _plane(stage, flaw)
  fx, fy = style.between(0, 3, 9), style.between(1, 2, 9)
  column, u = shapes.sawtooth(x * fx)
  row, v = shapes.sawtooth(y * fy + 0.5 * style.one_of(2, (0, 1)) * column)
  bump = shapes.arch(u) * shapes.arch(v)
  column_hit, row_hit = _chosen(flaw, fx, fy)
  here = (column == column_hit) & (np.abs(row - row_hit) <= 1)
  if flaw.kind == "missing_part":
    bump = np.where(here, 0, bump)
  body, stage.gloss[:] = style.surface(stage, rng, style.tint(rng, 0))
  stage.albedo = body * (0.75 + 0.3 * bump)
  stage.height = style.between(3, 0.02, 0.06) * bump
  return stage.render()


def fibres(
  style: Style, rng: np.random.Generator, size: int, flaw: Flaw
) -> Scene:
  """Draw matted strands along one direction."""
  del flaw
  stage = _surface(style, rng, size)
  fine = stage.noise(rng, style.between(0, 30, 75), style.between(1, 1, 8))
  coarse = stage.noise(rng, style.between(2, 6, 20), style.between(3, 0.5, 3))
  strand = fine + 0.7 * coarse
  stage.albedo = mix(
    style.tint(rng, 0), style.tint(rng, 1), np.clip(0.35 * coarse, 0, 0.5)
  )
  stage.albedo *= 1 + style.between(4, 0.05, 0.25) * strand
  stage.height = style.between(5, 0, 0.008) * strand
  return stage.render()


def pebbles(
  style: Style, rng: np.random.Generator, size: int, flaw: Flaw
) -> Scene:
  """Draw rounded grains side by side."""
  del flaw
  stage = _surface(style, rng, size)
  frequency = style.between(0, 4, 16)
  _, gap, key = shapes.pebbles(
    stage.x * frequency, stage.y * frequency * style.between(1, 0.6, 1), rng
  )
  grain = shapes.smoothstep(gap * style.between(2, 1.2, 4))
  tone = rng.normal(1, style.between(3, 0, 0.2), shapes.TABLE**2)
  body, stage.gloss[:] = style.surface(stage, rng, style.tint(rng, 0))
  stage.albedo = body * tone.astype(np.float32).take(key) * (0.6 + 0.4 * grain)
  stage.height = style.between(4, 0.005, 0.05) * grain
  return stage.render()


def mesh(
  style: Style, rng: np.random.Generator, size: int, flaw: Flaw
) -> Scene:
  """Draw crossing bars before another colour; one may be bent or broken."""
  stage = _surface(style, rng, size)
  x, y = _plane(stage, flaw)
  frequency, radius = style.between(0, 2.5, 7), style.between(1, 0.08, 0.22)
  stage.albedo = style.tint(rng, 1) * (1 + 0.08 * stage.clouds(rng, 3))
  body, gloss = style.surface(stage, rng, style.tint(rng, 0))
  chosen, middle = _chosen(flaw, frequency)[0], flaw.rng.uniform(-0.5, 0.5)
  for k in range(style.one_of(2, (2, 2, 3))):
    u, v = shapes.turned(x, y, k * np.pi / style.one_of(2, (2, 2, 3)))
    bar, across = shapes.sawtooth(u * frequency)
    outline = (np.abs(across) - radius) / frequency
    if k == 0 and flaw.kind == "missing_part":
      gap = (bar == chosen) & (np.abs(v - middle) < 0.12)
      outline = np.where(gap, 0.1, outline)
    stage.paint(outline, body, lift=0.03, bevel=radius / frequency, gloss=gloss)
  return stage.render()


FAMILIES = {
  "cloth": StyledFamily(
    cloth, "texture", OVERLAYS, ("missing_part", "wrong_color", "bent_part")
  ),
  "stripes": StyledFamily(
    stripes, "texture", OVERLAYS, ("missing_part", "wrong_color", "bent_part")
  ),
  "dots": StyledFamily(
    dots, "texture", OVERLAYS, ("missing_part", "wrong_color", "misplaced_part")
  ),
  "stone": StyledFamily(stone, "texture", OVERLAYS),
  "checks": StyledFamily(
    checks, "texture", OVERLAYS, ("wrong_color", "bent_part")
  ),
  "tiles": StyledFamily(
    tiles, "texture", OVERLAYS, ("missing_part", "wrong_color", "chipped_edge")
  ),
  "plaster": StyledFamily(plaster, "texture", OVERLAYS),
  "mat": StyledFamily(mat, "texture", OVERLAYS, ("missing_part", "bent_part")),
  "fibres": StyledFamily(fibres, "texture", OVERLAYS),
  "pebbles": StyledFamily(pebbles, "texture", OVERLAYS),
  "mesh": StyledFamily(
    mesh, "texture", OVERLAYS, ("missing_part", "bent_part")
  ),
}
