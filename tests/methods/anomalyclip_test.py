"""AnomalyCLIP: its arithmetic by hand, and which number each flag changes.

Its numbers are judged by the reference tensors in parity_test.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import numpy_reference
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import model as clip
from zsad_jax.methods import anomalyclip
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import config_files

SMALL = anomalyclip.Method(
  feature_layers=(3,), vv_from=2, context_length=3, deep_length=2, deep_depth=3
)
FEATURE_LAYERS = (2, 3)  # Of the features; tests use one or both.
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def encode(method, backbone, image):
  """Features as they are, with plain CLIP's tokens, and CLIP's own outputs."""
  variant = functools.partial(dataclasses.replace, method)
  embed, out = backbone.image(image, activation="quick")
  project = lambda name: backbone.project(out[name], ln_post=True)[:, 1:]
  return {
    "ours": method.encode(backbone, {"image": image}),
    "ln_post": variant(cls_ln_post=True).encode(backbone, {"image": image}),
    "plain": variant(vv_from=None).encode(backbone, {"image": image}),
    "clip": embed,
    "class": backbone.project(out["class"], ln_post=False),
    "patches": [
      project(f"block{layer:02d}") for layer in method.feature_layers
    ],
  }


@functools.partial(jax.jit, static_argnums=0)
def text(method, params, backbone, aux):
  return method.text(params, backbone, aux)


@functools.partial(jax.jit, static_argnums=0)
def run(method, params, backbone, aux, features, batch):
  """Text, the parts of the loss, prediction."""
  given = params, {}, backbone, aux, features
  _, (parts, _) = method.loss(*given, batch, None)
  prediction = method.predict(*given)
  return method.text(params, backbone, aux), parts, prediction


@pytest.fixture(scope="module")
def params(small_clip):
  found = numpy_reference.initial(SMALL, small_clip)
  return jax.tree.map(lambda x: 5 * x, found)  # Large, to see effects.


@pytest.fixture(scope="module")
def aux(small_clip):
  return SMALL.prepare(small_clip, ["never used"])


@pytest.fixture(scope="module")
def batch():
  return numpy_reference.batch(3)


@pytest.fixture(scope="module")
def encoded(small_clip, batch):
  both = dataclasses.replace(SMALL, feature_layers=FEATURE_LAYERS)
  return encode(both, small_clip, batch["image"])


def select_layers(features, feature_layers):
  rows = np.array([FEATURE_LAYERS.index(layer) for layer in feature_layers])
  return {**features, "patch_units": features["patch_units"][:, rows]}


# Settings that the arithmetic depends on.
VARIANTS = {
  "official": {},
  "others": dict(
    feature_layers=FEATURE_LAYERS, map_weight=1.0, temperature=0.5
  ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_prediction_by_hand(
  small_clip, params, aux, batch, encoded, name
):
  method = dataclasses.replace(SMALL, **VARIANTS[name])
  features = select_layers(encoded["ours"], method.feature_layers)
  has_mask = jnp.array([True, True, False])
  batch = {**batch, "has_mask": has_mask}
  embeds, parts, prediction = run(
    method, params, small_clip, aux, features, batch
  )
  units, tau = numpy_reference.unit(embeds), method.temperature
  logits = np.asarray(features["class_unit"]) @ units.T / tau
  close(prediction["pred_score"], numpy_reference.softmax(logits)[:, 1])
  close(
    parts["image_ce"],
    numpy_reference.cross_entropy(logits, batch["label"]).mean(),
  )
  terms, maps = np.zeros(3), []
  for i in range(len(method.feature_layers)):
    patches = np.asarray(features["patch_units"])[:, i]
    prob = numpy_reference.softmax(patches @ units.T / tau)[..., 1]
    maps.append(numpy_reference.to_map(prob))
    states = np.stack([1 - maps[-1], maps[-1]], axis=-1)
    # The third image has no mask: it enters no pixel term.
    found = numpy_reference.segmentation(states[:2], batch["mask"][:2])
    terms += np.mean(found, axis=1)
  for part, value in zip(
    ("pixel_focal", "dice_anomalous", "dice_normal"), terms
  ):
    close(parts[part], method.map_weight * value)
  close(prediction["anomaly_map"], np.mean(maps, axis=0))


def test_without_masks_there_is_no_pixel_loss(
  small_clip, params, aux, batch, encoded
):
  features = select_layers(encoded["ours"], SMALL.feature_layers)
  unknown = {**batch, "has_mask": jnp.zeros(3, bool)}
  _, parts, _ = run(SMALL, params, small_clip, aux, features, unknown)
  assert parts.pop("image_ce") > 0
  assert set(map(float, parts.values())) == {0.0}


def test_class_token_skips_ln_post_unless_asked(encoded):
  clips = numpy_reference.unit(encoded["clip"])
  close(encoded["ln_post"]["class_unit"], clips)
  close(encoded["ours"]["class_unit"], numpy_reference.unit(encoded["class"]))
  assert np.abs(encoded["ours"]["class_unit"] - clips).max() > 1e-3


def test_patches_of_plain_clip_and_of_the_value_value_stream(encoded):
  plain = np.stack(encoded["patches"], axis=1)
  close(encoded["plain"]["patch_units"], numpy_reference.unit(plain))
  ours = np.asarray(encoded["ours"]["patch_units"])
  assert (
    np.abs(ours - numpy_reference.unit(plain)).max(axis=(0, 2, 3)) > 1e-2
  ).all()


def rounded(params):
  half = lambda x: jnp.asarray(np.asarray(x).astype(np.float16), jnp.float32)
  return {**params, "deep": jax.tree.map(half, params["deep"])}


@pytest.mark.parametrize("mode", ["overwrite", "insert"])
def test_deep_tokens_by_hand(small_clip, params, aux, mode):
  ours = text(
    dataclasses.replace(SMALL, deep_mode=mode), params, small_clip, aux
  )
  embeds = np.array(aux["embeds"])
  embeds[0, 1:4] = params["context"]["normal"]
  embeds[1, 1:4] = params["context"]["anomalous"]
  # Sets 0 and 1 stand at the input of the second and the third block.
  deep = {int(k) + 1: x for k, x in rounded(params)["deep"].items()}
  assert sorted(deep) == [1, 2]
  expected = jax.jit(
    lambda backbone, embeds, deep: numpy_reference.text(
      backbone, embeds, aux["end"], deep, insert=mode == "insert"
    )
  )(small_clip, jnp.asarray(embeds), deep)
  close(ours, expected)


def test_deep_modes_differ(small_clip, params, aux):
  mode = functools.partial(dataclasses.replace, SMALL)
  run = lambda method: text(method, params, small_clip, aux)
  assert np.abs(run(SMALL) - run(mode(deep_mode="insert"))).max() > 1e-2
  with pytest.raises(ValueError, match="overwrite.*insert.*'append'"):
    run_lib.make_method("anomalyclip", {"deep_mode": "append"})


def test_rounding_is_that_of_the_deep_tokens(small_clip, params, aux):
  exact = dataclasses.replace(SMALL, round_fp16=False)
  ours = text(SMALL, params, small_clip, aux)
  np.testing.assert_allclose(  # GPUs fuse the two programs differently.
    ours, text(exact, rounded(params), small_clip, aux), atol=2e-6
  )
  unrounded = text(exact, params, small_clip, aux)
  assert 1e-6 < np.abs(ours - unrounded).max() < 1e-2


def test_prompts_and_end_positions(small_clip):
  aux = anomalyclip.Method().prepare(small_clip, [])
  np.testing.assert_array_equal(aux["end"], [15, 16])
  start, end, x, pad = 49406, 49407, 343, 0
  damaged, thing, stop = 13568, 14115, 269
  ids = np.array(
    [
      [start, *[x] * 12, thing, stop, end, pad],
      [start, *[x] * 12, damaged, thing, stop, end],
    ]
  )
  table = small_clip.params["text"]["token_embedding"]
  np.testing.assert_array_equal(aux["embeds"], np.asarray(table)[ids])


def test_learned_vectors_replace_the_placeholders(params, aux):
  ours = np.asarray(SMALL.prompts(params, aux))
  for i, state in enumerate(("normal", "anomalous")):
    np.testing.assert_array_equal(ours[i, 1:4], params["context"][state])
  np.testing.assert_array_equal(
    np.delete(ours, [1, 2, 3], axis=1),
    np.delete(aux["embeds"], [1, 2, 3], axis=1),
  )


def test_cutting_the_padding_changes_nothing(small_clip, params, aux):
  table = np.asarray(small_clip.params["text"]["token_embedding"])
  k, t, c = aux["embeds"].shape
  padding = np.broadcast_to(table[0], (k, 77 - t, c))
  embeds = np.concatenate([aux["embeds"], padding], axis=1)
  whole = {**aux, "embeds": jnp.asarray(embeds)}
  np.testing.assert_allclose(
    text(SMALL, params, small_clip, aux),
    text(SMALL, params, small_clip, whole),
    atol=1e-5,
  )


def shapes_at_full_size(method):
  """Return the shapes of parameters and statistics with ViT-L/14@336."""
  backbone = clip.Clip({}, config.MODELS["ViT-L-14-336"])
  return jax.eval_shape(lambda: method.init(jax.random.key(0), backbone))


def test_parameter_count_at_full_size():
  params, stats = shapes_at_full_size(anomalyclip.Method())
  # The published 5,555,200 without 5,512,192 that are never used.
  assert sum(x.size for x in jax.tree.leaves(params)) == 43_008
  assert not stats and len(params["deep"]) == 8


# ---- Ensemble*: several anomalous prompts.


STAR = dataclasses.replace(SMALL, num_anomalous=4)


def test_parameter_count_of_the_ensemble_at_full_size():
  config = config_files.load("anomalyclip:paper,ensemble")
  method = run_lib.make_method("anomalyclip", config.method.to_dict())
  params, stats = shapes_at_full_size(method)
  assert sum(x.size for x in jax.tree.leaves(params)) == 125_952 and not stats
  found = method.checkpoint_spec
  assert found.names[1].path == "context/anomalous"


def test_the_ensemble_compares_the_mean_of_its_anomalous_prompts():
  text = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
  unit, mean = numpy_reference.unit, lambda x: x[1:].mean(axis=0)
  ours = STAR.text_units(jnp.asarray(text))
  close(ours, unit(np.stack([text[0], mean(text)])))
  units = dataclasses.replace(STAR, anomalous_mean="unit")
  ours = units.text_units(jnp.asarray(text))
  close(ours, unit(np.stack([text[0], mean(unit(text))])))


def test_prompts_of_the_ensemble(small_clip, aux):
  params = numpy_reference.initial(STAR, small_clip)
  ours = np.asarray(STAR.prompts(params, aux))
  context = params["context"]
  np.testing.assert_array_equal(ours[0, 1:4], context["normal"])
  np.testing.assert_array_equal(ours[1:, 1:4], context["anomalous"])
  for row in ours[1:]:
    np.testing.assert_array_equal(row[4:], aux["embeds"][1, 4:])
  buffers = STAR.checkpoint_spec.buffers(STAR, small_clip)
  shape = buffers["prompt_learner.tokenized_prompts_neg"].shape
  assert shape == (1, 4, 77)
