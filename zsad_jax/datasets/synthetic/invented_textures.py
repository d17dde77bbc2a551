"""Textures of random proportions: surfaces that fill the picture.

Each function draws one kind: `(look, rng, size, flaw) -> Scene`.
"""

import numpy as np

from zsad_jax.datasets.synthetic import shapes
from zsad_jax.datasets.synthetic.canvas import Family, Stage, mix

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


def _surface(look, rng, size):
  stage = Stage(rng, size, look.tint(rng, 0), turn=3, tilt=0.08, zoom=0.2)
  stage.region[:] = 1
  return stage


def _plane(stage, flaw):
  """Returns x and y, locally displaced where a part is bent."""
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


def _chosen(flaw, *frequencies):
  """Cell, near the middle, that a flaw concerns."""
  return [int(np.floor(flaw.rng.uniform(-0.7, 0.7) * f)) for f in frequencies]


def _faulty(look, rng, flaw, color, here):
  """Returns the colour with the chosen cells in the ground's third colour."""
  share = flaw.amount("wrong_color", 0.5, 1)
  return mix(color, look.tint(rng, 2), here * share)


def cloth(look, rng, size, flaw):
  """Twill or basket weave of two yarns."""
  stage = _surface(look, rng, size)
  x, y = _plane(stage, flaw)
  u, v = x * look.between(0, 5, 15), y * look.between(1, 5, 15)
  column, across = shapes.sawtooth(u)
  row, along = shapes.sawtooth(v)
  period = look.one_of(2, (2, 3, 4))
  over = np.mod(column + look.one_of(3, (1, 2)) * row, period) < period / 2
  warp = shapes.arch(across) * (0.4 + 0.6 * over)
  weft = shapes.arch(along) * (1.0 - 0.6 * over)
  yarn = _chosen(flaw, look.between(0, 5, 15))[0]
  here = (column == yarn) & (
    np.abs(y - flaw.rng.uniform(-0.5, 0.5)) < flaw.rng.uniform(0.2, 0.5)
  )
  if flaw.kind == "missing_part":
    warp = np.where(here, 0, warp)
  fibre = stage.noise(rng, 50)
  first = _faulty(look, rng, flaw, look.tint(rng, 0), here)
  color = mix(first, look.tint(rng, 1), weft > warp)
  top = np.maximum(warp, weft)
  stage.albedo = color * (0.55 + 0.45 * top + 0.1 * fibre)
  stage.height = 0.04 * top
  return stage.render()


def stripes(look, rng, size, flaw):
  """Parallel bands, printed or raised."""
  stage = _surface(look, rng, size)
  x, y = _plane(stage, flaw)
  frequency = look.between(0, 2, 12)
  wobble = look.between(1, 0, 0.3) * stage.noise(rng, 2)
  band, across = shapes.sawtooth(x * frequency + wobble)
  share = look.between(2, 0.15, 0.4)
  line = shapes.smoothstep((share - np.abs(across)) * 8 + 0.5)
  here = (band == _chosen(flaw, frequency)[0]) & (
    np.abs(y - flaw.rng.uniform(-0.5, 0.5)) < flaw.rng.uniform(0.1, 0.4)
  )
  if flaw.kind == "missing_part":
    line = np.where(here, 0, line)
  body, stage.gloss[:] = look.surface(stage, rng, look.tint(rng, 0))
  second = _faulty(look, rng, flaw, look.tint(rng, 1), here)
  stage.albedo = mix(body, second, line * look.between(3, 0.2, 1))
  stage.height = look.between(4, 0, 0.03) * line
  return stage.render()


def dots(look, rng, size, flaw):
  """A lattice of dots or studs; one may be lost, moved or of another colour."""
  stage = _surface(look, rng, size)
  x, y = _plane(stage, flaw)
  frequency = look.between(0, 2.5, 8)
  row, v = shapes.sawtooth(y * frequency)
  column, u = shapes.sawtooth(
    x * frequency + 0.5 * look.one_of(1, (0, 1)) * np.mod(row, 2)
  )
  column_hit, row_hit = _chosen(flaw, frequency, frequency)
  here = (column == column_hit) & (row == row_hit)
  if flaw.kind == "misplaced_part":
    du, dv = flaw.rng.uniform(0.15, 0.3, 2) * (flaw.sign(), flaw.sign())
    u, v = np.where(here, u - du, u), np.where(here, v - dv, v)
  sides, radius = look.one_of(2, (3, 4, 6, 60)), look.between(3, 0.15, 0.32)
  dot = shapes.polygon(u, v, sides, radius)
  if flaw.kind == "missing_part":
    dot = np.where(here, 1, dot)
  body, gloss = look.surface(stage, rng, look.tint(rng, 0))
  stage.albedo = body
  second = _faulty(look, rng, flaw, look.tint(rng, 1), here)
  stage.paint(
    dot / frequency,
    second,
    lift=look.between(4, -0.03, 0.04),
    bevel=0.04,
    gloss=gloss,
  )
  return stage.render()


def stone(look, rng, size, flaw):
  """Grains of several tints, as in granite."""
  del flaw
  stage = _surface(look, rng, size)
  tints = np.concatenate([look.tint(rng, i) for i in (0, 1, 0)], axis=1)
  total = np.zeros_like(stage.albedo)
  for frequency in (look.between(0, 5, 14), look.between(1, 14, 28)):
    _, gap, key = shapes.pebbles(stage.x * frequency, stage.y * frequency, rng)
    kinds = rng.integers(3, size=shapes.TABLE**2)
    tone = rng.normal(1, 0.08, shapes.TABLE**2).astype(np.float32)
    edge = shapes.smoothstep(gap * 4 + look.between(2, 0.3, 1))
    total += tints[:, kinds, 0].take(key, axis=1) * tone.take(key) * edge / 2
  blend = look.between(3, 0.2, 0.8)
  stage.albedo = mix(
    look.tint(rng, 0) * (1 + 0.1 * stage.clouds(rng, 3)), total, blend
  )
  stage.gloss[:] = look.between(4, 0, 0.2)
  return stage.render()


def checks(look, rng, size, flaw):
  """Squares of two colours; one may be wrong."""
  stage = _surface(look, rng, size)
  x, y = _plane(stage, flaw)
  frequency = look.between(0, 2, 7)
  column, _ = shapes.sawtooth(x * frequency)
  row, _ = shapes.sawtooth(y * frequency * look.between(1, 0.6, 1))
  column_hit, row_hit = _chosen(flaw, frequency, 0.6 * frequency)
  here = (column == column_hit) & (row == row_hit)
  color = mix(
    look.tint(rng, 0),
    look.tint(rng, 1),
    np.mod(column + row, 2) * look.between(2, 0.3, 1),
  )
  color = _faulty(look, rng, flaw, color, here)
  stage.albedo, stage.gloss[:] = look.surface(stage, rng, color)
  return stage.render()


def tiles(look, rng, size, flaw):
  """Slabs in mortar; one may be lost, chipped or of another colour."""
  stage = _surface(look, rng, size)
  wide, tall = look.between(0, 1.3, 4), look.between(1, 1.3, 4)
  row, fy = shapes.sawtooth(stage.y * tall)
  shift = look.one_of(2, (0, 0.33, 0.5))
  column, fx = shapes.sawtooth(stage.x * wide + shift * row)
  column_hit, row_hit = _chosen(flaw, wide, tall)
  here = (column == column_hit) & (row == row_hit)
  joint = look.between(3, 0.01, 0.04)
  outline = shapes.box(
    fx / wide, fy / tall, 0.5 / wide - joint, 0.5 / tall - joint, 0.02
  )
  if flaw.kind == "missing_part":
    outline = np.where(here, 0.1, outline)
  outline = stage.chipped(outline, flaw)
  tone = rng.normal(1, look.between(4, 0, 0.12), shapes.TABLE**2)
  tone = tone.astype(np.float32).take(shapes.hashed(column, row))
  body, gloss = look.surface(stage, rng, look.tint(rng, 0) * tone)
  stage.albedo = look.tint(rng, 1) * (1 + 0.1 * stage.noise(rng, 50))
  stage.paint(
    outline,
    _faulty(look, rng, flaw, body, here),
    lift=0.03,
    bevel=0.03,
    gloss=gloss,
  )
  return stage.render()


def plaster(look, rng, size, flaw):
  """Cloudy and gritty, smooth or rough."""
  del flaw
  stage = _surface(look, rng, size)
  clouds = stage.clouds(rng, look.between(0, 1, 6), 4)
  grit = stage.noise(rng, look.between(1, 20, 70))
  tone = 1 + look.between(2, 0, 0.25) * clouds + look.between(3, 0, 0.14) * grit
  stage.albedo = (
    mix(look.tint(rng, 0), look.tint(rng, 1), np.clip(0.4 * clouds, 0, 0.4))
    * tone
  )
  stage.height = look.between(4, 0, 0.012) * grit
  stage.gloss[:] = look.between(5, 0, 0.3)
  return stage.render()


def mat(look, rng, size, flaw):
  """Rows of bumps or ribs pressed into the material."""
  stage = _surface(look, rng, size)
  x, y = _plane(stage, flaw)
  fx, fy = look.between(0, 3, 9), look.between(1, 2, 9)
  column, u = shapes.sawtooth(x * fx)
  row, v = shapes.sawtooth(y * fy + 0.5 * look.one_of(2, (0, 1)) * column)
  bump = shapes.arch(u) * shapes.arch(v)
  column_hit, row_hit = _chosen(flaw, fx, fy)
  here = (column == column_hit) & (np.abs(row - row_hit) <= 1)
  if flaw.kind == "missing_part":
    bump = np.where(here, 0, bump)
  body, stage.gloss[:] = look.surface(stage, rng, look.tint(rng, 0))
  stage.albedo = body * (0.75 + 0.3 * bump)
  stage.height = look.between(3, 0.02, 0.06) * bump
  return stage.render()


def fibres(look, rng, size, flaw):
  """Matted strands along one direction."""
  del flaw
  stage = _surface(look, rng, size)
  fine = stage.noise(rng, look.between(0, 30, 75), look.between(1, 1, 8))
  coarse = stage.noise(rng, look.between(2, 6, 20), look.between(3, 0.5, 3))
  strand = fine + 0.7 * coarse
  stage.albedo = mix(
    look.tint(rng, 0), look.tint(rng, 1), np.clip(0.35 * coarse, 0, 0.5)
  )
  stage.albedo *= 1 + look.between(4, 0.05, 0.25) * strand
  stage.height = look.between(5, 0, 0.008) * strand
  return stage.render()


def pebbles(look, rng, size, flaw):
  """Rounded grains side by side."""
  del flaw
  stage = _surface(look, rng, size)
  frequency = look.between(0, 4, 16)
  _, gap, key = shapes.pebbles(
    stage.x * frequency, stage.y * frequency * look.between(1, 0.6, 1), rng
  )
  grain = shapes.smoothstep(gap * look.between(2, 1.2, 4))
  tone = rng.normal(1, look.between(3, 0, 0.2), shapes.TABLE**2)
  body, stage.gloss[:] = look.surface(stage, rng, look.tint(rng, 0))
  stage.albedo = body * tone.astype(np.float32).take(key) * (0.6 + 0.4 * grain)
  stage.height = look.between(4, 0.005, 0.05) * grain
  return stage.render()


def mesh(look, rng, size, flaw):
  """Crossing bars before another colour; one may be bent or broken."""
  stage = _surface(look, rng, size)
  x, y = _plane(stage, flaw)
  frequency, radius = look.between(0, 2.5, 7), look.between(1, 0.08, 0.22)
  stage.albedo = look.tint(rng, 1) * (1 + 0.08 * stage.clouds(rng, 3))
  body, gloss = look.surface(stage, rng, look.tint(rng, 0))
  chosen, middle = _chosen(flaw, frequency)[0], flaw.rng.uniform(-0.5, 0.5)
  for k in range(look.one_of(2, (2, 2, 3))):
    u, v = shapes.turned(x, y, k * np.pi / look.one_of(2, (2, 2, 3)))
    bar, across = shapes.sawtooth(u * frequency)
    outline = (np.abs(across) - radius) / frequency
    if k == 0 and flaw.kind == "missing_part":
      gap = (bar == chosen) & (np.abs(v - middle) < 0.12)
      outline = np.where(gap, 0.1, outline)
    stage.paint(outline, body, lift=0.03, bevel=radius / frequency, gloss=gloss)
  return stage.render()


FAMILIES = {
  "cloth": Family(
    cloth, "texture", OVERLAYS, ("missing_part", "wrong_color", "bent_part")
  ),
  "stripes": Family(
    stripes, "texture", OVERLAYS, ("missing_part", "wrong_color", "bent_part")
  ),
  "dots": Family(
    dots, "texture", OVERLAYS, ("missing_part", "wrong_color", "misplaced_part")
  ),
  "stone": Family(stone, "texture", OVERLAYS),
  "checks": Family(checks, "texture", OVERLAYS, ("wrong_color", "bent_part")),
  "tiles": Family(
    tiles, "texture", OVERLAYS, ("missing_part", "wrong_color", "chipped_edge")
  ),
  "plaster": Family(plaster, "texture", OVERLAYS),
  "mat": Family(mat, "texture", OVERLAYS, ("missing_part", "bent_part")),
  "fibres": Family(fibres, "texture", OVERLAYS),
  "pebbles": Family(pebbles, "texture", OVERLAYS),
  "mesh": Family(mesh, "texture", OVERLAYS, ("missing_part", "bent_part")),
}
