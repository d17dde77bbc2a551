"""Texture families: surfaces that fill the image.

Each function draws one family: `(rng, size, flaw) -> Scene`. Constants inside
are proportions, chosen by eye.
"""

import numpy as np

from zsad_jax.datasets.synthetic import shapes
from zsad_jax.datasets.synthetic.canvas import (
  Family,
  Flaw,
  Number,
  Scene,
  Stage,
  mix,
  rgb,
  tinted,
)

STONES = (
  (0.45, 0.42, 0.4),
  (0.72, 0.52, 0.42),
  (0.3, 0.36, 0.38),
  (0.86, 0.84, 0.8),
  (0.62, 0.6, 0.5),
)  # Chips of the terrazzo.


def _surface(
  rng: np.random.Generator,
  size: int,
  color: tuple[float, float, float],
  *,
  turn: Number = 0.2,
  tilt: Number = 0.06,
) -> Stage:
  stage = Stage(rng, size, tinted(rng, color), turn=turn, tilt=tilt)
  stage.region[:] = 1
  return stage


def _stretch(t: np.ndarray, middle: Number, length: Number) -> np.ndarray:
  """Return a mask of the positions within `length` of `middle`."""
  return np.abs(t - middle) < length


def carpet(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw a plain weave of thick yarns; flaws affect one lengthwise yarn."""
  stage = _surface(rng, size, (0.3, 0.3, 0.33))
  wobble = stage.noise(rng, 4)
  u, v = stage.x * 7 + 0.1 * wobble, stage.y * 7 + 0.1 * wobble
  column, across = shapes.sawtooth(u)
  row, along = shapes.sawtooth(v)
  over = lambda t: 0.4 * np.cos(np.pi * (t + column + row))
  warp = shapes.arch(across) * (0.6 + over(along))
  weft = shapes.arch(along) * (0.6 - over(across))
  here = column == int(flaw.rng.integers(-5, 6))
  here &= _stretch(v, flaw.rng.uniform(-5, 5), flaw.rng.uniform(1.5, 4))
  if flaw.kind == "missing_part":
    warp = np.where(here, -0.5, warp)
  fibre = stage.noise(rng, 60) + 0.6 * stage.noise(rng, 25)
  light = tinted(rng, (0.68, 0.63, 0.54))
  dark = tinted(rng, (0.36, 0.4, 0.47))
  light = mix(
    light, rgb(0.6, 0.2, 0.16), here * flaw.amount("wrong_color", 0.3, 1)
  )
  top = np.maximum(np.maximum(warp, weft), -0.2)
  tone = 0.5 + 0.5 * np.maximum(top, 0.1) + 0.13 * fibre
  stage.albedo = tone * mix(
    dark, light, shapes.smoothstep(4 * (warp - weft) + 0.5)
  )
  stage.height = 0.05 * top + 0.004 * fibre
  return stage.render()


def wood(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw flat-sawn boards: growth rings, fine grain and dark pores."""
  del flaw
  stage = _surface(rng, size, (0.6, 0.42, 0.25), turn=0.12)
  bow = stage.noise(rng, 1.1, 0.5)
  rings = stage.x * 5 + 2.2 * bow + 0.25 * stage.noise(rng, 7, 1.2)
  ring = rings - np.floor(rings)  # Slowly darker, then a sharp change.
  late = shapes.smoothstep(ring * 1.3 - 0.3) * shapes.smoothstep((1 - ring) * 9)
  grain = stage.noise(rng, 70, 2.5) + 0.7 * stage.noise(rng, 30, 1)
  pores = np.clip(stage.noise(rng, 75, 7) - 0.45, 0, 1)
  light = tinted(rng, (0.76, 0.57, 0.37))
  dark = tinted(rng, (0.5, 0.31, 0.17))
  wood_color = mix(light, dark, np.clip(0.75 * late + 0.12 * grain, 0, 1))
  stage.albedo = wood_color * (1 + 0.06 * bow - 0.7 * pores)
  stage.height = 0.003 * grain - 0.012 * pores
  return stage.render()


def leather(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw pebbled grain with shallow folds."""
  del flaw
  stage = _surface(rng, size, (0.3, 0.17, 0.1), turn=3)
  warp = stage.noise(rng, 3)
  _, gap, key = shapes.pebbles(
    stage.x * 13 + 0.5 * warp, stage.y * 11 - 0.4 * warp, rng
  )
  pebble = shapes.smoothstep(gap * 2.2)
  each = rng.uniform(-1, 1, shapes.TABLE**2).astype(np.float32).take(key)
  folds = stage.clouds(rng, 1.5, 3)
  hide = tinted(rng, (0.46, 0.27, 0.16), 0.05)
  tone = 0.72 + 0.28 * pebble + 0.05 * each + 0.1 * folds
  stage.albedo = hide * tone
  stage.height = 0.022 * pebble + 0.03 * folds + 0.002 * stage.noise(rng, 50)
  stage.gloss[:] = 0.22
  return stage.render()


def terrazzo(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw polished stone chips of two sizes in light cement."""
  del flaw
  stage = _surface(rng, size, (0.78, 0.76, 0.72), turn=3)
  stones = np.concatenate([tinted(rng, stone) for stone in STONES], axis=1)
  speck = stage.noise(rng, 60)
  stage.albedo *= 1 + 0.04 * speck
  for frequency, share in ((13, 0.5), (5, 0.6)):
    nearest, gap, key = shapes.pebbles(
      stage.x * frequency, stage.y * frequency, rng
    )
    sizes = rng.uniform(0.3, 0.75, shapes.TABLE**2).astype(np.float32)
    sizes[rng.random(sizes.shape) > share] = -1  # No chip in this cell.
    edge = np.maximum(nearest - sizes.take(key), 0.16 - gap) / frequency
    kinds = rng.integers(len(STONES), size=shapes.TABLE**2)
    color = stones[:, kinds, 0].take(key, axis=1)
    stage.paint(edge, color * (1 + 0.06 * speck))
  stage.height = 0.006 * stage.clouds(rng, 2, 2)
  stage.gloss[:] = 0.12
  return stage.render()


def wire_grid(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw woven steel wires before a dark room; one may be bent or broken."""
  stage = _surface(rng, size, (0.1, 0.11, 0.13), turn=0.7)
  u, v = stage.x * 4.2, stage.y * 4.2
  column, across = shapes.sawtooth(u)
  row, along = shapes.sawtooth(v)
  over = np.cos(np.pi * (along + across + row + column))
  chosen, middle = int(flaw.rng.integers(-2, 3)), flaw.rng.uniform(-2, 2)
  bend = flaw.amount("bent_part", 0.3, 0.6) * flaw.sign()
  if bend:  # The wire leaves its cell, so it is measured from its own path.
    path = chosen + 0.5 + bend * np.exp(-(((v - middle) / 0.8) ** 2))
    others = np.where(column == chosen, 0.5, across)
    across = np.where(np.abs(u - path) < np.abs(others), u - path, others)
  if flaw.kind == "missing_part":
    gap = flaw.rng.uniform(0.4, 0.9)
    across = np.where((column == chosen) & _stretch(v, middle, gap), 1, across)
  steel = tinted(rng, (0.62, 0.64, 0.66)) * (
    1 + 0.1 * stage.noise(rng, 30) + 0.06 * stage.noise(rng, 4)
  )
  radius = 0.15
  for offset, wave in ((along, -0.02 * over), (across, 0.02 * over)):
    outline = (np.abs(offset) - radius) / 4.2
    dome = np.sqrt(np.maximum(radius**2 - offset**2, 0)) / 4.2
    stage.paint(outline, steel, gloss=0.5)
    stage.height = np.maximum(
      stage.height, (0.05 + dome + wave) * stage.cover(outline)
    )
  return stage.render()


def knitted_wool(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw stocking stitch: columns of V-shaped loops of fuzzy yarn."""
  stage = _surface(rng, size, (0.2, 0.2, 0.22), turn=0.15)
  wobble = stage.noise(rng, 3)
  u = stage.x * 7 + 0.12 * wobble
  column, across = shapes.sawtooth(u)
  leg = np.abs(across) - 0.25  # Each loop has two legs.
  v = stage.y * 8.5 + 1.5 * np.abs(across) + 0.1 * wobble
  row, along = shapes.sawtooth(v)
  loop = np.sqrt(shapes.arch(2 * leg) * shapes.arch(0.98 * along))
  here = column == int(flaw.rng.integers(-4, 4))
  here &= _stretch(row, flaw.rng.uniform(-5, 5), flaw.rng.uniform(1.2, 3))
  if flaw.kind == "missing_part":  # A dropped stitch leaves a ladder.
    ladder = 0.55 * shapes.arch(shapes.sawtooth(stage.y * 8.5)[1] * 2.2)
    loop = np.where(here, ladder, loop)
  twist = np.sin(50 * (stage.y + np.sign(across) * stage.x))
  fuzz = stage.noise(rng, 45) + 0.7 * stage.noise(rng, 80)
  wool, other = tinted(rng, (0.66, 0.3, 0.27)), tinted(rng, (0.85, 0.8, 0.7))
  striped = np.mod(row, 8) < 2
  wool = mix(wool, other, striped)
  wool = mix(
    wool, rgb(0.25, 0.38, 0.5), here * flaw.amount("wrong_color", 0.35, 1)
  )
  shade = 0.35 + 0.65 * loop + 0.06 * twist * loop + 0.14 * fuzz
  stage.albedo = wool * shade
  stage.height = 0.055 * loop + 0.004 * fuzz + 0.003 * twist * loop
  return stage.render()


def mosaic_tile(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw glazed hexagonal tiles in grout; one may be missing or wrong."""
  stage = _surface(rng, size, (0.68, 0.66, 0.62), turn=0.5)
  x, y = stage.x * 3.1, stage.y * 3.1
  edge, key = shapes.hexagons(x, y)
  _, chosen = shapes.hexagons(*flaw.rng.uniform(-2.2, 2.2, (2, 1)))
  here = key == chosen
  tone = rng.normal(0, 1, shapes.TABLE**2).astype(np.float32).take(key)
  glaze = tinted(rng, (0.27, 0.5, 0.53), 0.05)
  clouds = stage.clouds(rng, 4)
  color = glaze * (1 + 0.07 * tone + 0.07 * clouds)
  color = mix(
    color, rgb(0.72, 0.45, 0.25), here * flaw.amount("wrong_color", 0.3, 1)
  )
  stage.albedo *= 1 + 0.08 * stage.noise(rng, 60)
  outline = (edge + 0.06) / 3.1
  if flaw.kind == "missing_part":
    outline = np.where(here, 0.1, outline)
    stage.height -= 0.02 * here
    stage.albedo *= 1 - 0.3 * here * (1 + 0.3 * clouds)
  outline = stage.chipped(outline, flaw)
  stage.paint(outline, color, lift=0.035, bevel=0.05, gloss=0.45)
  stage.height += 0.002 * clouds
  return stage.render()


def brushed_metal(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw streaks along one direction and a broad sheen."""
  del flaw
  stage = _surface(rng, size, (0.62, 0.63, 0.64), turn=3)
  streaks = (
    stage.noise(rng, 3, 110)
    + 0.8 * stage.noise(rng, 1, 60)
    + 0.5 * stage.noise(rng, 8, 80)
  )
  sheen = np.cos(stage.y * rng.uniform(1.2, 2.2) + rng.uniform(0, 6))
  stage.albedo *= 0.95 + 0.09 * streaks + 0.14 * sheen
  stage.height = 0.0012 * streaks
  stage.gloss[:] = 0.15
  return stage.render()


def marble(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw pale stone with veins of two sizes."""
  del flaw
  stage = _surface(rng, size, (0.86, 0.85, 0.83), turn=3)
  clouds, detail = stage.clouds(rng, 1.2, 4), stage.clouds(rng, 5, 3)
  bold = np.abs(clouds + 0.25 * stage.x + 0.12 * detail)
  fine = np.abs(stage.clouds(rng, 2.2, 3) + 0.3 * stage.y + 0.1 * detail)
  vein = 0.75 * np.exp(-bold * 16) + 0.4 * np.exp(-fine * 28)
  vein = vein * np.clip(0.55 + 0.8 * stage.noise(rng, 1.6), 0, 1)
  gray = tinted(rng, (0.36, 0.38, 0.41))
  stage.albedo = mix(
    stage.albedo * (1 + 0.08 * detail),
    gray,
    np.clip(vein + 0.12 * (clouds + 0.3), 0, 0.9),
  )
  stage.gloss[:] = 0.1
  return stage.render()


def corrugated_cardboard(
  rng: np.random.Generator, size: int, flaw: Flaw
) -> Scene:
  """Draw brown paper over parallel flutes, with flecks of fibre."""
  del flaw
  stage = _surface(rng, size, (0.69, 0.53, 0.36), turn=0.3)
  wander = 0.5 * stage.noise(rng, 2, 0.7)
  flutes = np.sin(stage.x * rng.uniform(21, 26) + wander)
  flecks = np.clip(stage.noise(rng, 30, 45) - 0.5, 0, 1)
  pale = np.clip(stage.noise(rng, 55, 30) - 0.6, 0, 1)
  pulp = stage.clouds(rng, 6)
  tone = 1 + 0.05 * flutes + 0.07 * pulp - 0.7 * flecks + 0.5 * pale
  stage.albedo *= tone
  stage.height = 0.0075 * flutes + 0.003 * pulp
  return stage.render()


def concrete(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw grey cement: cloudy, gritty, with small pores."""
  del flaw
  stage = _surface(rng, size, (0.56, 0.55, 0.53), turn=3)
  clouds = stage.clouds(rng, 1.3, 4)
  grit = stage.noise(rng, 70) + 0.8 * stage.noise(rng, 30)
  nearest, _, key = shapes.pebbles(stage.x * 7, stage.y * 7, rng)
  pores = rng.uniform(-0.5, 0.2, shapes.TABLE**2).astype(np.float32)
  pore = shapes.smoothstep((pores.take(key) - nearest) * 12)
  tone = 1 + 0.16 * clouds + 0.07 * grit - 0.45 * pore
  stage.albedo *= tone
  stage.height = 0.004 * grit + 0.012 * clouds - 0.03 * pore
  return stage.render()


def brick_wall(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw bricks in running bond; one may be missing or of another colour."""
  stage = _surface(rng, size, (0.68, 0.64, 0.58), turn=0.06)
  row, fy = shapes.sawtooth(stage.y * 3.6 + 0.5)
  column, fx = shapes.sawtooth(stage.x * 1.7 + 0.5 * np.mod(row, 2))
  here = column == int(flaw.rng.integers(-1, 1))
  here &= row == int(flaw.rng.integers(-2, 3))
  key = shapes.hashed(column, row)
  grit, clouds = stage.noise(rng, 50), stage.clouds(rng, 5)
  edge = shapes.box(fx / 1.7, fy / 3.6, 0.268, 0.115, 0.025)
  outline = edge + 0.012 * clouds
  tone = rng.normal(0, 1, shapes.TABLE**2).astype(np.float32).take(key)
  clay = tinted(rng, (0.62, 0.32, 0.24), 0.04)
  color = clay * (1 + 0.13 * tone + 0.1 * clouds + 0.08 * grit)
  color = mix(
    color,
    rgb(0.78, 0.66, 0.48) * (1 + 0.1 * clouds),
    here * flaw.amount("wrong_color", 0.4, 1),
  )
  stage.albedo *= 1 + 0.1 * grit
  if flaw.kind == "missing_part":
    stage.height -= 0.06 * here * stage.cover(outline)
    stage.albedo *= 1 - 0.55 * here * stage.cover(outline)
    outline = np.where(here, 0.1, outline)
  outline = stage.chipped(outline, flaw, 0.1, 0.2)
  stage.paint(outline, color, lift=0.04, bevel=0.03)
  stage.height += 0.004 * grit + 0.008 * clouds
  return stage.render()


FAMILIES = {
  "carpet": Family(
    carpet,
    "texture",
    ("cut", "stain", "contamination"),
    ("missing_part", "wrong_color"),
  ),
  "wood": Family(wood, "texture", ("scratch", "hole", "stain", "crack")),
  "leather": Family(
    leather, "texture", ("cut", "scratch", "glue", "abrasion", "discoloration")
  ),
  "terrazzo": Family(
    terrazzo, "texture", ("crack", "hole", "stain", "scratch")
  ),
  "wire_grid": Family(
    wire_grid,
    "texture",
    ("contamination", "discoloration"),
    ("bent_part", "missing_part"),
  ),
  "knitted_wool": Family(
    knitted_wool,
    "texture",
    ("stain", "contamination"),
    ("missing_part", "wrong_color"),
  ),
  "mosaic_tile": Family(
    mosaic_tile,
    "texture",
    ("crack", "glue"),
    ("chipped_edge", "missing_part", "wrong_color"),
  ),
  "brushed_metal": Family(
    brushed_metal, "texture", ("scratch", "dent", "stain", "discoloration")
  ),
  "marble": Family(
    marble, "texture", ("crack", "hole", "discoloration", "scratch")
  ),
  "corrugated_cardboard": Family(
    corrugated_cardboard, "texture", ("dent", "cut", "stain", "hole")
  ),
  "concrete": Family(
    concrete, "texture", ("crack", "hole", "stain", "contamination")
  ),
  "brick_wall": Family(
    brick_wall,
    "texture",
    ("crack", "discoloration"),
    ("chipped_edge", "missing_part", "wrong_color"),
  ),
}
