"""Objects of random proportions: an outline, and parts arranged on it.

A function gives the outline of one kind of object, `(style, x, y) -> sdf`;
`_outlined` paints it with studs, holes, grooves or bands. A structural flaw
removes, moves or recolours one of these parts, or bends or chips the object.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from zsad_jax.datasets.synthetic import shapes
from zsad_jax.datasets.synthetic.canvas import Flaw, Number, Scene, Stage, mix
from zsad_jax.datasets.synthetic.invented import Style, StyledFamily
from zsad_jax.datasets.synthetic.invented_textures import OVERLAYS

Outline = Callable[[Style, np.ndarray, np.ndarray], np.ndarray]


def disc(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return a disc."""
  return shapes.circle(x, y, style.between(0, 0.5, 0.8))


def washer(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return a ring."""
  radius = style.between(0, 0.45, 0.6)
  return shapes.ring(x, y, radius, style.between(1, 0.2, 0.6) * radius)


def plate(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return a plate with rounded corners."""
  return shapes.box(
    x,
    y,
    style.between(0, 0.5, 0.8),
    style.between(1, 0.25, 0.7),
    style.between(2, 0, 0.2),
  )


def block(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return a regular polygon."""
  return shapes.polygon(
    x, y, style.one_of(0, (3, 5, 6, 7, 8)), style.between(1, 0.4, 0.68)
  )


def star(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return a star."""
  arms, depth = (
    style.one_of(0, (4, 5, 6, 7, 8, 9, 12)),
    style.between(1, 0.06, 0.3),
  )
  radius = np.hypot(x, y)
  wave = np.cos(arms * np.arctan2(y, x))
  return 0.8 * (radius - 0.58 - depth * wave * style.between(2, 0.5, 1))


def cross(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return a cross."""
  long, wide = style.between(0, 0.55, 0.8), style.between(1, 0.15, 0.3)
  return np.minimum(
    shapes.box(x, y, long, wide, 0.05),
    shapes.box(x, y, wide, long * style.between(2, 0.6, 1), 0.05),
  )


def bracket(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return an L-shaped bracket."""
  long, wide = style.between(0, 0.5, 0.75), style.between(1, 0.15, 0.28)
  return np.minimum(
    shapes.box(x, y + long - wide, long, wide, 0.05),
    shapes.box(x + long - wide, y, wide, long, 0.05),
  )


def rod(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return a rod with a knob."""
  wide = style.between(0, 0.1, 0.28)
  knob = shapes.circle(x - 0.55, y, wide * style.between(1, 1, 1.8))
  return np.minimum(
    shapes.box(x, y, 0.78, wide, wide * style.one_of(2, (0, 1))), knob
  )


def vase(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return a vase, whose half width is a smooth function of the height."""
  half = 0.36 + sum(
    style.between(i, -0.13, 0.13) * np.cos((i + 1) * 2 * y + 6 * i)
    for i in range(3)
  )
  return np.maximum(0.8 * (np.abs(x) - half), np.abs(y) - 0.75)


def frame(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return a frame."""
  wide, tall = style.between(0, 0.5, 0.75), style.between(1, 0.4, 0.75)
  thick = style.between(2, 0.06, 0.14)
  return np.abs(shapes.box(x, y, wide, tall, 0.12)) - thick


def lens(style: Style, x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Return an ellipse."""
  flat = style.between(0, 0.45, 0.85)
  return (np.hypot(x, y / flat) - 0.72) * flat


def _outlined(
  outline: Outline,
  style: Style,
  rng: np.random.Generator,
  size: int,
  flaw: Flaw,
) -> Scene:
  """Draw an object with this outline and the parts of its style."""
  stage = Stage(rng, size, style.tint(rng, 2), turn=3, wander=0.1, zoom=0.2)
  x, y = stage.x, stage.y
  bend = flaw.amount("bent_part", 0.2, 0.45) * flaw.sign()
  if bend:
    y = y - bend * np.maximum(x - flaw.rng.uniform(-0.3, 0.2), 0) ** 2
  sdf = stage.chipped(outline(style, x, y), flaw)
  color, gloss = style.surface(stage, rng, style.tint(rng, 0))
  stage.paint(
    sdf,
    color,
    lift=style.between(5, 0.04, 0.18),
    bevel=style.between(6, 0.02, 0.3),
    gloss=gloss,
  )
  for arrange in (
    style.one_of(7, (_bands, _groove, _split, _plain)),
    style.one_of(8, (_round, _grid, _line)),
  ):
    arrange(stage, style, rng, flaw, x, y, sdf, gloss)
  return stage.render()


def _plain(*_: object) -> None:
  """Draw no second decoration."""


def _bands(
  stage: Stage,
  style: Style,
  rng: np.random.Generator,
  flaw: Flaw,
  x: np.ndarray,
  y: np.ndarray,
  sdf: np.ndarray,
  gloss: Number,
) -> None:
  """Draw bands across the object."""
  del flaw, y, gloss
  _, across = shapes.sawtooth(x * style.between(9, 1.5, 6))
  band = np.maximum((np.abs(across) - 0.22) / 4, sdf + 0.03)
  stage.paint(
    band, style.tint(rng, 1), lift=style.between(10, -0.02, 0.02), bevel=0.03
  )


def _groove(
  stage: Stage,
  style: Style,
  rng: np.random.Generator,
  flaw: Flaw,
  x: np.ndarray,
  y: np.ndarray,
  sdf: np.ndarray,
  gloss: Number,
) -> None:
  """Draw a line along the outline."""
  del rng, flaw, x, y
  line = np.abs(sdf + style.between(9, 0.06, 0.16)) - 0.018
  stage.paint(line, 0.6 * stage.albedo, lift=-0.03, bevel=0.02, gloss=gloss)


def _split(
  stage: Stage,
  style: Style,
  rng: np.random.Generator,
  flaw: Flaw,
  x: np.ndarray,
  y: np.ndarray,
  sdf: np.ndarray,
  gloss: Number,
) -> None:
  """Paint one half in another colour."""
  del flaw, y
  half = np.maximum(sdf, x - style.between(9, -0.3, 0.3))
  stage.paint(half, style.tint(rng, 1), gloss=gloss)


def _round(
  stage: Stage,
  style: Style,
  rng: np.random.Generator,
  flaw: Flaw,
  x: np.ndarray,
  y: np.ndarray,
  sdf: np.ndarray,
  gloss: Number,
) -> None:
  """Draw equal parts on a circle."""
  count, away = style.one_of(9, (3, 4, 5, 6, 8)), style.between(10, 0.22, 0.45)
  angles = 2 * np.pi * np.arange(count) / count
  places = away * np.stack([np.cos(angles), np.sin(angles)], 1)
  _parts(stage, style, rng, flaw, x, y, sdf, gloss, places)


def _grid(
  stage: Stage,
  style: Style,
  rng: np.random.Generator,
  flaw: Flaw,
  x: np.ndarray,
  y: np.ndarray,
  sdf: np.ndarray,
  gloss: Number,
) -> None:
  """Draw equal parts in rows and columns."""
  step = style.between(10, 0.25, 0.4)
  places = [
    ((i - 0.5) * step, (j - 0.5) * step)
    for i in range(2)
    for j in range(style.one_of(9, (2, 3)))
  ]
  _parts(stage, style, rng, flaw, x, y, sdf, gloss, places)


def _line(
  stage: Stage,
  style: Style,
  rng: np.random.Generator,
  flaw: Flaw,
  x: np.ndarray,
  y: np.ndarray,
  sdf: np.ndarray,
  gloss: Number,
) -> None:
  """Draw equal parts in a row."""
  count = style.one_of(9, (2, 3, 4))
  places = [((i - (count - 1) / 2) * 0.32, 0) for i in range(count)]
  _parts(stage, style, rng, flaw, x, y, sdf, gloss, places)


def _parts(
  stage: Stage,
  style: Style,
  rng: np.random.Generator,
  flaw: Flaw,
  x: np.ndarray,
  y: np.ndarray,
  sdf: np.ndarray,
  gloss: Number,
  places: Sequence | np.ndarray,
) -> None:
  """Draw studs, recesses or holes at the places; a flaw affects one."""
  color, odd = style.tint(rng, 1), style.tint(rng, 2)
  radius = style.between(11, 0.06, 0.13)
  sides = style.one_of(4, (3, 4, 6, 60, 60))
  through = style.one_of(3, (False, False, True))
  through &= flaw.kind != "wrong_color"  # A hole has no colour.
  hit = int(flaw.rng.integers(len(places)))
  for i, (px, py) in enumerate(places):
    if i == hit and flaw.kind == "missing_part":
      continue
    if i == hit and flaw.kind == "misplaced_part":
      angle = flaw.rng.uniform(0, 2 * np.pi)
      px, py = px + 0.11 * np.cos(angle), py + 0.11 * np.sin(angle)
    part = shapes.polygon(x - px, y - py, sides, radius)
    if through:
      stage.cut(part)
      continue
    wrong = flaw.amount("wrong_color", 0.6, 1) if i == hit else 0.0
    stage.paint(
      np.maximum(part, sdf),
      mix(color, odd, wrong),
      lift=style.between(2, -0.04, 0.06),
      bevel=0.03,
      gloss=gloss,
    )


STRUCTURAL = (
  "missing_part",
  "misplaced_part",
  "wrong_color",
  "bent_part",
  "chipped_edge",
)

FAMILIES = {
  outline.__name__: StyledFamily(
    functools.partial(_outlined, outline), "object", OVERLAYS, STRUCTURAL
  )
  for outline in (
    disc,
    washer,
    plate,
    block,
    star,
    cross,
    bracket,
    rod,
    vase,
    frame,
    lens,
  )
}
