"""A small DINOv2 in the formats of transformers and of Meta, without torch."""

import json

import numpy as np
from safetensors import numpy as safetensors

from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.dinov2 import convert
from zsad_jax.torch_io import file as torch_file
from zsad_jax.torch_io import rules

MASK_TOKEN = "mask_token"


def write_hugging_face(model, folder):
  """Write config.json and model.safetensors of a model of transformers."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(config_json(model.config)))
  state = _renamed(model, convert.HUGGING_FACE, separate=True)
  state[f"embeddings.{MASK_TOKEN}"] = np.zeros((1, model.config.width), "f4")
  safetensors.save_file(state, folder / "model.safetensors")


def write_meta(model, path):
  """Write a .pth file with the names of facebookresearch/dinov2."""
  state = _renamed(model, convert.META, separate=False)
  state[MASK_TOKEN] = np.zeros((1, model.config.width), "f4")
  torch_file.write(path, state)


def _renamed(model, table, *, separate):
  state = {}
  for path, x in clip_convert.flatten(model.params).items():
    parts = {path: np.asarray(x)}
    if separate and "/in_proj/" in path:
      thirds = np.split(np.asarray(x), 3, axis=-1)
      parts = {
        path.replace("in_proj", f"{letter}_proj"): third
        for letter, third in zip("qkv", thirds)
      }
    for name, value in parts.items():
      theirs, layout = rules.invert(name, table)
      value = rules.LAYOUTS[layout][1](value)
      state[theirs] = np.array(value, order="C")
  return state


def config_json(sizes):
  """Return the content of config.json."""
  fields = {
    "model_type": "dinov2",
    "hidden_size": sizes.width,
    "num_hidden_layers": sizes.layers,
    "num_attention_heads": sizes.heads,
    "image_size": sizes.image_size,
    "patch_size": sizes.patch_size,
    "use_swiglu_ffn": sizes.swiglu,
  }
  if sizes.registers:
    fields["model_type"] = "dinov2_with_registers"
    fields["num_register_tokens"] = sizes.registers
  return fields
