"""Writes a CLIP as a Hugging Face directory, without torch."""

import json
import pathlib

import numpy as np
from safetensors import numpy as safetensors

from zsad_jax.backbones.clip import convert
from zsad_jax.backbones.clip import model as clip
from zsad_jax.torch_io import rules


def write(backbone: clip.Clip, folder: pathlib.Path) -> None:
  """Write config.json and model.safetensors of a `transformers.CLIPModel`."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(_config(backbone.config)))
  state = {}
  for path, x in _separate_qkv(convert.flatten(backbone.params)):
    name, layout = rules.invert(path, convert.HUGGING_FACE)
    stored = rules.LAYOUTS[layout][1](np.asarray(x))
    state[name] = np.array(stored, order="C")
  safetensors.save_file(state, folder / "model.safetensors")


def _separate_qkv(flat):
  for path, x in flat.items():
    if "/in_proj/" not in path:
      yield path, x
      continue
    for letter, part in zip("qkv", np.split(np.asarray(x), 3, axis=-1)):
      yield path.replace("in_proj", f"{letter}_proj"), part


def _config(sizes):
  names = {ours: theirs for theirs, ours in convert.HF_ACTIVATIONS.items()}
  tower = lambda prefix: {
    "hidden_size": getattr(sizes, f"{prefix}_width"),
    "intermediate_size": 4 * getattr(sizes, f"{prefix}_width"),
    "num_hidden_layers": getattr(sizes, f"{prefix}_layers"),
    "num_attention_heads": getattr(sizes, f"{prefix}_heads"),
    "hidden_act": names[sizes.activation],
    "projection_dim": sizes.embed_dim,
  }
  vision = {"image_size": sizes.image_size, "patch_size": sizes.patch_size}
  text = {
    "vocab_size": sizes.vocab_size,
    "max_position_embeddings": sizes.context_length,
  }
  return {
    "model_type": "clip",
    "projection_dim": sizes.embed_dim,
    "vision_config": tower("vision") | vision,
    "text_config": tower("text") | text,
  }
