"""AdaCLIP: parameter counts, and what each deviation flag changes.

Its numbers are judged by the reference tensors in parity_test.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax import losses
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.methods import adaclip
from zsad_jax.runs import run as run_lib

SMALL = adaclip.Method(
  feature_layers=(1, 3),
  prompt_length=2,
  prompt_depth=3,
  num_clusters=3,
  hsf_top_factor=2,
)


@pytest.fixture(scope="module")
def world(small_clip):
  """Aux, parameters and a batch of two; large prompts, to see effects."""
  params, _ = SMALL.init(jax.random.key(0), small_clip)
  params = jax.tree.map(lambda x: 5 * x, params)
  aux = SMALL.prepare(small_clip, ["hex nut"])
  rng = np.random.default_rng(0)
  mask = np.zeros((2, 32, 32), np.uint8)
  mask[1, 4:9, 3:25] = 1
  batch = {
    "image": jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32),
    "mask": jnp.asarray(mask),
    "label": jnp.array([0, 1]),
    "class_id": jnp.zeros(2, jnp.int32),
    "has_mask": jnp.ones(2, bool),
    "weight": jnp.ones(2),
  }
  return small_clip, params, aux, batch


def run(world, **changes):
  """Loss, score and map of the method with some fields changed."""
  backbone, params, aux, batch = world
  method = dataclasses.replace(SMALL, **changes)

  @jax.jit
  def both(params, backbone, aux, batch):
    features = method.encode(backbone, batch)
    loss, (parts, _) = method.loss(
      params, {}, backbone, aux, features, batch, jax.random.key(0)
    )
    return loss, parts, method.predict(params, {}, backbone, aux, features)

  return both(params, backbone, aux, batch)


def differs(a, b):
  return float(np.abs(np.asarray(a) - np.asarray(b)).max()) > 1e-4


@pytest.fixture(scope="module")
def official(world):
  return run(world)


# Row of the list "where paper and code differ" -> what it must change.
FLAGS = {
  "activation": (dict(activation="quick"), "both"),
  "hsf paper": (dict(hsf="paper"), "score"),
  "hsf none": (dict(hsf="none"), "score"),
  "hsf mean": (dict(hsf="topk_mean"), "score"),
  "mixing weight": (dict(hsf_mix=0.8), "score"),
  "prompted layers": (dict(text_prompt_first_layer=True), "both"),
  "text insertion": (dict(text_prompt_mode="insert"), "both"),
  "static only": (dict(prompt_types="S"), "both"),
  "dynamic only": (dict(prompt_types="D"), "both"),
  "vision only": (dict(prompt_branches="V"), "both"),
  "language only": (dict(prompt_branches="L"), "both"),
  "position table": (dict(pos_resize="bilinear"), "neither"),
  "dice": (dict(dice="image"), "loss"),
  "one training map": (dict(train_map="mean"), "loss"),
}


@pytest.mark.slow  # Each flag is a compilation of its own.
@pytest.mark.parametrize("name", FLAGS)
def test_each_flag_changes_its_number(world, official, name):
  changes, what = FLAGS[name]
  loss, _, prediction = run(world, **changes)
  _, _, expected = official
  assert differs(loss, official[0]) == (what != "neither")
  scores = differs(prediction["pred_score"], expected["pred_score"])
  maps = differs(prediction["anomaly_map"], expected["anomaly_map"])
  assert scores == (what in ("both", "score"))
  assert maps == (what == "both")


@pytest.mark.slow
def test_mean_map_is_trained_as_it_is_tested(world):
  *_, batch = world
  _, parts, prediction = run(world, train_map="mean", dice="image")
  tested = prediction["anomaly_map"]
  expected = losses.dice(
    tested.reshape(2, -1), batch["mask"].reshape(2, -1).astype(jnp.float32)
  )
  np.testing.assert_allclose(
    parts["dice_anomalous"], expected.mean(), rtol=1e-5
  )


def test_images_without_masks_have_no_pixel_loss(world):
  backbone, params, aux, batch = world
  unknown = {**batch, "has_mask": jnp.zeros(2, bool)}
  loss, parts, _ = run((backbone, params, aux, unknown))
  assert parts["pixel_focal"] == parts["dice_anomalous"] == 0
  np.testing.assert_allclose(loss, parts["image_focal"])
  assert parts["image_focal"] > 0


def test_unknown_fusion_is_an_error():
  with pytest.raises(ValueError, match="hsf is"):
    run_lib.make_method("adaclip", {"hsf": "max"})


def test_text_set_0_is_kept_out_of_training(small_clip):
  params, _ = SMALL.init(jax.random.key(0), small_clip)
  trained = SMALL.trainable_mask(params)
  assert not trained["static_text_prompts"]["0"]
  assert trained["static_text_prompts"]["1"]
  every = dataclasses.replace(SMALL, text_prompt_first_layer=True)
  assert all(jax.tree.leaves(every.trainable_mask(params)))


def test_parameter_count_at_full_size():
  backbone = clip.Clip({}, config.MODELS["ViT-L-14-336"])
  method = adaclip.Method()
  params, _ = jax.eval_shape(lambda: method.init(jax.random.key(0), backbone))
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert count(params) == 10_665_472  # 10.7 M in the paper.
  unused = count(params["static_text_prompts"]["0"])
  assert count(params) - unused == 10_661_632
