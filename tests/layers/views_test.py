"""Tests of layers/views.py and layers/neighborhoods.py against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from zsad_jax.layers import neighborhoods, views


@pytest.fixture(scope="module")
def made():
  """An image of odd side and its views."""
  image = np.random.default_rng(0).standard_normal((2, 9, 9, 3)).astype("f")
  return image[1], np.asarray(jax.jit(views.anovl)(image))[1]


def warped(image, source):
  """Resample at source(y, x), in units of half the distance of the corners."""
  half = (len(image) - 1) / 2
  y, x = (np.indices(image.shape[:2]) - half) / half
  at = [half * (s + 1) for s in source(y, x)]
  resample = lambda channel: ndimage.map_coordinates(
    channel.astype(float), at, order=1, mode="mirror"
  )
  return np.stack([resample(c) for c in np.moveaxis(image, -1, 0)], axis=-1)


def rotation(angle):
  c, s = np.cos(angle), np.sin(angle)
  return lambda y, x: (s * x + c * y, c * x - s * y)


def shift(a, b):
  return lambda y, x: (y + b, x + a)


def test_rotations_and_shifts_are_those_of_scipy(made):
  image, found = made
  assert len(found) == views.NUM_VIEWS == 22
  np.testing.assert_array_equal(found[0], image)
  for i, k in enumerate((-4, -3, -2, -1, 1, 2, 3, 4)):
    expected = warped(image, rotation(k * np.pi / 16))
    np.testing.assert_allclose(found[1 + i], expected, atol=2e-5)
  signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
  shifts = [(0.2 * a, 0.2 * b) for a, b in signs]
  shifts += [(0.1 * a, 0.1 * b) for a, b in signs]
  for i, (a, b) in enumerate(shifts):
    expected = warped(image, shift(a, b))
    np.testing.assert_allclose(found[9 + i], expected, atol=2e-5)


def test_mirrored_grey_and_turned_views(made):
  image, found = made
  np.testing.assert_array_equal(found[17], image[:, ::-1])
  grey = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
  np.testing.assert_allclose(found[18], np.stack([grey] * 3, -1), atol=1e-6)
  for turns in (1, 2, 3):
    np.testing.assert_array_equal(found[18 + turns], np.rot90(image, turns))


@pytest.mark.parametrize("padding", ["edge", "zero"])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_neighborhood_means_are_those_of_scipy(size, padding):
  x = np.random.default_rng(1).standard_normal((2, 6, 7, 3)).astype("f")
  found = neighborhoods.mean(jnp.asarray(x), size, padding=padding)
  mode = {"edge": "nearest", "zero": "constant"}[padding]
  expected = ndimage.uniform_filter(
    x.astype(float), (0, size, size, 0), mode=mode
  )
  np.testing.assert_allclose(found, expected, atol=1e-6)
