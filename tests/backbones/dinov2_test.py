"""Tests of `zsad_jax.backbones.dinov2`; parity_test.py compares its outputs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import dinov2_files, dinov2_reference
from zsad_jax import backbones, types
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.backbones.clip import sources as clip_sources
from zsad_jax.backbones.dinov2 import config as dino_config
from zsad_jax.backbones.dinov2 import (
  conversion,
  convert,
  load,
  model,
  sources,
)
from zsad_jax.backbones.dinov2.config import DinoConfig
from zsad_jax.layers import dual_path

TINY = DinoConfig(width=64, layers=2, image_size=28, patch_size=7)
SIZES = {
  "plain": TINY,
  "registers": dataclasses.replace(TINY, registers=3),
  "gated": dataclasses.replace(TINY, swiglu=True),
}


@pytest.fixture(scope="module")
def tiny():
  return model.random_dinov2(SIZES["registers"], 1)


@pytest.fixture(scope="module")
def image():
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(2, 28, 28, 3)), jnp.float32)


def same(params, expected):
  jax.tree.map(np.testing.assert_array_equal, dict(params), dict(expected))


@pytest.mark.parametrize("case", SIZES)
def test_both_published_formats_and_our_file_hold_the_same(
  case, tmp_path, monkeypatch
):
  monkeypatch.setitem(dino_config.MODELS, "dinov2-tiny", SIZES[case])
  monkeypatch.setattr(load, "PUBLISHED", (load._published("dinov2-small"),))
  expected = model.random_dinov2(SIZES[case], 3)
  dinov2_files.write_hugging_face(expected, tmp_path / "hub")
  dinov2_files.write_meta(expected, tmp_path / "meta.pth")
  for i, source in enumerate(("hub", "meta.pth")):
    output = tmp_path / f"{i}.safetensors"
    summary = conversion.convert(
      str(tmp_path / source), output, model="dinov2-tiny"
    )
    assert f"params  {sum(x.size for x in jax.tree.leaves(expected)):,}" in (
      summary
    )
    found = load.load("dinov2-tiny", str(output))
    assert found.config == SIZES[case] and found.dtype == "float32"
    same(found.params, expected.params)
  # And back to the names of Meta.
  dinov2_files.write_meta(found, tmp_path / "again.pth")
  again = sources.read(str(tmp_path / "again.pth"))
  same(again.params, expected.params)


def test_wrong_sizes_and_other_models_are_refused(tiny, tmp_path, small_clip):
  dinov2_files.write_meta(tiny, tmp_path / "tiny.pth")
  read = lambda name: conversion.convert(
    str(tmp_path / name), tmp_path / "out", model="dinov2-small"
  )
  with pytest.raises(ValueError, match="not dinov2-small: width: expected 384"):
    read("tiny.pth")
  params = {"conv1": {"kernel": np.ones((7, 7, 3, 64), np.float32)}}
  with pytest.raises(ValueError, match="2 missing|missing: conv1/bias"):
    conversion.save(tmp_path / "x", params, TINY, {})
  dinov2_files.torch_file.write(tmp_path / "x.pth", {"a": np.ones(2)})
  with pytest.raises(ValueError, match="is not a DINOv2: it has no patch_emb"):
    read("x.pth")
  with pytest.raises(ValueError, match="is no CLIP. Is it a DINOv2. Give its"):
    clip_sources.read(str(tmp_path / "tiny.pth"))
  with pytest.raises(FileNotFoundError, match="no name on the hub, such as f"):
    read("nowhere.pth")


def test_converted_files_of_another_kind_are_refused(
  tiny, tmp_path, small_clip
):
  ours, clip = tmp_path / "d.safetensors", tmp_path / "c.safetensors"
  conversion.save(ours, tiny.params, tiny.config, {})
  with pytest.raises(ValueError, match="is not dinov2-base: width: expected 7"):
    load.load("dinov2-base", str(ours))
  with pytest.raises(ValueError, match="holds weights of DINOv2, expected CL"):
    clip_load.load("ViT-L-14", str(ours))
  clip_load.weights.save(clip, small_clip.params, small_clip.config, {})
  with pytest.raises(ValueError, match="holds weights of CLIP, expected DINO"):
    load.load("dinov2-base", str(clip))
  with pytest.raises(ValueError, match="path is empty.*--model=dinov2-base"):
    load.load("dinov2-base", "")
  with pytest.raises(FileNotFoundError, match="weights get dinov2-giant"):
    load.load("dinov2-giant", "weights/dinov2-giant.safetensors")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"model_type": "clip"},
      "model_type is 'clip', expected dinov2 or dinov2_",
    ),
    ({"hidden_act": "relu"}, "hidden_act is 'relu', but our tower has 'gelu'"),
    ({"mlp_ratio": 2}, "mlp_ratio is 2"),
    ({"num_hidden_layers": 3}, "14 missing: resblocks_2"),
    ({"hidden_size": 0}, "hidden_size is 0, expected a whole number"),
  ],
)
def test_a_config_json_that_does_not_fit(tiny, tmp_path, change, message):
  folder = tmp_path / "hub"
  dinov2_files.write_hugging_face(tiny, folder)
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match=message):
    sources.read(str(folder))


def test_another_normalization_of_pixels_is_refused(tiny, tmp_path):
  dinov2_files.write_hugging_face(tiny, tmp_path / "hub")
  path = tmp_path / "hub/preprocessor_config.json"
  path.write_text('{"image_mean": [0.485, 0.456, 0.406]}')
  sources.read(str(tmp_path / "hub"))
  path.write_text('{"image_mean": [0.5, 0.5, 0.5]}')
  with pytest.raises(ValueError, match="trained with .0.485, 0.456, 0.406"):
    sources.read(str(tmp_path / "hub"))


def test_the_published_models_have_the_published_sizes():
  # Numbers of the models of transformers, without the mask token.
  published = {
    "dinov2-small": 22_056_192,
    "dinov2-base": 86_579_712,
    "dinov2-large": 304_367_616,
    "dinov2-giant": 1_136_479_232,
    "dinov2-with-registers-small": 22_057_728,
    "dinov2-with-registers-giant": 1_136_485_376,
  }
  for name, count in published.items():
    shapes = convert.param_shapes(dino_config.MODELS[name])
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count
  assert {entry.name for entry in load.PUBLISHED} == {*dino_config.MODELS}
  assert {*load.NAMES} <= {*backbones.names()}
  entry = backbones.published()["dinov2-with-registers-large"]
  assert entry.repo == "facebook/dinov2-with-registers-large"
  assert entry.local.url.endswith(
    "/dinov2_vitl14/dinov2_vitl14_reg4_pretrain.pth"
  )


def test_random_weights_are_selected_by_name_only():
  found = backbones.load("dinov2-random", "")
  assert isinstance(found, types.ImageBackbone)
  assert not isinstance(found, types.TextBackbone)
  assert "random weights" in backbones.note("dinov2-random")
  again = backbones.load("dinov2-random", "")
  assert backbones.digest(found) == backbones.digest(again)
  half = backbones.load("dinov2-random", "", "bfloat16", "flash")
  assert half.attention == "flash"
  assert half.params["conv1"]["kernel"].dtype == jnp.bfloat16


def test_pixels_are_normalized_with_the_statistics_of_imagenet(tiny):
  pixels = np.arange(0, 256, 17, np.uint8).reshape(1, -1, 1).repeat(3, 2)
  expected = pixels / 255 - np.array([0.485, 0.456, 0.406])
  expected = expected / np.array([0.229, 0.224, 0.225])
  np.testing.assert_allclose(tiny.normalize(pixels), expected, atol=1e-6)


def test_hooks_of_clip_alone_are_refused(tiny, image):
  with pytest.raises(ValueError, match="vv_from is 2, but DINOv2 has no val"):
    tiny.image(image, vv_from=2)
  with pytest.raises(ValueError, match="'quick' is one of CLIP.*'gelu_erf'"):
    tiny.image(image, activation="quick")
  gated = model.random_dinov2(SIZES["gated"], 0)
  with pytest.raises(ValueError, match="set config.method.activation to None"):
    gated.image(image, activation="gelu_erf")
  with pytest.raises(ValueError, match="DINOv2 has no hook 'keep'"):
    tiny.image(image, keep=None)
  with pytest.raises(ValueError, match="28 x 30 pixels.*patch size, 7"):
    tiny.image(jnp.zeros((1, 28, 30, 3)))
  with pytest.raises(ValueError, match="Prompts for 3 vision blocks.* has 2"):
    tiny.image(image, prompts=jnp.zeros((2, 3, 1, 64)))


def test_hooks_that_save_time_or_memory_change_no_number(tiny, image):
  embed, out = tiny.image(image)
  alone, last = tiny.image(image, last_patches=False, activation="gelu_erf")
  np.testing.assert_allclose(alone, embed, atol=2e-6)
  assert last["block02"].shape == (2, 1, 64)
  again, _ = tiny.image(image, remat=True)
  np.testing.assert_allclose(again, embed, atol=2e-6)
  half, _ = tiny.with_dtype("bfloat16").image(image)
  np.testing.assert_allclose(half, embed, atol=0.1)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(
    tiny.project(out["class"], ln_post=True), embed, atol=2e-6
  )


def test_prompts_are_tokens_after_the_patches(tiny, image):
  """A prompt equal to a register has the effect of one more register."""
  row = tiny.params["register_embedding"][:1]
  more = jnp.concatenate([tiny.params["register_embedding"], row])
  sizes = dataclasses.replace(tiny.config, registers=4)
  params = {**tiny.params, "register_embedding": more}
  expected, out = model.Dinov2(params, sizes).image(image)
  prompts = jnp.broadcast_to(row, (2, 1, 1, 64))
  found, tokens = tiny.image(image, prompts=prompts)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_allclose(tokens["block02"], out["block02"], atol=1e-5)


def test_features_of_layers_are_those_of_clips_hooks(tiny, image):
  embed, tokens = dual_path.encode(
    tiny, image, feature_layers=(1, 2), vv_from=None, class_ln_post=True
  )
  expected, out = tiny.image(image)
  np.testing.assert_allclose(embed, expected, atol=2e-6)
  for x, name in zip(tokens, ("block01", "block02")):
    given = np.asarray(out[name], np.float64)
    given -= given.mean(-1, keepdims=True)
    given /= np.sqrt((given**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(x, given, atol=1e-5)
  with pytest.raises(ValueError, match="no layer 3: the vision tower has 2"):
    dual_path.check_layers(tiny, (3,))


def _compare(fields, sizes, tmp_path):
  """Compare with a model of transformers made now; return the difference."""
  torch_model = dinov2_reference.make(fields, seed=11)
  state = dinov2_reference.published_names(torch_model, tmp_path / "hub")
  assert state
  params, config, _ = sources.read(str(tmp_path / "hub"))
  ours, rng = model.from_params(params, config), np.random.default_rng(2)
  run = jax.jit(lambda ours, x: ours.image(x))
  worst = 0.0
  for size in sizes:
    pixels = rng.integers(0, 256, (1, 3, *size), np.uint8)
    expected = dinov2_reference.outputs(torch_model, pixels)
    x = ours.normalize(jnp.asarray(np.moveaxis(pixels, 1, -1)))
    embed, out = run(ours, x)
    found = {**out, "pooled": embed}
    for name in expected:
      if name == "last":
        continue
      difference = np.abs(np.asarray(found[name]) - expected[name]).max()
      worst = max(worst, float(difference / np.abs(expected[name]).max()))
  return worst


@pytest.mark.slow
@pytest.mark.parametrize("case", dinov2_reference.CONFIGS)
def test_a_live_model_of_transformers_computes_the_same(case, tmp_path):
  pytest.importorskip("torch")
  fields = dinov2_reference.CONFIGS[case]
  sizes = [(28, 28), (56, 35), (14, 21)]
  assert _compare(fields, sizes, tmp_path) < 2e-5


@pytest.mark.slow
def test_a_live_vit_l_computes_the_same(tmp_path):
  pytest.importorskip("torch")
  config = dino_config.MODELS["dinov2-with-registers-large"]
  fields = dinov2_files.config_json(config)
  assert _compare(fields, [(224, 224), (518, 518)], tmp_path) < 2e-5
