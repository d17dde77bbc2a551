"""Tests of `zsad_jax.backbones.clip.convert`: names, layouts and sizes."""

import re

import numpy as np
import pytest
import transformers

from tests.helpers.clip_files import (
  HF_CONFIG,
  TINY,
  assert_same,
  to_hugging_face,
)
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import convert as clip_convert


@pytest.fixture(scope="module")
def tiny_hf(tiny):
  """The same weights under the names of transformers."""
  return dict(to_hugging_face(tiny))


def test_layout_of_our_tree(tiny):
  params, config = clip_convert.from_openai(tiny)
  assert config == TINY
  block = "visual.transformer.resblocks.5"
  ours = params["visual"]["resblocks_5"]
  np.testing.assert_array_equal(
    ours["attn"]["in_proj"]["kernel"],
    tiny[f"{block}.attn.in_proj_weight"].T,
  )
  np.testing.assert_array_equal(
    ours["mlp"]["c_fc"]["kernel"][3], tiny[f"{block}.mlp.c_fc.weight"][:, 3]
  )
  np.testing.assert_array_equal(
    params["visual"]["conv1"]["kernel"][:, :, 2, 7],
    tiny["visual.conv1.weight"][7, 2],
  )
  np.testing.assert_array_equal(
    params["text"]["text_projection"], tiny["text_projection"]
  )
  assert params["logit_scale"].shape == ()


@pytest.mark.parametrize(
  ("model", "count"),
  [
    ("ViT-B-32", 151_277_313),
    ("ViT-B-16", 149_620_737),
    ("ViT-L-14", 427_616_513),
    ("ViT-L-14-336", 427_944_193),
    ("ViT-H-14", 986_109_441),
  ],
)
def test_published_parameter_counts(model, count):
  shapes = clip_convert.param_shapes(clip_config.MODELS[model])
  assert sum(np.prod(shape, dtype=int) for shape in shapes.values()) == count


@pytest.mark.parametrize("model", clip_config.MODELS)
def test_sizes_are_inferred_from_the_weights(model):
  expected = clip_config.MODELS[model]
  # Arrays of the full shapes that take no memory, under our own names.
  flat = {
    name: np.broadcast_to(np.float16(0), shape)
    for name, shape in clip_convert.param_shapes(expected).items()
  }
  assert (
    clip_convert._infer_config(flat, expected.activation, "test") == expected
  )


def test_unusual_width_is_refused(tiny):
  state = dict(tiny)
  state["visual.conv1.weight"] = np.zeros((100, 3, 14, 14))
  with pytest.raises(ValueError, match="vision tower of width 100"):
    clip_convert.from_openai(state)


def test_unused_entries_are_dropped(tiny, tiny_hf):
  unused = {"input_resolution": np.array(56), "attn_mask": np.zeros((77, 77))}
  assert_same(
    clip_convert.from_openai(tiny | unused)[0],
    clip_convert.from_openai(tiny)[0],
  )
  positions = {"vision_model.embeddings.position_ids": np.arange(17)}
  params, _ = clip_convert.from_hugging_face(tiny_hf | positions, _hf_config())
  assert_same(params, clip_convert.from_openai(tiny)[0])


def test_the_error_lists_all_differences(tiny):
  state = dict(tiny)
  del state["visual.ln_post.bias"]
  state["visual.transformer.resblocks.3.attn.extra"] = np.zeros(3)
  state["ln_final.weight"] = np.zeros(65)
  message = re.escape(
    "1 missing: visual/ln_post/bias; "
    "1 unknown: visual.transformer.resblocks.3.attn.extra; "
    "1 misshapen: text/ln_final/scale: expected (64,), found (65,)."
  )
  with pytest.raises(ValueError, match=f"mine.pt does not fit .*{message}"):
    clip_convert.from_openai(state, source="mine.pt")


def test_a_missing_block_is_noticed_and_long_lists_are_cut(tiny):
  state = {n: x for n, x in tiny.items() if "visual.transformer" not in n}
  state |= {n: x for n, x in tiny.items() if ".resblocks.7." in n}
  with pytest.raises(ValueError) as error:
    clip_convert.from_openai(state)
  message = str(error.value)
  listed = re.search("84 missing: (.*); 0 unknown; 0 misshapen", message)
  assert len(listed[1].split(", ")) == clip_convert.MAX_LISTED + 1
  assert listed[1].endswith(", ...")


def test_not_a_vit(tiny):
  resnet = {
    "visual.conv1.weight": np.zeros((32, 3, 3, 3)),
    "visual.layer1.0.conv1.weight": np.zeros((64, 64, 1, 1)),
    "visual.attnpool.k_proj.bias": np.zeros(2048),
  }
  state = {n: x for n, x in tiny.items() if "visual" not in n} | resnet
  message = r"2 missing: .*visual/proj; 2 unknown: visual.layer1.0"
  with pytest.raises(ValueError, match=message):
    clip_convert.from_openai(state)
  state = tiny | {"visual.conv1.weight": np.zeros((128, 588))}
  message = r"conv1/kernel: expected 4 axes, found \(128, 588\)"
  with pytest.raises(ValueError, match=message):
    clip_convert.from_openai(state)


def _hf_config(**fields):
  """Return a complete config of transformers; replace vision fields."""
  vision = HF_CONFIG["vision_config"] | fields
  return transformers.CLIPConfig(**HF_CONFIG | {"vision_config": vision})


def test_hugging_face_equals_openai(tiny, tiny_hf):
  params, config = clip_convert.from_hugging_face(tiny_hf, _hf_config())
  assert config == TINY
  assert_same(params, clip_convert.from_openai(tiny)[0])


def test_unsupported_hugging_face_configs(tiny_hf):
  for fields, message in [
    ({"hidden_act": "relu"}, "hidden_act is 'relu' in the vision tower"),
    ({"hidden_act": "gelu"}, "expected one of .* in both"),
    ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06"),
    ({"num_hidden_layers": 9}, r"12 missing: visual/resblocks_8/ln_1/scale"),
  ]:
    with pytest.raises(ValueError, match=message):
      clip_convert.from_hugging_face(tiny_hf, _hf_config(**fields))


def test_incomplete_projections_are_not_fused(tiny_hf):
  state = dict(tiny_hf)
  del state["text_model.encoder.layers.1.self_attn.k_proj.bias"]
  message = (
    "1 missing: text/resblocks_1/attn/in_proj/bias; 2 unknown: "
    "text/resblocks_1/attn/q_proj/bias, text/resblocks_1/attn/v_proj/bias"
  )
  with pytest.raises(ValueError, match=message):
    clip_convert.from_hugging_face(state, _hf_config())
