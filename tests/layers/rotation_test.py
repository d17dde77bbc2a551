"""Tests of `zsad_jax.layers.rotation`."""

import numpy as np
from PIL import Image

from zsad_jax.layers import rotation


def test_right_angles_are_exact():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 7, 7, 3), np.uint8)
  found = rotation.rotate(images, (0.0, 90.0, 180.0, 270.0))
  for image, copies in zip(images, found.reshape(2, 4, 7, 7, 3)):
    for i, copy in enumerate(copies):
      np.testing.assert_array_equal(copy, np.rot90(image, i))


def test_other_angles_are_those_of_pillow_inside_of_the_image():
  rng = np.random.default_rng(1)
  small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
  image = np.asarray(small.resize((40, 40), Image.Resampling.BICUBIC))
  found = rotation.rotate(image[None], (30.0,))[0].astype(int)
  expected = Image.fromarray(image).rotate(30, Image.Resampling.BILINEAR)
  rows, columns = np.mgrid[:40, :40] - 19.5
  inside = rows**2 + columns**2 < 18**2
  difference = np.abs(found - np.asarray(expected, int))[inside]
  assert difference.max() <= 1


def test_the_border_is_mirrored():
  image = np.zeros((1, 20, 20, 3), np.uint8)
  image[:] = np.arange(20, dtype=np.uint8)[:, None] * 10
  found = rotation.rotate(image, (45.0,))
  assert found.min() >= 0 and found.max() <= 190
  # A constant stays one: nothing from outside is black.
  assert (rotation.rotate(np.full_like(image, 80), (20.0, 45.0)) == 80).all()
