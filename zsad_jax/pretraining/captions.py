"""Captions of drawn pictures, and which of them are true of which picture.

A caption may leave out any fact of a picture, or put an unknown word for its
noun: real names of test categories are such words to the small text tower.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from zsad_jax.backbones.clip import tokenizer
from zsad_jax.datasets.synthetic import (
  invented,
  invented_objects,
  invented_textures,
)
from zsad_jax.layers import prompts

NOUNS = tuple(sorted(invented_objects.FAMILIES | invented_textures.FAMILIES))
# How each defect is told; `contamination` in a way that fits any object.
DEFECTS = {
  "scratch": ("scratched {}", "{} with a scratch"),
  "crack": ("cracked {}", "{} with a crack"),
  "hole": ("{} with a hole", "pierced {}"),
  "stain": ("stained {}", "{} with a stain"),
  "contamination": ("contaminated {}", "dirty {}"),
  "dent": ("dented {}", "{} with a dent"),
  "discoloration": ("discolored {}", "{} with discoloration"),
  "glue": ("{} with glue", "{} with a drop of glue"),
  "cut": ("{} with a cut", "torn {}"),
  "abrasion": ("worn {}", "{} with abrasion"),
  "missing_part": ("incomplete {}", "{} with a missing part"),
  "misplaced_part": ("{} with a misplaced part", "misassembled {}"),
  "wrong_color": ("{} with the wrong color", "{} with a wrong part"),
  "bent_part": ("bent {}", "deformed {}"),
  "chipped_edge": ("chipped {}", "{} with a chipped edge"),
}
NAMES = (
  "{noun}",
  "object",
  "{color} {noun}",
  "{color} {material} {noun}",
  "{material} {noun}",
  "{color} object",
)
UNKNOWN = 0.35  # Share of captions whose noun is an unknown word.
STATED, DETAILED = 0.5, 0.3  # Shares with a state, and of those with a defect.
SHORTEST = 4  # Letters of an unknown word.


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is true of a picture, or what a caption says; None: nothing."""

  noun: str | None = None
  material: str | None = None
  color: str | None = None
  anomalous: bool | None = None
  defect: str | None = None

  def told_by(self, caption: "Facts") -> bool:
    """Whether a caption that says these facts is true of this picture."""
    said = dataclasses.asdict(caption)
    return all(v is None or v == getattr(self, k) for k, v in said.items())


@dataclasses.dataclass(frozen=True)
class Caption:
  """A sentence and what it says."""

  text: str
  says: Facts


def describe(rng: np.random.Generator, facts: Facts) -> Caption:
  """Draws a caption that is true of a picture."""
  name, says = _name(rng, facts)
  if not says or rng.random() < STATED:  # A caption says something.
    says["anomalous"] = facts.anomalous
    if facts.anomalous and rng.random() < DETAILED:
      says["defect"] = facts.defect
      name = _one(rng, DEFECTS[facts.defect]).format(name)
    else:
      name = _one(rng, prompts.STATES[facts.anomalous]).format(name)
  return Caption(_one(rng, prompts.PHOTOS).format(name), Facts(**says))


def state_pair(rng: np.random.Generator) -> tuple[str, str]:
  """Draws two sentences about one object: normal and anomalous."""
  facts = Facts(
    _one(rng, NOUNS),
    _one(rng, sorted(invented.MATERIALS)),
    _one(rng, sorted(invented.COLORS)),
  )
  name, _ = _name(rng, facts)
  photo = _one(rng, prompts.PHOTOS)
  normal, anomalous = (
    photo.format(_one(rng, states).format(name)) for states in prompts.STATES
  )
  return normal, anomalous


def _name(rng, facts):
  """A noun phrase, and what it says."""
  if rng.random() < UNKNOWN:
    words = rng.choice(_unknown_words(), size=rng.integers(1, 3))
    return " ".join(words), {}
  pattern = _one(rng, NAMES)
  known = {k: getattr(facts, k) for k in ("noun", "material", "color")}
  return pattern.format(**known), {
    k: v for k, v in known.items() if f"{{{k}}}" in pattern
  }


def _one(rng, options: Sequence):
  return options[int(rng.integers(len(options)))]


def vocabulary() -> np.ndarray:
  """Sorted ids of all tokens in captions and in the methods' sentences."""
  words = [*NOUNS, *invented.MATERIALS, *invented.COLORS, "object", "X"]
  for patterns in (
    *DEFECTS.values(),
    *prompts.STATES,
    prompts.PHOTOS,
    *prompts.adaptclip(),
  ):
    words += [pattern.format("") for pattern in patterns]
  ids = tokenizer.encode(words)
  return np.union1d(ids, tokenizer.encode(["x x. x,"]))


@functools.cache
def _unknown_words():
  """Whole words of the tokenizer outside of the vocabulary."""
  known = set(vocabulary().tolist())
  return tuple(
    word
    for word, index in tokenizer.whole_words()
    if index not in known and len(word) >= SHORTEST and word.isascii()
  )
