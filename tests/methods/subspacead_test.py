"""Tests of `zsad_jax.methods.subspacead` against scikit-learn and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn import decomposition

from zsad_jax.backbones.dinov2 import model as dinov2
from zsad_jax.backbones.dinov2.config import DinoConfig
from zsad_jax.inference.predictor import Predictor
from zsad_jax.layers import resample
from zsad_jax.methods import subspacead
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import distributed


@pytest.fixture(scope="module")
def backbone():
  sizes = DinoConfig(width=64, layers=3, image_size=32, patch_size=8)
  return dinov2.random_dinov2(sizes, 0)


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(1)
  return rng.integers(0, 256, (8, 32, 32, 3), np.uint8)


def run(method, backbone, images, references):
  predictor = Predictor(method, backbone, ["x"], distributed.make_mesh())
  bank = predictor.build_memory_bank(references, 0, batch_size=4)
  batch = {"image": images, "class_id": np.zeros(len(images), np.int32)}
  (found,) = predictor.predict({}, {}, predictor.encode(batch), (bank,))
  return jax.tree.map(np.asarray, found)


@jax.jit
def _tokens(backbone, images):
  _, out = backbone.image(backbone.normalize(images))
  return (out["block02"] + out["block03"])[:, 1:] / 2


def tokens_of(backbone, images):
  """Return patches of images, 15 in a program."""
  padded = np.zeros((15, 32, 32, 3), np.uint8)
  padded[: len(images)] = images
  found = _tokens(backbone, jnp.asarray(padded))[: len(images)]
  return np.asarray(found, np.float64)


@pytest.mark.parametrize(
  "smoothing, neighborhood", [("code", 1), ("paper", 1), ("code", 3)]
)
def test_scores_and_maps_are_those_of_brute_force(
  backbone, images, smoothing, neighborhood
):
  method = subspacead.Method(
    feature_layers=(2, 3),
    num_rotations=2,
    explained_variance=0.8,
    top_share=0.1,
    smoothing=smoothing,
    neighborhood=neighborhood,
  )

  def tokens(images):
    grid = tokens_of(backbone, images).reshape(-1, 4, 4, 64)
    size = (1, neighborhood, neighborhood, 1)
    return ndimage.uniform_filter(grid, size, mode="nearest").reshape(
      -1, 16, 64
    )

  found = run(method, backbone, images[5:], images[:5])
  copies = method.augment_references(images[:5])
  assert copies.shape == (15, 32, 32, 3)
  np.testing.assert_array_equal(copies[::3], images[:5])
  rows = tokens(copies).reshape(-1, 64)
  pca = decomposition.PCA(n_components=0.8, svd_solver="full").fit(rows)
  assert 1 < pca.n_components_ < 64
  variance = ((rows - rows.mean(0)) ** 2).sum(1).mean()
  for i, x in enumerate(tokens(images[5:])):
    back = pca.inverse_transform(pca.transform(x))
    grid = jnp.asarray(((x - back) ** 2).sum(1).reshape(4, 4, 1))
    values = resample.resize(grid, (32, 32), method="bilinear")[..., 0]
    radius = 1 if smoothing == "code" else None
    values = ndimage.gaussian_filter(np.asarray(values), 4.0, radius=radius)
    top = np.sort(values.ravel())[-102:].mean()  # 10 % of 1024.
    expected = top / (top + variance)
    np.testing.assert_allclose(found["pred_score"][i], expected, rtol=1e-3)
    expected = values / (values + variance)
    np.testing.assert_allclose(found["anomaly_map"][i], expected, rtol=1e-3)


def test_references_have_a_small_score(backbone, images):
  method = subspacead.Method(feature_layers=(3,), num_rotations=0)
  found = run(method, backbone, images, images[:2])["pred_score"]
  assert found[:2].max() < 0.05 < found[2:].min() / 2


def test_the_same_copies_are_made_each_time(images):
  method = subspacead.Method(num_rotations=3, rotation_seed=5)
  again = subspacead.Method(num_rotations=3, rotation_seed=5)
  first = method.augment_references(images[:1])
  np.testing.assert_array_equal(first, again.augment_references(images[:1]))
  other = subspacead.Method(num_rotations=3, rotation_seed=6)
  assert (first[1:] != other.augment_references(images[:1])[1:]).any()


def test_wrong_settings_are_refused(backbone, images):
  for given, message in (
    (dict(explained_variance=0.0), "explained_variance has to be greater"),
    (dict(explained_variance=1.1), r"explained_variance has to be in \[0, 1"),
    (dict(num_rotations=-1), "num_rotations has to be at least 0"),
    (dict(smoothing="none"), "smoothing is one of code, paper"),
  ):
    with pytest.raises(ValueError, match=message):
      run_lib.make_method("subspacead", given)
  with pytest.raises(ValueError, match="no layer 23: the vision tower has 3"):
    run(subspacead.Method(num_rotations=0), backbone, images, images[:1])
