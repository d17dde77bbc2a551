"""Tests of linear probes on a small SAM with the text of a small CLIP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_run
from zsad_jax import backbones, losses, train, types
from zsad_jax.backbones import image_only, paired
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import model as clip_model
from zsad_jax.backbones.sam import config as sam_config
from zsad_jax.backbones.sam import convert as sam_convert
from zsad_jax.backbones.sam import model as sam_model
from zsad_jax.inference import few_shot, predictor
from zsad_jax.layers import prompts
from zsad_jax.methods import adaclip, linear_probe
from zsad_jax.runs import backbone as backbone_lib
from zsad_jax.runs import detector, threshold
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import config_files

CLASSES = ("hex nut", "wood-grain")
LEVELS = (2, 4)
METHOD = linear_probe.Method(feature_layers=LEVELS)
PLAIN = linear_probe.Method(feature_layers=LEVELS, head="linear2")


@pytest.fixture(scope="module")
def both(small_clip):
  return paired.Paired(backbones.load("sam-random", ""), small_clip)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  mask = np.zeros((3, 32, 32), np.uint8)
  mask[1, 8:20, 4:28] = 1
  return {
    "image": jnp.asarray(rng.normal(size=(3, 32, 32, 3)), jnp.float32),
    "class_id": jnp.array([0, 1, 0]),
    "mask": jnp.asarray(mask),
    "has_mask": jnp.array([True, True, False]),
    "label": jnp.array([0, 1, 1]),
    "weight": jnp.ones(3),
  }


@functools.partial(jax.jit, static_argnums=0)
def run(method, params, backbone, aux, batch):
  features = method.encode(backbone, batch)
  prediction = method.predict(params, {}, backbone, aux, features)
  loss, (parts, _) = method.loss(
    params, {}, backbone, aux, features, batch, None
  )
  return features, prediction, loss, parts


def softmax(x):
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def text_units(clip):
  """Means of the unit embeddings of AdaCLIP's prompts, one by one."""
  rows = []
  encode = jax.jit(
    lambda ids, end: clip.text(
      clip.embed_tokens(ids), end, activation="gelu_erf"
    )[0]
  )
  for name in CLASSES:
    normal, anomalous = prompts.adaclip(name)
    each = unit(np.asarray(encode(*clip.tokenize([*normal, *anomalous]))))
    for part in (each[: len(normal)], each[len(normal) :]):
      rows.append(unit(part.mean(axis=0)))
  return np.stack(rows).reshape(2, 2, -1)


@pytest.mark.parametrize("method", [METHOD, PLAIN], ids=["text", "linear2"])
def test_logits_are_those_of_the_definition(method, both, batch):
  params, stats = method.init(jax.random.key(0), both)
  assert stats == {}
  aux = method.prepare(both, CLASSES)
  features, found, loss, parts = run(method, params, both, aux, batch)
  embed, out = both.image_model.image(batch["image"])
  np.testing.assert_allclose(features["image_embed"], embed, atol=1e-5)

  def logits(head, x):
    x = np.asarray(x) @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    if method.head == "linear2":
      return x
    own = text_units(both.text_model)[np.asarray(batch["class_id"])]
    spec = "bld,bsd->bls" if x.ndim == 3 else "bd,bsd->bs"
    return 100 * np.einsum(spec, unit(x), own)

  image = softmax(logits(params["image_projection"], embed))
  np.testing.assert_allclose(found["pred_score"], image[:, 1], atol=2e-4)
  levels = [
    logits(params["patch_projection"][str(i)], out[f"block{n:02d}"][:, 1:])
    for i, n in enumerate(LEVELS)
  ]
  # Corners of the map are those of the patches.
  mean = softmax(np.mean(levels, axis=0)).reshape(3, 4, 4, 2)
  corners = np.asarray(found["anomaly_map"])[:, ::31, ::31]
  np.testing.assert_allclose(corners, mean[:, ::3, ::3, 1], atol=2e-4)
  np.testing.assert_allclose(loss, sum(parts.values()), rtol=1e-6)
  expected = losses.focal(jnp.asarray(image), batch["label"]).mean()
  np.testing.assert_allclose(parts["image_focal"], expected, rtol=1e-3)


def test_the_loss_has_no_map_where_there_is_no_mask(both, batch):
  params, _ = PLAIN.init(jax.random.key(0), both)
  other = {**batch, "mask": batch["mask"].at[2].set(1)}
  first, second = (run(PLAIN, params, both, {}, b)[3] for b in (batch, other))
  for name in first:
    np.testing.assert_allclose(first[name], second[name], rtol=1e-6)


def test_a_clip_needs_no_second_model(small_clip, batch):
  method = linear_probe.Method(feature_layers=(1, 3))
  params, _ = method.init(jax.random.key(0), small_clip)
  aux = method.prepare(small_clip, CLASSES)
  _, found, _, _ = run(method, params, small_clip, aux, batch)
  assert found["anomaly_map"].shape == (3, 32, 32)


def test_references_are_compared_with_features_of_sam(both, batch):
  params, _ = METHOD.init(jax.random.key(0), both)
  aux = METHOD.prepare(both, CLASSES)
  few = few_shot.with_memory_bank(METHOD, feature_layers=LEVELS, vv_from=None)
  features = jax.jit(few.encode)(both, batch)
  bank = predictor.shared_memory_bank(
    few, jax.tree.map(lambda x: x[:1], features)
  )
  given = {**features, "memory_bank": bank}
  found = few.predict(params, {}, both, aux, given)
  alone = METHOD.predict(params, {}, both, aux, features["method"])
  close = functools.partial(np.testing.assert_allclose, atol=1e-5)
  close(found["pred_score"][0], 0.5 * alone["pred_score"][0])
  assert found["pred_score"][1] > 0.5 * alone["pred_score"][1] + 1e-3


def test_number_of_parameters_with_sam_vit_l():
  """Five layers from 1,024 to 768 channels."""

  def shapes(of, sizes):
    flat = {k: jnp.zeros(x) for k, x in of.param_shapes(sizes).items()}
    return clip_convert.unflatten(flat)

  def count(key):
    sizes = sam_config.MODELS["sam-vit-large"], clip_config.MODELS["ViT-L-14"]
    both = paired.Paired(
      sam_model.Sam(shapes(sam_convert, sizes[0]), sizes[0]),
      clip_model.Clip(shapes(clip_convert, sizes[1]), sizes[1]),
    )
    return linear_probe.Method().init(key, both)[0]

  params = jax.eval_shape(count, jax.random.key(0))
  assert run_lib.count(params) == 5 * (1024 * 768 + 768)


def test_what_needs_text_names_the_missing_encoder():
  sam = backbones.load("sam-random", "")
  with pytest.raises(ValueError, match="no text encoder"):
    METHOD.init(jax.random.key(0), sam)
  for name in image_only.TEXT:  # As any method asks for it.
    assert not hasattr(sam, name)
    with pytest.raises(ValueError, match="no text encoder: choose a CLIP"):
      getattr(sam, name)
  with pytest.raises(AttributeError, match="Sam has no attribute 'other'"):
    sam.other  # noqa: B018


def configuration(**changes):
  config = config_files.load("linear_probe").unlock()
  config.backbone.name = "sam-random"
  config.update(changes)
  return config


@pytest.mark.parametrize(
  ("text", "method", "message"),
  [
    ("", METHOD, "sam-random, which has no text .* set config.text_backbone"),
    ("sam-random", METHOD, "text_backbone.name is 'sam-random', which has no"),
    ("ViT-L-14", METHOD, "config.text_backbone.path is empty: .* of ViT-L-14"),
    ("none", METHOD, "config.text_backbone.name: no model 'none'; known"),
    ("embedded", PLAIN, "takes no text from a second model: set it to"),
    ("embedded", adaclip.Method(), "takes no text from a second model"),
  ],
)
def test_wrong_text_backbones_are_named(text, method, message):
  config = configuration()
  config.text_backbone.name = text
  with pytest.raises(ValueError, match=message):
    backbone_lib.load(config, method)


def test_both_models_are_loaded():
  config = configuration()
  config.text_backbone.name = "embedded_random"
  both = backbone_lib.load(config, METHOD)
  assert isinstance(both, types.ImageBackbone)
  assert isinstance(both, types.TextBackbone)
  assert (both.vision_width, both.text_width) == (64, 160)
  assert both.dtype == "float32"
  # The digest is that of both.
  image, text = both.image_model, both.text_model
  digests = {backbones.digest(x) for x in (both, image, text)}
  assert len(digests) == 3
  plain = backbone_lib.load(configuration(), PLAIN)
  assert not isinstance(plain, types.TextBackbone)


@pytest.mark.slow
def test_a_run_trains_predicts_and_compares_references(tmp_path):
  small_run.write_mvtec(tmp_path / "data")
  config = small_run._shrink(configuration(), str(tmp_path / "data"))
  config.backbone.name, config.memory.coreset = "sam-random", 0.5
  config.text_backbone.name = "embedded_random"
  config.method.feature_layers = config.memory.feature_layers = LEVELS
  train.train(config.lock(), tmp_path / "run")
  loaded = run_lib.load(tmp_path / "run")
  limits = threshold.Threshold(0.5, 0.0, 1.0, "given")
  found = detector.Detector(loaded, threshold=0.5, limits=limits)
  images = sorted((tmp_path / "data/bolt/test/bright").glob("*.png"))
  references = sorted((tmp_path / "data/bolt/train/good").glob("*.png"))
  result = found(str(images[0]))
  assert 0 <= result.score <= 1
  few = found.with_references([str(x) for x in references[:2]])
  # Half of the 2 * 16 patches of each layer.
  assert few._memory_bank.shape == (1, 1, 2, 16, 64)
  assert few(str(images[0])).score != result.score
