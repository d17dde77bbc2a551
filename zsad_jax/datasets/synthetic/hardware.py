"""Object families of metal and electronics.

Each function draws one family: `(rng, size, flaw) -> Scene`. Constants inside
are proportions, chosen by eye.
"""

import numpy as np

from zsad_jax.datasets.synthetic import shapes
from zsad_jax.datasets.synthetic.canvas import (
  Family,
  Flaw,
  Scene,
  Stage,
  mix,
  rgb,
  tinted,
)
from zsad_jax.datasets.synthetic.shapes import Array, Rng

Color = tuple[float, float, float]
STEEL = (0.6, 0.61, 0.63)
BRASS = (0.74, 0.6, 0.34)


def _metal(stage: Stage, rng: Rng, color: Color) -> Array:
  """Return an albedo (3, n, n): milled streaks and cloudy reflections."""
  streaks = stage.noise(rng, 3, 60)
  return tinted(rng, color) * (
    1 + (0.07 * streaks + 0.14 * stage.clouds(rng, 2))
  )


def hex_nut(rng: Rng, size: int, flaw: Flaw) -> Scene:
  """Draw a steel nut from above on a pale bench: chamfer, bore, thread."""
  stage = Stage(rng, size, tinted(rng, (0.74, 0.72, 0.68)), turn=3, wander=0.1)
  x, y, metal = stage.x, stage.y, _metal(stage, rng, STEEL)
  radius = np.hypot(x, y)
  body = np.maximum(shapes.polygon(x, y, 6, 0.62), radius - 0.7)
  body = stage.chipped(body, flaw)
  bore = 0.33 * rng.uniform(0.92, 1.08)
  stage.paint(body, metal, lift=0.16, bevel=0.03, gloss=0.35)
  chamfer = np.maximum(radius - 0.59, 0)
  stage.height -= 0.7 * chamfer * stage.cover(body)
  thread = radius - bore - 0.09
  turns = 1 - 0.35 * np.sin(radius * 150 + np.arctan2(y, x))
  stage.paint(thread, metal * (0.6 * turns), lift=-0.09, bevel=0.09)
  stage.cut(radius - bore)
  return stage.render()


def gear(rng: Rng, size: int, flaw: Flaw) -> Scene:
  """Draw a brass gear with holes; a tooth may be missing."""
  stage = Stage(rng, size, tinted(rng, (0.24, 0.27, 0.31)), turn=3, wander=0.08)
  x, y, metal = stage.x, stage.y, _metal(stage, rng, BRASS)
  teeth = 18
  angle, radius = np.arctan2(y, x), np.hypot(x, y)
  tooth, phase = shapes.sawtooth(angle * teeth / (2 * np.pi))
  profile = shapes.smoothstep((0.32 - np.abs(phase)) * 5 + 0.5)
  lost = tooth == flaw.pick("missing_part", teeth) - teeth // 2
  if flaw.kind == "missing_part":
    profile = np.where(lost, 0.1, profile)
  body = stage.chipped(radius - 0.63 - 0.13 * profile, flaw)
  stage.paint(body, metal, lift=0.09, bevel=0.025, gloss=0.4)
  stage.paint(
    shapes.ring(x, y, 0.38, 0.26),
    metal * 0.85,
    lift=-0.04,
    bevel=0.03,
    gloss=0.3,
  )
  for k in range(5):
    hx, hy = shapes.turned(x, y, k * 2 * np.pi / 5)
    stage.cut(shapes.circle(hx - 0.38, hy, 0.085))
  stage.cut(np.minimum(radius - 0.13, shapes.box(x - 0.13, y, 0.05, 0.045)))
  return stage.render()


def bolt(rng: Rng, size: int, flaw: Flaw) -> Scene:
  """Draw a hexagon bolt on its side; it may be bent or its thread worn."""
  stage = Stage(rng, size, tinted(rng, (0.5, 0.53, 0.5)), turn=3, wander=0.06)
  x, y = stage.x, stage.y
  bend = flaw.amount("bent_part", 0.25, 0.5) * flaw.sign()
  y = y - bend * np.maximum(x - 0.05, 0) ** 2
  metal = _metal(stage, rng, (0.62, 0.6, 0.56))
  shaft = shapes.box(x - 0.2, y, 0.56, 0.165, 0.03)
  threaded = x > rng.uniform(-0.12, -0.02)
  worn = flaw.amount("missing_part", 0.15, 0.6)
  if worn:
    threaded = threaded & ~(np.abs(x - worn) < flaw.rng.uniform(0.08, 0.16))
  wave = np.sin(x * 92 + y * 9) * threaded
  shaft = stage.chipped(shaft - 0.016 * wave, flaw)
  stage.paint(
    shaft, metal * (1 + 0.22 * wave), lift=0.16, bevel=0.165, gloss=0.5
  )
  stage.height += 0.012 * wave * stage.cover(shaft)
  head = shapes.box(x + 0.5, y, 0.17, 0.34, 0.05)
  stage.paint(head, metal * 1.05, lift=0.14, bevel=0.05, gloss=0.5)
  for side in (-1, 1):  # The outer two of three visible flats slope away.
    flat = np.maximum(side * y - 0.16, 0)
    stage.height -= 0.5 * flat * stage.cover(head)
  stage.paint(
    shapes.box(x + 0.3, y, 0.035, 0.37, 0.02),
    metal,
    lift=0.02,
    bevel=0.02,
    gloss=0.5,
  )
  return stage.render()


def key(rng: Rng, size: int, flaw: Flaw) -> Scene:
  """Draw a door key: round bow, ribbed blade, cut teeth."""
  stage = Stage(rng, size, tinted(rng, (0.36, 0.22, 0.19)), turn=3, wander=0.05)
  x, metal = stage.x, _metal(stage, rng, (0.7, 0.68, 0.6))
  bend = flaw.amount("bent_part", 0.22, 0.45) * flaw.sign()
  y = stage.y - bend * np.maximum(x + 0.05, 0) ** 2
  blade = shapes.box(x - 0.2, y, 0.55, 0.1, 0.03)
  lost = flaw.pick("missing_part", 4)
  depth = rng.uniform(0.05, 0.15, 5).tolist()
  for i in range(5):
    middle = 0.12 + 0.14 * i
    if lost >= 0 and i in (lost, lost + 1):  # Filed down: the bit is gone.
      notch = shapes.box(x - middle, y - 0.1, 0.1, 0.115)
    else:
      notch = (np.abs(x - middle) * 1.4 - (y - 0.1 + depth[i])) * 0.6
    blade = np.maximum(blade, -notch)
  bow = shapes.polygon(x + 0.5, y, 8, 0.29) - 0.01
  body = stage.chipped(np.minimum(blade, bow), flaw)
  stage.paint(body, metal, lift=0.08, bevel=0.03, gloss=0.45)
  stage.paint(
    shapes.box(x - 0.2, y + 0.045, 0.5, 0.016),
    metal * 0.7,
    lift=-0.03,
    bevel=0.016,
  )
  stage.paint(
    shapes.ring(x + 0.5, y, 0.22, 0.03),
    metal * 0.85,
    lift=-0.015,
    bevel=0.015,
    gloss=0.4,
  )
  stage.cut(shapes.circle(x + 0.6, y, 0.085))
  return stage.render()


def cable(rng: Rng, size: int, flaw: Flaw) -> Scene:
  """Draw the section of a three-core cable: sheath, insulation, strands."""
  stage = Stage(rng, size, tinted(rng, (0.8, 0.8, 0.78)), turn=3, wander=0.05)
  x, y = stage.x, stage.y
  grit = 1 + 0.06 * stage.noise(rng, 40)
  stage.paint(
    stage.chipped(shapes.circle(x, y, 0.84), flaw),
    tinted(rng, (0.5, 0.51, 0.53)) * grit,
    lift=0.1,
    bevel=0.05,
    gloss=0.15,
  )
  stage.paint(
    shapes.circle(x, y, 0.74),
    rgb(0.2, 0.2, 0.21) * grit,
    lift=-0.05,
    bevel=0.03,
  )
  colors = [
    tinted(rng, c)
    for c in ((0.66, 0.54, 0.2), (0.2, 0.36, 0.62), (0.46, 0.27, 0.19))
  ]
  shine = rng.normal(1, 0.1, shapes.TABLE**2).astype(np.float32)
  lost, wrong = flaw.pick("missing_part", 3), flaw.pick("wrong_color", 3)
  moved = flaw.pick("misplaced_part", 3)
  if wrong >= 0:
    colors[wrong] = colors[(wrong + 1) % 3]
  for k, color in enumerate(colors):
    if k == lost:
      continue
    angle = k * 2.0944 + (k == moved) * 0.3 * flaw.sign()
    wx, wy = shapes.turned(x, y, angle)
    _core(stage, wx - 0.385, wy, color * grit, shine)
  return stage.render()


def _core(stage: Stage, x: Array, y: Array, color: Array, shine: Array) -> None:
  """Draw one insulated core with 19 copper strands around (0, 0)."""
  stage.paint(
    shapes.circle(x, y, 0.325), color, lift=0.06, bevel=0.03, gloss=0.2
  )
  stage.paint(
    shapes.circle(x, y, 0.232), rgb(0.14, 0.1, 0.08), lift=-0.03, bevel=0.02
  )
  edge, strand = shapes.hexagons(x / 0.09, y / 0.09)
  outline = np.maximum(edge * 0.09 + 0.002, shapes.circle(x, y, 0.225))
  copper = rgb(0.8, 0.47, 0.28) * shine.take(strand)
  stage.paint(outline, copper, lift=0.03, bevel=0.035, gloss=0.5)


def circuit_board(rng: Rng, size: int, flaw: Flaw) -> Scene:
  """Draw a board: traces, one chip, two rows of parts, round caps."""
  stage = Stage(
    rng, size, tinted(rng, (0.7, 0.69, 0.67)), turn=0.35, wander=0.06
  )
  x, y = stage.x, stage.y
  mask = tinted(rng, (0.12, 0.36, 0.22)) * (1 + 0.05 * stage.noise(rng, 30))
  board = stage.chipped(shapes.box(x, y, 0.8, 0.66, 0.05), flaw)
  stage.paint(board, mask, lift=0.05, bevel=0.015, gloss=0.15)
  _traces(stage, rng, board)
  _components(stage, x, y, flaw)
  _chip(stage, x + 0.3, y + 0.3)
  for dx in (0.3, 0.6):
    stage.paint(
      shapes.circle(x - dx, y + 0.32, 0.13),
      rgb(0.55, 0.56, 0.6),
      lift=0.1,
      bevel=0.03,
      gloss=0.5,
    )
    stage.paint(
      np.maximum(shapes.circle(x - dx, y + 0.32, 0.115), x - dx + 0.05),
      rgb(0.1, 0.1, 0.14),
    )
  return stage.render()


def _traces(stage: Stage, rng: Rng, board: Array) -> None:
  """Draw copper under the solder mask: lighter lines, and plated holes."""
  u, v = stage.x * 9 + 0.5, stage.y * 9
  column, across = shapes.sawtooth(u)
  row, along = shapes.sawtooth(v)
  draws = rng.random(shapes.TABLE**2).astype(np.float32)
  tracks = np.where(
    draws.take(shapes.hashed(column, row // 4)) < 0.45,
    np.abs(across),
    np.abs(along) + 9 * (draws.take(shapes.hashed(row, column // 4)) > 0.4),
  )
  line = np.clip((0.13 - tracks) * 9, 0, 1) * stage.cover(board)
  stage.albedo = mix(stage.albedo, rgb(0.24, 0.5, 0.3), 0.75 * line)
  corner = np.hypot(np.abs(stage.x) - 0.71, np.abs(stage.y) - 0.57)
  stage.paint(corner - 0.055, rgb(0.75, 0.68, 0.42), gloss=0.4)
  stage.cut(corner - 0.03)


def _components(stage: Stage, x: Array, y: Array, flaw: Flaw) -> None:
  """Draw two rows of four soldered parts: resistors and capacitors."""
  column, px = shapes.sawtooth(x / 0.38)
  row, py = shapes.sawtooth((y + 0.02) / 0.32)
  px, py, place = px * 0.38, py * 0.32, column + 2 + 4 * row
  bare = (np.abs(column + 0.5) > 2) | (np.abs(row - 0.5) > 1)
  pads = shapes.box(np.abs(px) - 0.1, py, 0.045, 0.075) + bare
  stage.paint(pads, rgb(0.78, 0.77, 0.7), lift=0.006, bevel=0.02, gloss=0.4)
  lost, moved = flaw.pick("missing_part", 8), flaw.pick("misplaced_part", 8)
  bare |= place == lost
  if moved >= 0:
    tx, ty = shapes.turned(
      px - 0.03, py, flaw.rng.uniform(0.5, 1.3) * flaw.sign()
    )
    px, py = (np.where(place == moved, a, b) for a, b in ((tx, px), (ty, py)))
  stage.paint(
    shapes.box(px, py, 0.105, 0.06, 0.01) + bare,
    rgb(0.74, 0.74, 0.74),
    lift=0.05,
    bevel=0.015,
    gloss=0.4,
  )
  resistor = np.mod(place, 3) != 0
  body = mix(rgb(0.66, 0.5, 0.34), rgb(0.13, 0.13, 0.15), resistor)
  stage.paint(shapes.box(px, py, 0.068, 0.062) + bare, body, gloss=0.1)
  label = shapes.box(px, py, 0.03, 0.02) + (bare | ~resistor)
  stage.paint(label, rgb(0.8, 0.8, 0.78))


def _chip(stage: Stage, x: Array, y: Array) -> None:
  """Draw a chip with ten legs around (0, 0)."""
  spacing = np.abs(shapes.sawtooth(x / 0.1 + 0.5)[1]) * 0.1
  legs = np.maximum(
    np.maximum(spacing - 0.028, np.abs(y) - 0.25), np.abs(x) - 0.25
  )
  stage.paint(legs, rgb(0.76, 0.76, 0.74), lift=0.02, bevel=0.02, gloss=0.5)
  stage.paint(
    shapes.box(x, y, 0.28, 0.17, 0.015),
    rgb(0.13, 0.13, 0.14),
    lift=0.06,
    bevel=0.02,
    gloss=0.15,
  )
  stage.paint(shapes.circle(x + 0.21, y + 0.1, 0.025), rgb(0.3, 0.3, 0.3))
  text = shapes.box(shapes.sawtooth(x / 0.06)[1] * 0.06, y, 0.02, 0.03)
  stage.paint(np.maximum(text, np.abs(x) - 0.18), rgb(0.55, 0.55, 0.55))


def zipper(rng: Rng, size: int, flaw: Flaw) -> Scene:
  """Draw two tapes joined by metal teeth; one may be missing or bent."""
  stage = Stage(
    rng, size, tinted(rng, (0.68, 0.67, 0.64)), turn=0.12, wander=0.05
  )
  x, y = stage.x, stage.y
  weave = np.sin(x * 95 + 2 * y) * np.sin(y * 80)
  cloth = tinted(rng, (0.17, 0.19, 0.27)) * (
    1 + 0.16 * weave + 0.1 * stage.noise(rng, 50)
  )
  stage.paint(np.abs(x) - 0.62, cloth, lift=0.04, bevel=0.03)
  stage.height += 0.006 * weave * stage.region
  for edge in (0.2, 0.55):
    seam = np.abs(np.abs(x) - edge) + 0.012 * np.sin(y * 60)
    stage.paint(seam - 0.018, cloth * 1.35, lift=0.012, bevel=0.015)
  metal = _metal(stage, rng, (0.72, 0.62, 0.42))
  pitch, row_lost = 0.17, flaw.pick("missing_part", 8) - 4
  row_bent, turn = flaw.pick("bent_part", 8) - 4, flaw.rng.uniform(0.4, 0.8)
  for side in (-1, 1):
    row, along = shapes.sawtooth(y / pitch + side / 4)
    tx, ty = side * x - 0.055, along * pitch
    if side == 1 and flaw.kind == "bent_part":
      bx, by = shapes.turned(tx - 0.05, ty, turn)
      here = row == row_bent
      tx, ty = np.where(here, bx, tx), np.where(here, by, ty)
    tooth = np.minimum(
      shapes.box(tx, ty, 0.095, 0.034, 0.015),
      shapes.box(tx - 0.075, ty, 0.03, 0.06, 0.015),
    )
    if side == 1 and flaw.kind == "missing_part":
      tooth = np.where(row == row_lost, 0.1, tooth)
    stage.paint(tooth, metal, lift=0.07, bevel=0.03, gloss=0.6)
  return stage.render()


def solar_cell(rng: Rng, size: int, flaw: Flaw) -> Scene:
  """Draw a blue silicon cell: fine fingers across three busbars."""
  stage = Stage(
    rng, size, tinted(rng, (0.86, 0.86, 0.84)), turn=0.06, wander=0.03
  )
  x, y = stage.x, stage.y
  _, _, key = shapes.pebbles(x * 6, y * 6, rng)  # Grains of the wafer.
  grain = rng.normal(1, 0.09, shapes.TABLE**2).astype(np.float32).take(key)
  wafer = tinted(rng, (0.13, 0.19, 0.38)) * grain
  body = stage.chipped(shapes.box(x, y, 0.84, 0.84, 0.1), flaw)
  stage.paint(
    body,
    wafer * (1 + 0.05 * stage.clouds(rng, 3)),
    lift=0.03,
    bevel=0.02,
    gloss=0.35,
  )
  inner = body + 0.05
  row, across = shapes.sawtooth(y * 13)
  finger = (np.abs(across) - 0.09) / 13
  first = int(flaw.rng.integers(-7, 5))
  gap = np.abs(x - flaw.rng.uniform(-0.5, 0.5)) < flaw.rng.uniform(0.12, 0.3)
  if flaw.kind == "missing_part":  # Fingers that were not printed.
    gap &= (row >= first) & (row < first + 3)
    finger = np.where(gap, 0.1, finger)
  silver = rgb(0.68, 0.69, 0.7)
  stage.paint(np.maximum(finger, inner), silver, gloss=0.3)
  moved = flaw.pick("misplaced_part", 3)
  for k in range(3):
    shift = 0.1 * flaw.sign() if k == moved else 0.0
    bar = np.abs(x - 0.5 * (k - 1) - shift) - 0.035
    stage.paint(
      np.maximum(bar, inner), silver, lift=0.01, bevel=0.01, gloss=0.5
    )
  return stage.render()


FAMILIES = {
  "hex_nut": Family(
    hex_nut, "object", ("scratch", "dent", "discoloration"), ("chipped_edge",)
  ),
  "gear": Family(
    gear,
    "object",
    ("scratch", "discoloration"),
    ("missing_part", "chipped_edge"),
  ),
  "bolt": Family(
    bolt, "object", ("scratch", "discoloration"), ("bent_part", "missing_part")
  ),
  "key": Family(
    key, "object", ("scratch", "contamination"), ("bent_part", "missing_part")
  ),
  "cable": Family(
    cable,
    "object",
    ("hole",),
    ("chipped_edge", "missing_part", "wrong_color", "misplaced_part"),
  ),
  "circuit_board": Family(
    circuit_board,
    "object",
    ("scratch", "stain", "contamination"),
    ("missing_part", "misplaced_part"),
  ),
  "zipper": Family(
    zipper, "object", ("cut", "discoloration"), ("missing_part", "bent_part")
  ),
  "solar_cell": Family(
    solar_cell,
    "object",
    ("crack", "discoloration"),
    ("chipped_edge", "missing_part", "misplaced_part"),
  ),
}
