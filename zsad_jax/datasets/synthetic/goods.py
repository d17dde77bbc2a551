"""Object families of food, pharmacy and household.

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

# Strokes of a printed digit: middle (x, y), then horizontal and vertical.
SEGMENTS = (
  (0, -0.1, 1, 0),
  (0, 0, 1, 0),
  (0, 0.1, 1, 0),
  (-0.045, -0.05, 0, 1),
  (0.045, -0.05, 0, 1),
  (-0.045, 0.05, 0, 1),
  (0.045, 0.05, 0, 1),
)


def bottle(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw a brown glass bottle from above: shoulder, rim and mouth."""
  stage = Stage(rng, size, tinted(rng, (0.87, 0.87, 0.85)), turn=3, wander=0.05)
  x, y, radius = stage.x, stage.y, np.hypot(stage.x, stage.y)
  glass = tinted(rng, (0.3, 0.16, 0.07), 0.04)
  # Light from below leaves through the neck and, weaker, the shoulder.
  through = (
    0.7
    + 0.6
    * shapes.smoothstep((0.8 - radius) * 3.2)
    * (0.6 + 0.4 * np.cos(radius * 30))
    + 0.15 * stage.clouds(rng, 2)
  )
  stage.paint(radius - 0.82, glass * through, lift=0.16, bevel=0.4, gloss=0.7)
  rim = stage.chipped(radius - 0.47, flaw, 0.08, 0.18)
  stage.paint(rim, glass * 1.9, lift=0.1, bevel=0.07, gloss=0.9)
  mouth = np.maximum(radius - 0.34, rim)
  stage.paint(mouth, glass * 0.35, lift=-0.12, bevel=0.05)
  floor = np.hypot(x - 0.02, y - 0.02)
  amber = tinted(rng, (0.86, 0.52, 0.2)) * (1.05 - 1.6 * floor)
  stage.albedo = mix(stage.albedo, amber, stage.cover(floor - 0.24, 0.12))
  for k in range(rng.integers(2, 4)):  # Windows mirrored in the shoulder.
    mx, my = shapes.turned(x, y, 2.2 * k + rng.uniform(-0.4, 0.4))
    arc = np.maximum(
      np.abs(np.hypot(mx, my) - 0.64) - 0.035, np.abs(my) - 0.5 * mx
    )
    stage.albedo = mix(
      stage.albedo, rgb(0.95, 0.92, 0.85), 0.7 * stage.cover(arc, 0.03)
    )
  return stage.render()


def capsule(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw a two-coloured gelatine capsule with a printed code."""
  stage = Stage(
    rng, size, tinted(rng, (0.84, 0.84, 0.82)), turn=0.5, wander=0.08
  )
  x, y = stage.x, stage.y
  slip = flaw.amount("misplaced_part", 0.07, 0.14) * flaw.sign()
  cap = shapes.box(x, y - slip, 0.74, 0.29, 0.29)
  body = shapes.box(x, y, 0.74, 0.27, 0.27)
  red, cream = tinted(rng, (0.64, 0.17, 0.13)), tinted(rng, (0.87, 0.78, 0.6))
  for half, end, color in ((body, 0.02 - x, cream), (cap, x - 0.08, red)):
    shade = 1 + 0.05 * stage.clouds(rng, 3)
    outline = np.maximum(half, end)
    stage.paint(outline, color * shade, gloss=0.7)
    t = np.clip(-half / 0.29, 0, 1)
    stage.height = np.where(outline < 0, 0.22 * t * (2 - t), stage.height)
  cap = np.maximum(cap, x - 0.08)
  stage.paint(np.maximum(np.abs(x - 0.03) - 0.015, cap), red * 0.75)
  _code(stage, rng, x - 0.34, y, flaw)
  return stage.render()


def _code(
  stage: Stage,
  rng: np.random.Generator,
  x: np.ndarray,
  y: np.ndarray,
  flaw: Flaw,
) -> None:
  """Print three digits; a print error smears them or omits some."""
  pattern = rng.random((3, 7)) < 0.72
  fault = flaw.pick("print_error", 3)
  shown = (0, 1, 2) if fault < 0 else ((0,), (0, 1), (0, 1, 2))[fault]
  ink, width = np.full(stage.x.shape, 9, np.float32), 0.03
  for k in shown:
    dx, dy = x + 0.15 - 0.15 * k, y
    for on, (bx, by, wide, tall) in zip(pattern[k], SEGMENTS):
      if on:
        bar = shapes.box(
          dx - bx, dy - by, 0.045 * wide + width / 2, 0.05 * tall + width / 2
        )
        ink = np.minimum(ink, bar)
  cover = stage.cover(ink, 0.01)
  if fault == 2:
    step = max(1, int(0.06 / stage.px))
    cover = 0.5 * cover + 0.5 * np.roll(cover, (step, step), (0, 1))
  stage.albedo = mix(stage.albedo, rgb(0.16, 0.15, 0.2), 0.85 * cover)


def toothbrush(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw a brush head from above; a tuft may be missing or splayed."""
  stage = Stage(
    rng, size, tinted(rng, (0.36, 0.38, 0.42)), turn=0.25, wander=0.05
  )
  x, y = stage.x, stage.y
  plastic = tinted(rng, (0.82, 0.84, 0.86))
  handle = np.maximum(
    np.abs(x) - 0.15 - 0.12 * shapes.smoothstep(1.2 - y), 0.5 - y
  )
  outline = np.minimum(shapes.box(x, y + 0.12, 0.42, 0.74, 0.34), handle)
  stage.paint(outline, plastic, lift=0.1, bevel=0.08, gloss=0.5)
  _tufts(stage, rng, flaw)
  return stage.render()


def _tufts(stage: Stage, rng: np.random.Generator, flaw: Flaw) -> None:
  """Draw 4 x 7 tufts with bare corners, each in a socket."""
  column, dx = shapes.sawtooth(stage.x / 0.18)
  row, dy = shapes.sawtooth((stage.y + 0.12) / 0.18 + 0.5)
  dx, dy, place = dx * 0.18, dy * 0.18, (column + 2) + 4 * (row + 3)
  bare = (np.abs(column + 0.5) > 2) | (np.abs(row) > 3)
  bare |= (np.abs(column + 0.5) > 1) & (np.abs(row) == 3)
  socket = shapes.circle(dx, dy, 0.07) + bare
  stage.paint(socket, rgb(0.22, 0.23, 0.25), lift=-0.03, bevel=0.02)
  inner = 4 + int(flaw.rng.integers(20))  # In one of the five full rows.
  lost = inner if flaw.kind == "missing_part" else -1
  splayed = inner if flaw.kind == "bent_part" else -1
  fringe = 1 + 0.3 * stage.noise(rng, 45) + 0.15 * stage.noise(rng, 25)
  blue = tinted(rng, (0.2, 0.46, 0.72))
  white = tinted(rng, (0.88, 0.9, 0.9))
  color = mix(white, blue, np.mod(column + row, 3) == 0) * (0.85 * fringe)
  upright = bare | (place == lost) | (place == splayed)
  stage.paint(
    shapes.circle(dx, dy, 0.086) + upright + 0.03 * (fringe - 1),
    color,
    lift=0.09,
    bevel=0.06,
  )
  if splayed >= 0:
    tx = stage.x - 0.18 * (splayed % 4 - 1.5)
    ty = stage.y + 0.12 - 0.18 * (splayed // 4 - 3)
    tx, ty = shapes.turned(tx, ty, flaw.rng.uniform(0, 2 * np.pi))
    lying = shapes.circle((tx - 0.1) * 0.5, ty, 0.1) + 0.05 * (fringe - 1)
    stage.paint(lying, white * (0.8 * fringe), lift=0.07, bevel=0.08)


def cookie(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw a baked biscuit with chocolate chips and a browned rim."""
  stage = Stage(rng, size, tinted(rng, (0.8, 0.8, 0.82)), turn=3, wander=0.07)
  x, y = stage.x, stage.y
  angle = np.arctan2(y, x)
  radius = 0.74 + sum(
    0.036 / k * np.sin(k * angle + rng.uniform(0, 6)) for k in (2, 3, 5)
  )
  body = stage.chipped(np.hypot(x, y) - radius, flaw, 0.14, 0.27)
  crumb, lumps = stage.clouds(rng, 12), stage.clouds(rng, 3)
  baked = np.clip((np.hypot(x, y) / radius) ** 5 + 0.25 * lumps, 0, 1)
  dough = mix(tinted(rng, (0.8, 0.6, 0.36)), rgb(0.5, 0.29, 0.13), 0.75 * baked)
  stage.paint(body, dough * (1 + 0.13 * crumb), lift=0.15, bevel=0.3)
  stage.height += (0.014 * crumb + 0.03 * lumps) * stage.region
  nearest, gap, key = shapes.pebbles(x * 3.6 + 0.2 * lumps, y * 3.6, rng)
  sizes = rng.uniform(0.1, 0.36, shapes.TABLE**2).astype(np.float32)
  chip = np.maximum(
    (nearest - sizes.take(key)) / 3.6 + 0.012 * crumb, (0.1 - gap) / 3.6
  )
  stage.paint(
    np.maximum(chip, body + 0.08),
    rgb(0.2, 0.11, 0.07),
    lift=0.03,
    bevel=0.04,
    gloss=0.3,
  )
  return stage.render()


def button(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw a button of marbled resin; one of its four holes may be missing."""
  stage = Stage(rng, size, tinted(rng, (0.23, 0.31, 0.4)), turn=3, wander=0.08)
  x, y = stage.x, stage.y
  cloth = np.sin(x * 70) * np.sin(y * 70)
  stage.albedo *= 1 + 0.12 * cloth
  bands = np.sin(6 * x + 5 * stage.noise(rng, 1.5))
  swirl = stage.clouds(rng, 1.6) + 0.3 * bands
  resin = mix(
    tinted(rng, (0.82, 0.74, 0.62)),
    tinted(rng, (0.58, 0.46, 0.34)),
    shapes.smoothstep(0.5 + 0.9 * swirl),
  )
  body = stage.chipped(shapes.circle(x, y, 0.7), flaw)
  stage.paint(body, resin, lift=0.12, bevel=0.1, gloss=0.6)
  stage.paint(
    shapes.circle(x, y, 0.5), resin * 0.96, lift=-0.06, bevel=0.1, gloss=0.5
  )
  lost, moved = flaw.pick("missing_part", 4), flaw.pick("misplaced_part", 4)
  for k in range(4):
    if k == lost:
      continue
    hx, hy = shapes.turned(x, y, k * np.pi / 2)
    if k == moved:
      hx, hy = hx - 0.12, hy + 0.08 * flaw.sign()
    hole = np.hypot(hx - 0.2, hy) - 0.085
    stage.paint(hole - 0.03, resin * 0.9, lift=-0.02, bevel=0.03)
    stage.cut(hole)
  return stage.render()


def tablet(rng: np.random.Generator, size: int, flaw: Flaw) -> Scene:
  """Draw a pressed white pill: rounded rim, a score line, two letters."""
  stage = Stage(rng, size, tinted(rng, (0.3, 0.42, 0.46)), turn=3, wander=0.08)
  x, y = stage.x, stage.y
  powder = 1 + 0.035 * stage.noise(rng, 60) + 0.03 * stage.clouds(rng, 5)
  chalk = tinted(rng, (0.86, 0.84, 0.79)) * powder
  body = stage.chipped(shapes.circle(x, y, 0.68), flaw, 0.1, 0.22)
  stage.paint(body, chalk, lift=0.16, bevel=0.24, gloss=0.12)
  rim = np.maximum(shapes.ring(x, y, 0.56, 0.03), body)
  stage.paint(rim, chalk * 0.93, lift=-0.02, bevel=0.015)
  line = np.maximum(np.maximum(np.abs(y) - 0.025, np.abs(x) - 0.5), body)
  if flaw.kind != "missing_part":
    stage.paint(line, chalk * 0.85, lift=-0.05, bevel=0.025)
  fault = flaw.pick("print_error", 2)
  for k, tall in enumerate((-0.26, 0.26)):
    if k == fault:
      continue
    stem = shapes.box(x + 0.08, y - tall, 0.025, 0.13)
    bow = shapes.ring(x, y - tall, 0.095, 0.05)
    stage.paint(np.minimum(stem, bow), chalk * 0.82, lift=-0.04, bevel=0.02)
  return stage.render()


FAMILIES = {
  "bottle": Family(
    bottle, "object", ("crack", "contamination", "stain"), ("chipped_edge",)
  ),
  "capsule": Family(
    capsule,
    "object",
    ("crack", "scratch", "dent"),
    ("print_error", "misplaced_part"),
  ),
  "toothbrush": Family(
    toothbrush,
    "object",
    ("contamination", "discoloration"),
    ("missing_part", "bent_part"),
  ),
  "cookie": Family(
    cookie, "object", ("crack", "hole", "contamination"), ("chipped_edge",)
  ),
  "button": Family(
    button,
    "object",
    ("scratch", "crack"),
    ("chipped_edge", "missing_part", "misplaced_part"),
  ),
  "tablet": Family(
    tablet,
    "object",
    ("crack", "stain"),
    ("chipped_edge", "missing_part", "print_error"),
  ),
}
