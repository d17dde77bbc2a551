"""Tests of SAM's image encoder against stored tensors and transformers."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.conftest import GOLDENS
from zsad_jax import backbones, types
from zsad_jax.backbones.clip import convert as shared
from zsad_jax.backbones.clip import weights as clip_weights
from zsad_jax.backbones.sam import config as sam_config
from zsad_jax.backbones.sam import convert, load, model, sources, vision
from zsad_jax.torch_io import rules

SIZES = (20, 32, 40)


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDENS / "sam.npz") as stored:
    return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="module")
def state(golden):
  """The encoder's weights in the names of transformers."""
  return {k[2:]: x for k, x in golden.items() if k.startswith("w/")}


@pytest.fixture(scope="module")
def sam(state):
  return model.from_params(*convert.from_state(state))


@functools.partial(jax.jit, static_argnames="remat")
def encode(sam, image, remat=False):
  return sam.image(image, remat=remat)


def of_meta(state):
  """Return a state dict under Meta's names."""
  renamed = (
    ("vision_encoder", "image_encoder"),
    ("patch_embed.projection", "patch_embed.proj"),
    ("neck.conv1", "neck.0"),
    ("neck.layer_norm1", "neck.1"),
    ("neck.conv2", "neck.2"),
    ("neck.layer_norm2", "neck.3"),
    (".layers.", ".blocks."),
    ("layer_norm", "norm"),
  )
  found = {}
  for name, x in state.items():
    for old, new in renamed:
      name = name.replace(old, new)
    found[name] = x
  return found


def write_hugging_face(folder, state, **changes):
  """Write a SamModel of transformers with other parts than the encoder."""
  vision_config = {
    "hidden_act": "gelu",
    "image_size": 32,
    "window_size": 3,
    "num_attention_heads": 2,
    "global_attn_indexes": [1],
  }
  fields = {"model_type": "sam", "vision_config": vision_config | changes}
  folder.mkdir(exist_ok=True)
  (folder / "config.json").write_text(json.dumps(fields))
  more = {"prompt_encoder.a": np.ones(2, np.float32)}
  more["shared_image_embedding.positional_embedding"] = more["prompt_encoder.a"]
  path = folder / "model.safetensors"
  path.write_bytes(safetensors.numpy.save({**state, **more}))
  return str(folder)


@pytest.mark.parametrize("side", SIZES)
def test_the_encoder_is_that_of_transformers(side, sam, golden):
  """At the size of the tables, a smaller and a larger one."""
  _, out = encode(sam, jnp.asarray(golden[f"s{side}/image"], jnp.float32))
  for name in ("block01", "block02", "block03", "neck"):
    expected = golden[f"s{side}/{name}"]
    found = out[name] if name == "neck" else out[name][:, 1:]
    np.testing.assert_allclose(
      found.reshape(expected.shape), expected, atol=2e-5 * abs(expected).max()
    )


def test_the_mean_of_the_patches_replaces_the_class_token(sam, golden):
  embed, out = encode(sam, jnp.asarray(golden["s32/image"], jnp.float32))
  for name in ("block01", "block03"):
    assert out[name].shape == (2, 65, 16)
    mean = out[name][:, 1:].mean(axis=1)
    np.testing.assert_allclose(out[name][:, 0], mean, atol=1e-5)
  np.testing.assert_allclose(embed, out["block03"][:, 0], atol=1e-5)
  np.testing.assert_array_equal(embed, out["class"])
  np.testing.assert_array_equal(sam.project(embed, ln_post=True), embed)


def test_heads_in_turn_and_recomputed_blocks_agree(sam, monkeypatch):
  image = np.random.default_rng(0).normal(size=(1, 32, 32, 3))
  image = jnp.asarray(image, jnp.float32)
  expected, _ = encode(sam, image)
  monkeypatch.setattr(vision.kernels, "MANY_KEYS", 1)
  monkeypatch.setattr(vision.kernels, "one_cpu", lambda: True)
  np.testing.assert_allclose(sam.image(image)[0], expected, atol=1e-5)
  np.testing.assert_allclose(
    encode(sam, image, remat=True)[0], expected, atol=1e-5
  )


def test_relative_positions_are_those_of_the_distance():
  table = jnp.arange(7.0)[:, None]
  found = vision.relative_positions(table, 4)[..., 0]
  number = np.arange(4)
  np.testing.assert_array_equal(found, number[:, None] - number + 3)
  # Interpolated for a larger grid: monotonous, with the same ends.
  wide = np.asarray(vision.relative_positions(table, 8)[..., 0])
  assert wide[0, -1] == 0 and wide[-1, 0] == 6
  assert (np.diff(wide, axis=0) >= 0).all()


def test_padded_windows_round_trip():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 3)))
  windows = vision._split(x, 3)
  assert windows.shape == (2 * 2 * 3, 3, 3, 3)
  np.testing.assert_array_equal(vision._merge(windows, 2, 5, 7, 3), x)
  np.testing.assert_array_equal(windows[0], x[0, :3, :3])
  assert not windows[2, :, 1:].any()


def test_pixels_are_normalized_as_in_training(sam):
  pixels = np.array([[[[0, 255, 100]]]], np.uint8)
  found = sam.normalize(pixels)[0, 0, 0]
  mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
  expected = (np.array([0, 255, 100]) - mean) / std
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_it_is_an_image_backbone_without_text(sam):
  assert isinstance(sam, types.ImageBackbone)
  assert not isinstance(sam, types.TextBackbone)


@pytest.mark.parametrize(
  ("hooks", "message"),
  [
    ({"vv_from": 2}, "value-value stream .config.memory.vv_from=None"),
    ({"prompts": jnp.ones((1, 1, 1, 16))}, "learned prompts"),
    ({"keep": jnp.zeros((1, 1), int)}, "selection of patches"),
    ({"activation": "quick"}, "gelu_erf, got 'quick'"),
    ({"other": 1}, "cannot compute other"),
  ],
)
def test_what_it_cannot_do_is_named(sam, hooks, message):
  with pytest.raises(ValueError, match=message):
    sam.image(jnp.zeros((1, 32, 32, 3)), **hooks)


def test_sides_are_multiples_of_the_patch_size(sam):
  with pytest.raises(ValueError, match="30 x 32 .* patch size, 4"):
    sam.image(jnp.zeros((1, 30, 32, 3)))


def test_bfloat16_is_close(sam, golden):
  image = jnp.asarray(golden["s32/image"], jnp.float32)
  half, _ = encode(sam.with_dtype("bfloat16"), image)
  exact, _ = encode(sam, image)
  assert half.dtype == jnp.float32
  difference = abs(half - exact).max()
  assert 0 < difference < 0.1 * abs(exact).max()


def test_both_formats_hold_the_same_model(state, tmp_path, monkeypatch):
  tiny = convert.from_state(state)[1]
  monkeypatch.setitem(sam_config.MODELS, "sam-vit-base", tiny)
  torch_file = tmp_path / "sam.pth"
  meta = {**of_meta(state), "mask_decoder.x": np.ones(3, np.float32)}
  monkeypatch.setattr(
    sources.torch_file, "read", lambda path: meta if path == torch_file else 0
  )
  torch_file.touch()
  hugging_face = write_hugging_face(tmp_path / "hf", state)
  for source in (str(torch_file), hugging_face):
    output = tmp_path / "out.safetensors"
    summary = load.convert(source, str(output), model="sam-vit-base")
    assert "sha256" in summary and "params" in summary
    loaded = backbones.load("sam-vit-base", str(output))
    for name, x in shared.flatten(loaded.params).items():
      expected = rules.rename(state, convert.HUGGING_FACE)[name]
      np.testing.assert_array_equal(x, expected.reshape(x.shape))
    assert loaded.config == tiny
  entry = backbones.published()["sam-vit-base"]
  clip_weights.read_origin(output)
  assert load.identify("sam-vit-base", str(output)) is None
  params, config = convert.from_state(state)
  load.weights.save(output, params, config, {"name": f"{entry.repo}@1"})
  assert load.identify("sam-vit-base", str(output)) == entry


def test_a_wrong_size_is_refused(state, tmp_path):
  source = write_hugging_face(tmp_path, state)
  with pytest.raises(ValueError, match="not a sam-vit-base: it holds SamConf"):
    load.convert(source, str(tmp_path / "x"), model="sam-vit-base")
  params, config = convert.from_state(state)
  load.weights.save(tmp_path / "tiny", params, config, {})
  with pytest.raises(ValueError, match="backbone.name is sam-vit-large"):
    backbones.load("sam-vit-large", str(tmp_path / "tiny"))


@pytest.mark.parametrize(
  ("field", "value"),
  [("hidden_act", "relu"), ("window_size", 4), ("global_attn_indexes", [2])],
)
def test_settings_that_differ_are_refused(field, value, state, tmp_path):
  source = write_hugging_face(tmp_path, state, **{field: value})
  with pytest.raises(ValueError, match=f"vision_config.{field} is"):
    sources.read(source)


def test_a_file_of_another_model_is_refused(tiny, state, tmp_path):
  with pytest.raises(ValueError, match="not the image encoder of a SAM"):
    convert.from_state(tiny, source="clip.pt")
  path = tmp_path / "clip.safetensors"
  path.write_bytes(safetensors.numpy.save({"x": np.ones(2, np.float32)}))
  with pytest.raises(ValueError, match="holds no image encoder of SAM"):
    backbones.load("sam-vit-base", str(path))
  (tmp_path / "config.json").write_text('{"model_type": "clip"}')
  with pytest.raises(ValueError, match="model_type is 'clip', expected 'sam'"):
    sources.read(str(tmp_path))
  with pytest.raises(ValueError, match="does not fit .* missing"):
    convert.from_state({k: x for k, x in state.items() if "lin2" not in k})
  wrong = {k: x[:1] if "neck.layer_norm1" in k else x for k, x in state.items()}
  with pytest.raises(ValueError, match="neck/norm1/scale: expected"):
    convert.from_state(wrong)


def test_missing_weights_are_named(tmp_path):
  with pytest.raises(ValueError, match="path is empty.* --model=sam-vit-huge"):
    backbones.load("sam-vit-huge", "")
  with pytest.raises(FileNotFoundError, match="weights get sam-vit-huge"):
    backbones.load("sam-vit-huge", str(tmp_path / "none"))


def test_published_sizes():
  """Numbers of parameters of the published encoders."""
  counts = {"base": 89_670_912, "large": 308_278_272, "huge": 637_026_048}
  for name, count in counts.items():
    shapes = convert.param_shapes(sam_config.MODELS[f"sam-vit-{name}"])
    assert sum(int(np.prod(x)) for x in shapes.values()) == count


def test_the_random_one_needs_no_file():
  sam = backbones.load("sam-random", "")
  assert "random weights" in backbones.note("sam-random")
  embed, _ = encode(sam, jnp.zeros((1, 48, 48, 3)))
  assert embed.shape == (1, 64) and np.isfinite(embed).all()
  with pytest.raises(ValueError, match="no choice of attention"):
    backbones.load("sam-random", "", attention="flash")
