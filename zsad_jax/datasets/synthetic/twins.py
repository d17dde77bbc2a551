"""The same scene twice: sound, and with a defect."""

import zlib
from typing import NamedTuple

import numpy as np

from zsad_jax.datasets.synthetic import defects
from zsad_jax.datasets.synthetic.canvas import Camera, Family, Flaw


class Twins(NamedTuple):
  """A scene, sound and damaged; the two are equal outside the mask.

  Attributes:
    normal, anomalous: uint8 (s, s, 3); the same if no defect was asked for.
    mask: uint8 (s, s) in {0, 1}, 1 where they differ.
  """

  normal: np.ndarray
  anomalous: np.ndarray
  mask: np.ndarray


def draw(
  family: Family,
  defect: str | None,
  *,
  key: tuple[int, ...],
  size: int,
  attempts: int = defects.ATTEMPTS,
) -> Twins | None:
  """Draws a scene and its damaged twin.

  Args:
    family: what is drawn.
    defect: one of `family.defects`, or None.
    key: integers >= 0 that decide every random number.
    size: side in pixels.
    attempts: how often another defect of the kind is tried when one is too
      small to be seen or too large.

  Returns:
    The twins, or None if no defect was fit to be shown.
  """
  camera = Camera(_rng(*key, 1), size)
  scene = family.draw(_rng(*key, 0), size, Flaw(None, _rng(*key, 2)))
  sound = camera.expose(scene.image)
  normal = camera.develop(sound)
  if defect is None:
    return Twins(normal, normal, np.zeros((size, size), np.uint8))
  for attempt in range(attempts):
    rng = _rng(*key, 2, number(defect), attempt)
    if defect in family.structural:
      damaged = family.draw(_rng(*key, 0), size, Flaw(defect, rng)).image
    elif scene.region.max() <= 0.5:
      return None
    else:
      damaged = defects.apply(defect, scene.image, scene.region, rng)[0]
    damaged = camera.expose(damaged)
    mask = defects.changed(sound, damaged)
    if defects.fits(mask):
      image = np.where(mask[..., None] == 1, damaged, sound)
      return Twins(normal, camera.develop(image), mask)
  return None


def number(name: str) -> int:
  """A number for a name; unlike hash(), the same in every process."""
  return zlib.crc32(name.encode())


def _rng(*key) -> np.random.Generator:
  return np.random.default_rng(np.random.SeedSequence(key))
