"""Random designs for pretraining.

A design has a noun, a material, a colour and the `Family` that draws it: one of
the textures of `invented_textures.py` or the objects of `invented_objects.py`,
with random proportions. None of them is a family of the benchmark.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from zsad_jax.datasets.synthetic.canvas import (
  Family,
  Flaw,
  Number,
  Scene,
  Stage,
  tinted,
)

Option = TypeVar("Option")

COLORS = {
  "white": (0.85, 0.84, 0.81),
  "gray": (0.5, 0.5, 0.5),
  "black": (0.13, 0.13, 0.14),
  "red": (0.64, 0.17, 0.14),
  "orange": (0.8, 0.45, 0.16),
  "yellow": (0.82, 0.7, 0.27),
  "green": (0.26, 0.47, 0.26),
  "blue": (0.2, 0.34, 0.6),
  "purple": (0.42, 0.26, 0.5),
  "brown": (0.42, 0.28, 0.18),
  "beige": (0.78, 0.69, 0.54),
  "pink": (0.8, 0.52, 0.54),
}
NEUTRAL = ("white", "gray", "black", "beige")
PLAIN = 0.6  # Share of designs on a neutral ground.
SPREAD = 0.06  # Relative variation of the tints of one colour name.


@dataclasses.dataclass(frozen=True)
class Style:
  """Colours, material and proportions of a design.

  Attributes:
    colors: three different names of `COLORS`: body, second colour, and the
      ground of an object or the odd colour of a texture.
    material: a key of `MATERIALS`.
    shape: numbers in [0, 1) that a family turns into its proportions.
  """

  colors: tuple[str, str, str]
  material: str
  shape: tuple[float, ...]

  def tint(self, rng: np.random.Generator, which: int) -> np.ndarray:
    """Return a tint (3, 1, 1) of the body (0), second (1) or ground (2)."""
    return tinted(rng, COLORS[self.colors[which]], SPREAD)

  def between(self, which: int, low: Number, high: Number) -> float:
    """Return proportion number `which`, scaled to [low, high)."""
    return low + (high - low) * self.shape[which]

  def one_of(self, which: int, options: Sequence[Option]) -> Option:
    """Return one of the options, by proportion number `which`."""
    return options[int(self.shape[which] * len(options))]

  def surface(
    self, stage: Stage, rng: np.random.Generator, color: np.ndarray
  ) -> tuple[np.ndarray, float]:
    """Return the albedo (3, n, n) and the gloss of the material."""
    tone, gloss = MATERIALS[self.material](stage, rng)
    return color * tone, gloss


@dataclasses.dataclass(frozen=True)
class StyledFamily:
  """A `canvas.Family` whose appearance depends on a style.

  Attributes:
    draw: `(style, rng, size, flaw) -> Scene`, `size` pixels wide.
    kind: "texture" or "object".
    overlays: kinds of `defects.OVERLAYS` that suit it.
    structural: kinds of flaw that `draw` draws itself.
  """

  draw: Callable[[Style, np.random.Generator, int, Flaw], Scene]
  kind: str
  overlays: tuple[str, ...]
  structural: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Design:
  """A random family and the words that describe it."""

  noun: str
  material: str
  color: str
  family: Family


def _metal(stage: Stage, rng: np.random.Generator) -> tuple[np.ndarray, float]:
  streaks, clouds = stage.noise(rng, 3, 60), stage.clouds(rng, 2)
  return 1 + 0.07 * streaks + 0.13 * clouds, 0.4


def _plastic(
  stage: Stage, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
  return 1 + 0.04 * stage.clouds(rng, 2), 0.35


def _wooden(stage: Stage, rng: np.random.Generator) -> tuple[np.ndarray, float]:
  grain = stage.noise(rng, 40, 2) + 0.5 * stage.noise(rng, 8, 1)
  return 1 + 0.13 * grain, 0.05


def _rubber(stage: Stage, rng: np.random.Generator) -> tuple[np.ndarray, float]:
  return 1 + 0.07 * stage.noise(rng, 50), 0.1


def _ceramic(
  stage: Stage, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
  return 1 + 0.05 * stage.clouds(rng, 4), 0.6


def _paper(stage: Stage, rng: np.random.Generator) -> tuple[np.ndarray, float]:
  return 1 + 0.07 * stage.clouds(rng, 8) + 0.05 * stage.noise(rng, 60), 0.0


MATERIALS = {
  "metal": _metal,
  "plastic": _plastic,
  "wooden": _wooden,
  "rubber": _rubber,
  "ceramic": _ceramic,
  "paper": _paper,
}


def invent(
  rng: np.random.Generator, kinds: Mapping[str, StyledFamily]
) -> Design:
  """Return a random design of one of `kinds`.

  Args:
    rng: random numbers; the same give the same design.
    kinds: families by noun, such as `invented_textures.FAMILIES`.
  """
  noun = str(rng.choice(sorted(kinds)))
  body, second = rng.choice(sorted(COLORS), 2, replace=False)
  grounds = NEUTRAL if rng.random() < PLAIN else sorted(COLORS)
  ground = rng.choice([c for c in grounds if c not in (body, second)])
  colors = (str(body), str(second), str(ground))
  style = Style(
    colors, str(rng.choice(sorted(MATERIALS))), tuple(rng.random(12).tolist())
  )
  family = kinds[noun]
  drawn = Family(
    functools.partial(family.draw, style),
    family.kind,
    family.overlays,
    family.structural,
  )
  return Design(noun, style.material, colors[0], drawn)
