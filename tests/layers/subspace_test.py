"""Tests of `zsad_jax.layers.subspace` against scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import decomposition

from zsad_jax.layers import subspace


@pytest.fixture(scope="module")
def patches():
  rng = np.random.default_rng(0)
  mixing = rng.normal(size=(2, 16, 16)) * 0.7 ** np.arange(16)[:, None]
  found = rng.normal(size=(2, 200, 16)) @ mixing + 3
  return found.astype(np.float32)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.99])
def test_the_residual_is_that_of_scikit_learn(patches, share):
  space = subspace.fit(jnp.asarray(patches), share)
  query = np.random.default_rng(1).normal(size=(2, 9, 16)).astype(np.float32)
  found = subspace.residual(jnp.asarray(query), space)
  for i, rows in enumerate(patches.astype(np.float64)):
    pca = decomposition.PCA(n_components=share, svd_solver="full").fit(rows)
    assert int(np.any(space.basis[i] != 0, axis=0).sum()) == pca.n_components_
    back = pca.inverse_transform(pca.transform(query[i]))
    expected = ((query[i] - back) ** 2).sum(axis=1)
    np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-4)
    variance = ((rows - rows.mean(0)) ** 2).sum(1).mean()
    np.testing.assert_allclose(space.variance[i], variance, rtol=1e-5)


def test_one_subspace_serves_all_images(patches):
  one = subspace.fit(jnp.asarray(patches[:1]), 0.9)
  found = subspace.residual(jnp.asarray(patches), one)
  each = subspace.residual(jnp.asarray(patches[1:]), one)
  np.testing.assert_allclose(found[1:], each, rtol=1e-4, atol=1e-5)


def test_fewer_patches_than_channels_and_constant_ones(patches):
  few = jnp.asarray(patches[:, :5])
  space = subspace.fit(few, 1.0)
  np.testing.assert_allclose(subspace.residual(few, space), 0, atol=1e-4)
  same = subspace.fit(jnp.ones((1, 8, 3)), 0.99)
  found = subspace.residual(jnp.full((1, 2, 3), 2.0), same)
  np.testing.assert_allclose(found, 3.0, rtol=1e-6)
