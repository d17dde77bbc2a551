"""A tiny CLIP in the formats of OpenAI and of transformers."""

import json
import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np
import safetensors.numpy

from tests.conftest import GOLDENS
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import convert as clip_convert

JIT = GOLDENS / "clip_micro_openai_jit.pt"
STATE_DICT = GOLDENS / "clip_micro_openai_state_dict.pt"
TINY = clip_config.ClipConfig(64, 56, 14, 128, 8, 64, 4)
HF_CONFIG = {
  "model_type": "clip",
  "projection_dim": 64,
  "vision_config": dict(
    hidden_size=128,
    num_hidden_layers=8,
    num_attention_heads=2,
    intermediate_size=512,
    image_size=56,
    patch_size=14,
  ),
  "text_config": dict(
    hidden_size=64,
    num_hidden_layers=4,
    num_attention_heads=1,
    intermediate_size=256,
  ),
}

TO_HUGGING_FACE = [
  (r"^visual\.conv1", "vision_model.embeddings.patch_embedding"),
  (r"^visual\.class", "vision_model.embeddings.class"),
  (r"^visual\.pos\w+", "vision_model.embeddings.position_embedding.weight"),
  (r"^pos\w+", "text_model.embeddings.position_embedding.weight"),
  (r"^token_embedding", "text_model.embeddings.token_embedding"),
  (r"^visual\.transformer\.resblocks", "vision_model.encoder.layers"),
  (r"^transformer\.resblocks", "text_model.encoder.layers"),
  (r"^visual\.ln_pre", "vision_model.pre_layrnorm"),
  (r"^visual\.ln_post", "vision_model.post_layernorm"),
  (r"^ln_final", "text_model.final_layer_norm"),
  (r"^visual\.proj", "visual_projection.weight"),
  (r"^text_projection", "text_projection.weight"),
  (r"\.ln_([12])", r".layer_norm\1"),
  (r"\.attn\.", ".self_attn."),
  (r"\.c_fc", ".fc1"),
  (r"\.c_proj", ".fc2"),
]


def to_hugging_face(
  state: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
  """Yield the arrays of an OpenAI state dict under names of transformers."""
  for name, x in state.items():
    for ours, theirs in TO_HUGGING_FACE:
      name = re.sub(ours, theirs, name)
    if ".in_proj_" in name:
      for letter, third in zip("qkv", np.split(x, 3)):
        yield name.replace(".in_proj_", f".{letter}_proj."), third
    else:
      yield name, x.T if "projection" in name else x


def write_safetensors(
  path: pathlib.Path, state: Mapping[str, np.ndarray]
) -> None:
  """Write arrays, contiguous as safetensors needs them."""
  state = {name: np.asarray(x, order="C") for name, x in state.items()}
  safetensors.numpy.save_file(state, path)


def write_directory(
  folder: pathlib.Path, state: Mapping[str, np.ndarray]
) -> None:
  """Write a model of transformers whose weights are split over two files."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(HF_CONFIG))
  ordered = sorted(state)
  weight_map = {}
  for i, part in enumerate((ordered[:100], ordered[100:])):
    file = f"model-0000{i + 1}-of-00002.safetensors"
    write_safetensors(folder / file, {name: state[name] for name in part})
    weight_map |= dict.fromkeys(part, file)
  index = {"metadata": {}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def assert_same(found: Mapping, expected: Mapping) -> None:
  """Check for equal names, shapes, data types and values."""
  found, expected = clip_convert.flatten(found), clip_convert.flatten(expected)
  assert found.keys() == expected.keys()
  for name, x in expected.items():
    assert found[name].dtype == x.dtype, name
    np.testing.assert_array_equal(found[name], x, err_msg=name, strict=True)
