"""VCP-CLIP: fields, dropout and parameter count.

Its numbers are judged by the reference tensors in parity_test.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import numpy_reference
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.layers import visual_context
from zsad_jax.methods import vcpclip
from zsad_jax.runs import run as run_lib

SMALL = vcpclip.Method(**vcpclip.TINY)


@pytest.fixture(scope="module")
def world(small_clip):
  """Backbone, parameters, text, features and a batch of three images."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: SMALL.init(jax.random.key(0), small_clip))[0]
  # Drawn by NumPy: the method's initialization takes long to compile.
  draw = lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype)
  params = jax.tree.map(draw, shapes)
  scales = dict.fromkeys(("base", "post"), jnp.float32(np.log(1 / 0.07)))
  params = {**params, "log_scale": scales}
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  # Random features: encoding images is part of the contract's tests.
  features = {
    "image_embed": normal(3, 32),
    "patch_tokens": normal(3, 2, 16, 64),
  }
  aux = SMALL.prepare(small_clip, ["never used"])
  return small_clip, params, aux, features, numpy_reference.batch(3)


@pytest.fixture(scope="module")
def text_units(world):
  """Text of all images in one call."""
  backbone, params, aux, features, _ = world
  return jax.jit(SMALL.text)(params, backbone, aux, features["image_embed"])


def test_text_of_a_batch_is_that_of_each_image(world, text_units):
  backbone, params, aux, features, _ = world
  text = jax.jit(SMALL.text)
  for i in range(3):
    one = features["image_embed"][i : i + 1]
    found = text(params, backbone, aux, one)
    np.testing.assert_allclose(found, text_units[i : i + 1], atol=1e-5)
  difference = np.abs(text_units[1] - text_units[0]).max(axis=-1)
  assert (difference > 1e-3).all()  # It depends on the image.


def test_text_by_hand(world):
  """Class vectors, inserted tokens and both LayerNorms, step by step."""
  backbone, params, aux, features, _ = world
  method = dataclasses.replace(SMALL, activation="quick")  # The reference's.
  text_units = jax.jit(method.text)(
    params, backbone, aux, features["image_embed"][:1]
  )
  f = np.pad(np.asarray(features["image_embed"][0]), (1, 1 + 64 - 32))
  learned = jax.tree.map(np.asarray, params["class_vectors"])
  vectors = learned["query"] + np.stack(
    [
      np.correlate(f, learned["conv"]["kernel"][:, 0, j], "valid")
      + learned["conv"]["bias"][j]
      for j in range(2)
    ]
  )
  embeds = np.asarray(aux["embeds"])
  # Start, five words, the class, end.
  assert embeds.shape[1] == vcpclip.NUM_WORDS + 1
  rows = [np.concatenate([x[:6], vectors, x[7:]]) for x in embeds]
  deep = jax.tree.map(np.asarray, params["deep"])
  tokens = np.concatenate([deep["first"][None], deep["rest"]])
  tokens = tokens @ deep["projection"]["kernel"] + deep["projection"]["bias"]
  # The reference applies ln_final to its result: to see the LayerNorm before,
  # the tower ends there.
  text = dict(backbone.params["text"])
  text["ln_final"] = {"scale": jnp.ones(64), "bias": jnp.zeros(64)}
  text["text_projection"] = jnp.eye(64)
  plain = backbone.replace(params={**backbone.params, "text": text})
  end = np.array([8, 8])
  last = jax.jit(
    lambda b, x, d: numpy_reference.text(b, x, end, d, insert=True)
  )(plain, jnp.asarray(np.stack(rows)), dict(enumerate(tokens)))
  # Two plain LayerNorms in a row are one, up to their epsilons.
  expected = backbone.project_text(
    last * deep["norm"]["scale"] + deep["norm"]["bias"]
  )
  np.testing.assert_allclose(
    text_units[0], numpy_reference.unit(expected), atol=1e-4
  )


@pytest.fixture(scope="module")
def result(world, text_units):
  """Result of `forward` with this text, whose tower is compiled already."""
  backbone, params, aux, features, _ = world

  class GivenText(vcpclip.Method):
    def text(self, *args):
      del args
      return text_units

  method = GivenText(**vcpclip.TINY)
  return jax.jit(method.forward)(params, backbone, aux, features)


@pytest.mark.parametrize(
  "changes", [dict(activation="quick"), dict(use_global=False)]
)
def test_fields_that_change_the_text(world, text_units, changes):
  backbone, params, aux, features, _ = world
  text = jax.jit(dataclasses.replace(SMALL, **changes).text)
  found = text(params, backbone, aux, features["image_embed"])
  assert found.shape == (1 if "use_global" in changes else 3, 2, 32)
  assert np.abs(found - text_units).max() > 1e-4


def test_the_dice_of_rows_changes_the_loss(world, result):
  batch = world[-1]
  rows = dataclasses.replace(SMALL, dice="rows").loss_parts(result, batch)
  parts = SMALL.loss_parts(result, batch)
  for branch in ("base", "post"):
    np.testing.assert_array_equal(
      rows[f"{branch}_focal"], parts[f"{branch}_focal"]
    )
    assert abs(rows[f"{branch}_dice"] - parts[f"{branch}_dice"]) > 1e-3


def test_the_map_is_the_weighted_mean_of_both_branches(result):
  maps = {
    weight: dataclasses.replace(SMALL, base_weight=weight).to_prediction(
      result, (32, 32)
    )["anomaly_map"]
    for weight in (0.0, 0.2, 1.0)
  }
  assert np.abs(maps[1.0] - maps[0.0]).max() > 1e-3
  expected = 0.2 * maps[1.0] + 0.8 * maps[0.0]
  np.testing.assert_allclose(maps[0.2], expected, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_attention_of_post_vcp_by_hand(scaled):
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  text, patches = normal(1, 2, 6), normal(1, 1, 9, 8)
  layers = {"query": 6, "key": 8, "value": 8, "output": 8}
  params = {
    name: {"kernel": normal(c_in, 8), "bias": normal(8)}
    for name, c_in in layers.items()
  }
  project = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"]
  q = project("query", text[0])
  k, v = (project(name, patches[0, 0]) for name in ("key", "value"))
  heads = []
  for head in (slice(0, 4), slice(4, 8)):
    logits = q[:, head] @ k[:, head].T * (0.5 if scaled else 1.0)
    heads.append(numpy_reference.softmax(logits) @ v[:, head])
  expected = project("output", np.concatenate(heads, axis=1))
  found = visual_context.post_text(
    jax.tree.map(jnp.asarray, params),
    jnp.asarray(text),
    jnp.asarray(patches),
    num_heads=2,
    scaled=scaled,
  )
  np.testing.assert_allclose(
    found[0, 0], numpy_reference.unit(expected), atol=1e-5
  )


def test_dropout_of_deep_tokens(world):
  deep = world[1]["deep"]
  draw = visual_context.draw_kept
  assert draw(deep, (4, 2), None, 0.5) is None
  assert draw(deep, (4, 2), jax.random.key(0), 0.0) is None
  keep = draw(deep, (4, 2), jax.random.key(0), 0.1)
  assert keep.shape == (4, 2, 3, 1, 64)  # Images, states, blocks, tokens.
  assert 0.85 < keep.mean() < 0.95
  plain = visual_context.deep_tokens(deep, None, 0.1)
  dropped = visual_context.deep_tokens(deep, keep, 0.1)
  for block in range(3):
    mask = np.asarray(keep)[:, :, block].reshape(8, 1, 64)
    expected = np.where(mask, plain[block] / 0.9, 0.0)
    np.testing.assert_allclose(dropped[block], expected, rtol=1e-6)


def test_the_loss_has_dropout(world):
  backbone, params, aux, features, batch = world
  method = dataclasses.replace(SMALL, dropout=0.5)
  given = params, {}, backbone, aux, features
  loss = jax.jit(lambda rng: method.loss(*given, batch, rng)[0])
  found = [loss(jax.random.key(seed)) for seed in (0, 0, 1)]
  assert found[0] == found[1] != found[2]


def test_the_score_is_the_mean_of_the_largest_values():
  maps = jnp.asarray(np.random.default_rng(0).random((2, 8, 8)), jnp.float32)
  method = dataclasses.replace(SMALL, top_pixels=10)
  expected = np.sort(maps.reshape(2, -1))[:, -10:].mean(axis=1)
  np.testing.assert_allclose(method.top_mean(maps), expected, rtol=1e-6)
  every = dataclasses.replace(SMALL, top_pixels=100)  # More than there are.
  np.testing.assert_allclose(every.top_mean(maps), maps.mean((1, 2)), rtol=1e-6)


def test_masks_keep_one_half():
  mask = jnp.array([[[0.0, 0.25, 0.5, 0.75, 1.0]]])
  np.testing.assert_array_equal(vcpclip.binarize(mask)[0, 0], [0, 0, 0.5, 1, 1])
  whole = jnp.array([[[0, 1]]], jnp.uint8)
  found = vcpclip.binarize(whole)
  assert found.dtype == jnp.uint8
  np.testing.assert_array_equal(found, whole)


def test_settings_that_do_not_fit_are_refused(small_clip):
  with pytest.raises(ValueError, match="num_heads has to divide the 64"):
    vcpclip.Method(num_heads=7).init(jax.random.key(0), small_clip)
  with pytest.raises(ValueError, match="dropout has to be less than 1"):
    run_lib.make_method("vcpclip", {"dropout": 1.0})
  run_lib.make_method("vcpclip", {"num_class_vectors": 69})
  with pytest.raises(ValueError, match="77 tokens, got prompts of 78"):
    run_lib.make_method("vcpclip", {"num_class_vectors": 70})


def test_parameter_count_at_full_size():
  backbone = clip.Clip({}, config.MODELS["ViT-L-14-336"])
  method = vcpclip.Method()
  params, _ = jax.eval_shape(lambda: method.init(jax.random.key(0), backbone))
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert count(params) == 7_687_946
  assert count(params["class_vectors"]) == 1_544  # And its temperature.
  assert count(params["deep"]) == 601_344
  assert count(params["base"]) == 3_148_800
  assert count(params["post"]) == 3_936_256  # And its temperature.
  unused = method.checkpoint_spec.unused(method, backbone)
  assert [np.prod(shape) for shape in unused.values()] == [589_824]
