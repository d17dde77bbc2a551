"""Tests of `zsad_jax.methods.anomalydino` against brute force."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from sklearn import neighbors

from zsad_jax import types
from zsad_jax.backbones.dinov2 import model as dinov2
from zsad_jax.backbones.dinov2.config import DinoConfig
from zsad_jax.inference import few_shot
from zsad_jax.inference.predictor import Predictor
from zsad_jax.layers import foreground, resample
from zsad_jax.methods import anomalydino
from zsad_jax.methods import clip as clip_method
from zsad_jax.runs import backbone as backbone_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import distributed

CLASSES = ["bolt", "screw"]


@pytest.fixture(scope="module")
def backbone():
  sizes = DinoConfig(
    width=64, layers=2, image_size=32, patch_size=8, registers=2
  )
  return dinov2.random_dinov2(sizes, 0)


@pytest.fixture(scope="module")
def images():
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (5, 32, 32, 3), np.uint8)


def make(method, backbone, classes=CLASSES):
  return Predictor(method, backbone, classes, distributed.make_mesh())


def run(predictor, images, references, class_id=0):
  bank = predictor.build_memory_bank(references, class_id, batch_size=3)
  batch = {"image": images, "class_id": np.full(len(images), class_id, "i4")}
  (found,) = predictor.predict({}, {}, predictor.encode(batch), (bank,))
  return jax.tree.map(np.asarray, found)


@jax.jit
def _tokens(backbone, images):
  _, out = backbone.image(backbone.normalize(images))
  last = out[f"block{backbone.vision_layers:02d}"]
  return backbone.project(last, ln_post=True)[:, 1:]


def tokens_of(backbone, images):
  """Return patches of images, eight in a program."""
  padded = np.zeros((8, 32, 32, 3), np.uint8)
  padded[: len(images)] = images
  return np.asarray(_tokens(backbone, jnp.asarray(padded)))[: len(images)]


def distances(backbone, images, references):
  """Return halved cosine distances by scikit-learn."""
  search = neighbors.NearestNeighbors(n_neighbors=1, metric="cosine")
  bank = tokens_of(backbone, references)
  search.fit(bank.reshape(-1, bank.shape[-1]).astype(np.float64))
  query = tokens_of(backbone, images).astype(np.float64)
  return np.stack([search.kneighbors(x)[0][:, 0] for x in query]) / 2


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_scores_and_maps_are_those_of_brute_force(
  kind, backbone, small_clip, images
):
  method = anomalydino.Method(rotations=(0.0, 90.0, 180.0), top_share=0.2)
  used = backbone if kind == "dinov2" else small_clip
  found = run(make(method, used), images[2:], images[:2])
  rotated = np.concatenate([np.rot90(images[:2], i, (1, 2)) for i in range(3)])
  expected = distances(used, images[2:], rotated)
  largest = np.sort(expected, axis=1)[:, -3:].mean(axis=1)  # 20 % of 16.
  np.testing.assert_allclose(found["pred_score"], largest, atol=1e-5)
  grid = jnp.asarray(expected.reshape(-1, 4, 4, 1))
  maps = resample.resize(grid, (32, 32), method="bilinear")[..., 0]
  np.testing.assert_allclose(found["anomaly_map"], maps, atol=1e-5)


def test_at_least_one_patch_is_averaged(backbone, images):
  method = anomalydino.Method(rotations=(0.0,))
  found = run(make(method, backbone), images[1:], images[:1])
  expected = distances(backbone, images[1:], images[:1]).max(axis=1)
  np.testing.assert_allclose(found["pred_score"], expected, atol=1e-5)


def test_the_background_is_masked_in_some_classes(
  backbone, images, monkeypatch
):
  # The real one, which foreground_test.py compares, keeps all of 4 x 4 patches.
  def mask(tokens, threshold):
    return foreground.first_component(tokens) > threshold

  monkeypatch.setattr(anomalydino.foreground, "mask", mask)
  method = anomalydino.Method(rotations=(0.0,), mask_threshold=1.0)
  given = images[1:], images[:1]
  whole = distances(backbone, *given)
  tokens = jnp.asarray(tokens_of(backbone, images[1:]))
  kept = np.asarray(mask(tokens, 1.0))
  assert 0.1 < kept.mean() < 0.9
  masked = np.where(kept, whole, 0.0).max(axis=1)
  for other, class_id, expected in (
    (method, 0, whole.max(axis=1)),  # A bolt, which is not listed.
    (method, 1, masked),
    (dataclasses.replace(method, masking="never"), 1, whole.max(axis=1)),
    (dataclasses.replace(method, masking="always"), 0, masked),
  ):
    predictor = make(other, backbone)
    found = run(predictor, *given, class_id=class_id)
    np.testing.assert_allclose(found["pred_score"], expected, atol=1e-5)


def test_the_layer_can_be_chosen(backbone, images):
  last = anomalydino.Method(rotations=(0.0,))
  results = [
    run(make(each, backbone), images[1:], images[:1])["pred_score"]
    for each in (
      last,
      dataclasses.replace(last, feature_layer=2),
      dataclasses.replace(last, feature_layer=1),
    )
  ]
  np.testing.assert_allclose(results[0], results[1], atol=1e-6)
  assert np.abs(results[0] - results[2]).min() > 1e-4
  with pytest.raises(ValueError, match="no layer 3: the vision tower has 2"):
    wrong = dataclasses.replace(last, feature_layer=3)
    run(make(wrong, backbone), images, images[:1])


def test_wrong_settings_are_refused():
  for given, message in (
    (dict(rotations=()), "rotations is .., but must not be empty"),
    (dict(top_share=0.0), "top_share has to be greater than 0"),
    (dict(top_share=1.5), r"top_share has to be in \[0, 1\]"),
    (dict(feature_layer=0), "feature_layer has to be at least 1"),
    (dict(masking="some"), "masking is one of listed, always, never"),
  ):
    with pytest.raises(ValueError, match=message):
      run_lib.make_method("anomalydino", given)


def test_a_method_of_text_on_a_backbone_without_text_is_refused():
  given = dict(name="dinov2-random", path="")
  config = ml_collections.ConfigDict(dict(method_name="clip", backbone=given))
  message = "name is clip, .*name is dinov2-random, which has no text enc"
  with pytest.raises(ValueError, match=message) as error:
    backbone_lib.load(config, clip_method.Method())
  assert "\n" not in str(error.value)
  assert backbone_lib.load(config, anomalydino.Method()).vision_layers == 8


@dataclasses.dataclass(frozen=True)
class Constant(types.TrainingFree):
  """A zero-shot method without text."""

  needs_text = False

  def prepare(self, backbone, class_names):
    return {}

  def encode(self, backbone, batch):
    return {"mean": batch["image"].mean((1, 2, 3))}

  def predict(self, params, stats, backbone, aux, features):
    score = jax.nn.sigmoid(features["mean"])
    maps = jnp.broadcast_to(score[:, None, None], (len(score), 32, 32))
    return {"anomaly_map": maps, "pred_score": score}


def test_the_memory_bank_of_other_methods_works_on_dinov2(backbone, images):
  few = few_shot.with_memory_bank(
    Constant(),
    feature_layers=(2,),
    vv_from=None,
    score="patches",
    zero_shot_weight=0.0,
  )
  found = run(make(few, backbone), images[1:], images[:1])
  expected = distances(backbone, images[1:], images[:1]).max(axis=1)
  np.testing.assert_allclose(found["pred_score"], expected, atol=1e-5)
  own = dataclasses.replace(few, vv_from=2)
  with pytest.raises(ValueError, match="no value-value stream: set it to None"):
    run(make(own, backbone), images[1:], images[:1])
