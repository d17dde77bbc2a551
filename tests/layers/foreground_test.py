"""Tests of `zsad_jax.layers.foreground` against scikit-learn and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn import decomposition

from zsad_jax.layers import foreground


@pytest.fixture(scope="module")
def tokens():
  """Three images of 12 x 12 patches whose object differs by one direction."""
  rng = np.random.default_rng(3)
  found = rng.normal(size=(3, 144, 20)).astype(np.float32)
  disc = np.hypot(*(np.mgrid[:12, :12] - 5.5)).ravel() < 4
  direction = rng.normal(size=20)
  for image, scale in zip(found, (12, -9, 5)):
    image += (scale * (disc - 0.5))[:, None] * direction
  return found


def components(tokens):
  pca = decomposition.PCA(n_components=1, svd_solver="full")
  return np.stack([pca.fit_transform(x.astype(float))[:, 0] for x in tokens])


def test_the_first_component_is_that_of_scikit_learn(tokens):
  found = foreground.first_component(jnp.asarray(tokens))
  expected = components(tokens)
  np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize("threshold", [0.0, 5.0, 10.0, 30.0])
def test_the_mask_is_that_of_a_loop_with_scipy(tokens, threshold):
  found = foreground.mask(jnp.asarray(tokens), threshold)
  cross = np.ones((3, 3))
  for first, mask in zip(components(tokens), np.asarray(found)):
    expected = (first > threshold).reshape(12, 12)
    centre = expected[2:9, 2:9]
    if centre.sum() <= 0.35 * centre.size:
      expected = (-first > threshold).reshape(12, 12)
    expected = ndimage.binary_dilation(expected, cross)
    expected = ndimage.binary_dilation(expected, cross)
    expected = ndimage.binary_erosion(expected, cross, border_value=1)
    np.testing.assert_array_equal(mask.reshape(12, 12), expected)


def test_an_object_of_either_sign_is_found(tokens):
  found = np.asarray(foreground.mask(jnp.asarray(tokens), 10.0))
  disc = np.hypot(*(np.mgrid[:12, :12] - 5.5)).ravel() < 4
  for mask in found:
    assert mask[disc].all() and mask.mean() < 0.85
  # Without variation nothing is.
  assert not foreground.mask(jnp.ones((1, 144, 4)), 10.0).any()
