"""Pairs of a normal and an anomalous image of one scene."""

import zlib
from typing import NamedTuple

import numpy as np

from zsad_jax.datasets.synthetic import defects
from zsad_jax.datasets.synthetic.canvas import Camera, Family, Flaw


class Twins(NamedTuple):
  """A normal and an anomalous image of a scene, equal outside the mask.

  Attributes:
    normal: uint8 (s, s, 3).
    anomalous: uint8 (s, s, 3); the normal one if no anomaly is requested.
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
  """Draw a scene without and with an anomaly.

  Args:
    family: category of the scene.
    defect: one of `family.defects`, or None.
    key: integers >= 0, the seed of all random numbers.
    size: side in pixels.
    attempts: number of trials if an anomaly is too small to be visible or too
      large.

  Returns:
    The twins, or None if no trial succeeded.
  """
  camera = Camera(_rng(*key, 1), size)
  scene = family.draw(_rng(*key, 0), size, Flaw(None, _rng(*key, 2)))
  exposed = camera.expose(scene.image)
  normal = camera.develop(exposed)
  if defect is None:
    return Twins(normal, normal, np.zeros((size, size), np.uint8))
  for attempt in range(attempts):
    rng = _rng(*key, 2, number(defect), attempt)
    if defect in family.structural:
      changed = family.draw(_rng(*key, 0), size, Flaw(defect, rng)).image
    elif scene.region.max() <= 0.5:
      return None
    else:
      changed = defects.apply(defect, scene.image, scene.region, rng)[0]
    changed = camera.expose(changed)
    mask = defects.changed(exposed, changed)
    if defects.fits(mask):
      image = np.where(mask[..., None] == 1, changed, exposed)
      return Twins(normal, camera.develop(image), mask)
  return None


def number(name: str) -> int:
  """Return a number for a name; unlike hash(), the same in every process."""
  return zlib.crc32(name.encode())


def _rng(*key: int) -> np.random.Generator:
  return np.random.default_rng(np.random.SeedSequence(key))
