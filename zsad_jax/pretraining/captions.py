"""Captions of synthetic images.

A caption may omit facts of an image, or have an unknown word in place of its
noun: for the small text tower, names of real categories are such words.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from zsad_jax.backbones.clip import tokenizer
from zsad_jax.datasets.synthetic import (
  invented,
  invented_objects,
  invented_textures,
)
from zsad_jax.layers import prompts

NOUNS = tuple(sorted(invented_objects.FAMILIES | invented_textures.FAMILIES))
# Phrases of each defect; those of `contamination` fit any object.
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
NOUN_PHRASES = (
  "{noun}",
  "object",
  "{color} {noun}",
  "{color} {material} {noun}",
  "{material} {noun}",
  "{color} object",
)
UNKNOWN_SHARE = 0.35  # Of captions: those with an unknown word as noun.
STATE_SHARE = 0.5  # Of the others: those with a state.
DEFECT_SHARE = 0.3  # Of captions with an anomalous state: those with a defect.
MIN_LETTERS = 4  # Of an unknown word.


@dataclasses.dataclass(frozen=True)
class Facts:
  """Facts of an image, or the facts in a caption.

  Attributes:
    noun: family of the object or texture.
    material: name of its material.
    color: name of its color.
    anomalous: True for anomalous, False for normal.
    defect: key of `DEFECTS`; "none" for normal images.

  In a caption, None stands for a fact that it does not mention.
  """

  noun: str | None = None
  material: str | None = None
  color: str | None = None
  anomalous: bool | None = None
  defect: str | None = None

  def match(self, caption: "Facts") -> bool:
    """Return True if all facts in a caption are true of this image."""
    mentioned = dataclasses.asdict(caption)
    return all(v is None or v == getattr(self, k) for k, v in mentioned.items())


@dataclasses.dataclass(frozen=True)
class Caption:
  """Text of a caption and the facts that it mentions."""

  text: str
  facts: Facts


def describe(rng: np.random.Generator, facts: Facts) -> Caption:
  """Draw a random caption that is true of an image.

  Args:
    rng: random generator.
    facts: facts of the image, all given.
  """
  name, mentioned = _noun_phrase(rng, facts)
  if not mentioned or rng.random() < STATE_SHARE:
    mentioned["anomalous"] = facts.anomalous
    if facts.anomalous and facts.defect and rng.random() < DEFECT_SHARE:
      mentioned["defect"] = facts.defect
      name = _choice(rng, DEFECTS[facts.defect]).format(name)
    else:
      name = _choice(rng, prompts.STATES[bool(facts.anomalous)]).format(name)
  return Caption(_choice(rng, prompts.PHOTOS).format(name), Facts(**mentioned))


def state_pair(rng: np.random.Generator) -> tuple[str, str]:
  """Draw a normal and an anomalous prompt about the same object."""
  facts = Facts(
    _choice(rng, NOUNS),
    _choice(rng, sorted(invented.MATERIALS)),
    _choice(rng, sorted(invented.COLORS)),
  )
  name, _ = _noun_phrase(rng, facts)
  photo = _choice(rng, prompts.PHOTOS)
  normal, anomalous = (
    photo.format(_choice(rng, states).format(name)) for states in prompts.STATES
  )
  return normal, anomalous


def _noun_phrase(rng, facts) -> tuple[str, dict[str, Any]]:
  """Draw a noun phrase; return it with the facts that it mentions."""
  if rng.random() < UNKNOWN_SHARE:
    words = rng.choice(_unknown_words(), size=rng.integers(1, 3))
    return " ".join(words), {}
  pattern = _choice(rng, NOUN_PHRASES)
  known = {k: getattr(facts, k) for k in ("noun", "material", "color")}
  return pattern.format(**known), {
    k: v for k, v in known.items() if f"{{{k}}}" in pattern
  }


def _choice(rng, options: Sequence):
  return options[int(rng.integers(len(options)))]


def vocabulary() -> np.ndarray:
  """Return sorted ids of all tokens in captions and in prompts of methods."""
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
  """Return single-token words outside the vocabulary."""
  known = set(vocabulary().tolist())
  return tuple(
    word
    for word, index in tokenizer.whole_words()
    if index not in known and len(word) >= MIN_LETTERS and word.isascii()
  )
