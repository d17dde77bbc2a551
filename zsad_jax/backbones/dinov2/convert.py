"""Conversion of published DINOv2 state dicts to our parameter tree.

Each table of rules (see `torch_io.rules`) maps the names and layouts of one
source to paths of our tree. `param_shapes` lists all of them.

  META          facebookresearch/dinov2
  HUGGING_FACE  Dinov2Model and Dinov2WithRegistersModel of transformers
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from zsad_jax import types
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.dinov2.config import HEAD_WIDTH, MODELS, DinoConfig
from zsad_jax.torch_io.rules import (
  Rule,
  Table,
  fuse,
  linear,
  norm,
  rename,
  without,
)

BLOCK = r"resblocks_\1"


def _conv1(pattern: str) -> Table:
  return (
    Rule(rf"{pattern}\.weight", "conv1/kernel", "conv"),
    Rule(rf"{pattern}\.bias", "conv1/bias"),
  )


_M = r"blocks\.(\d+)"
META = (
  Rule(r"cls_token", "class_embedding", "lead2"),
  Rule(r"pos_embed", "positional_embedding", "lead1"),
  Rule(r"register_tokens", "register_embedding", "lead1"),
  *_conv1(r"patch_embed\.proj"),
  *norm(rf"{_M}\.norm([12])", rf"{BLOCK}/ln_\2"),
  *linear(rf"{_M}\.attn\.qkv", f"{BLOCK}/attn/in_proj"),
  *linear(rf"{_M}\.attn\.proj", f"{BLOCK}/attn/out_proj"),
  Rule(rf"{_M}\.ls([12])\.gamma", rf"{BLOCK}/ls_\2"),
  *linear(rf"{_M}\.mlp\.fc1", f"{BLOCK}/mlp/c_fc"),
  *linear(rf"{_M}\.mlp\.fc2", f"{BLOCK}/mlp/c_proj"),
  *linear(rf"{_M}\.mlp\.(w12|w3)", rf"{BLOCK}/mlp/\2"),
  *norm(r"norm", "ln_post"),
)
_H, _A = r"encoder\.layer\.(\d+)", r"encoder\.layer\.(\d+)\.attention"
HUGGING_FACE = (
  Rule(r"embeddings\.cls_token", "class_embedding", "lead2"),
  Rule(r"embeddings\.position_embeddings", "positional_embedding", "lead1"),
  Rule(r"embeddings\.register_tokens", "register_embedding", "lead1"),
  *_conv1(r"embeddings\.patch_embeddings\.projection"),
  *norm(rf"{_H}\.norm([12])", rf"{BLOCK}/ln_\2"),
  *linear(rf"{_A}\.attention\.query", f"{BLOCK}/attn/q_proj"),
  *linear(rf"{_A}\.attention\.key", f"{BLOCK}/attn/k_proj"),
  *linear(rf"{_A}\.attention\.value", f"{BLOCK}/attn/v_proj"),
  *linear(rf"{_A}\.output\.dense", f"{BLOCK}/attn/out_proj"),
  Rule(rf"{_H}\.layer_scale([12])\.lambda1", rf"{BLOCK}/ls_\2"),
  *linear(rf"{_H}\.mlp\.fc1", f"{BLOCK}/mlp/c_fc"),
  *linear(rf"{_H}\.mlp\.fc2", f"{BLOCK}/mlp/c_proj"),
  *linear(rf"{_H}\.mlp\.weights_in", f"{BLOCK}/mlp/w12"),
  *linear(rf"{_H}\.mlp\.weights_out", f"{BLOCK}/mlp/w3"),
  *norm(r"layernorm", "ln_post"),
  # Names within transformers 5, which its files do not have.
  *linear(rf"{_A}\.([qkv]_proj)", rf"{BLOCK}/attn/\2"),
  *linear(rf"{_A}\.o_proj", f"{BLOCK}/attn/out_proj"),
  *linear(rf"{_H}\.mlp\.(gate_proj|up_proj)", rf"{BLOCK}/mlp/\2"),
  *linear(rf"{_H}\.mlp\.down_proj", f"{BLOCK}/mlp/w3"),
)
# Replaces masked patches in pretraining.
UNUSED = r"(embeddings\.)?mask_token"


def from_meta(
  state: Mapping[str, np.ndarray], *, source: str = "the state dict"
) -> tuple[types.Params, DinoConfig]:
  """Convert a state dict of facebookresearch/dinov2.

  Args:
    state: arrays by torch name, which determine the sizes of the model; heads
      have 64 channels, and the position table is that of square images.
    source: name of the state dict in error messages.

  Returns:
    The parameters, nested and in the data types of `state`, and the sizes of
    the model.

  Raises:
    ValueError: names or shapes are not those of a DINOv2.
  """
  flat = rename(without(state, UNUSED), META)
  config = _infer_config(flat, source)
  check(flat, config, source)
  return clip_convert.unflatten(flat), config


def from_hugging_face(
  state: Mapping[str, np.ndarray],
  config: DinoConfig,
  *,
  source: str = "the state dict",
) -> tuple[types.Params, DinoConfig]:
  """Convert the state dict of a model of transformers.

  Args:
    state: arrays by name.
    config: sizes of the model, of its config.json.
    source: name of the state dict in error messages.

  Returns:
    As `from_meta`.

  Raises:
    ValueError: names or shapes differ from those of `config`.
  """
  flat = rename(without(state, UNUSED), HUGGING_FACE)
  flat = fuse(flat, clip_convert.QKV, "in_proj")
  flat = fuse(flat, ("gate_proj", "up_proj"), "w12")
  check(flat, config, source)
  return clip_convert.unflatten(flat), config


def param_shapes(config: DinoConfig) -> dict[str, tuple[int, ...]]:
  """Return the shape of every parameter by its flat name."""
  c, p, h = config.width, config.patch_size, config.gated_width
  shapes: dict[str, tuple[int, ...]] = {
    "conv1/kernel": (p, p, 3, c),
    "conv1/bias": (c,),
    "class_embedding": (c,),
    "positional_embedding": (1 + config.grid**2, c),
  }
  if config.registers:
    shapes["register_embedding"] = (config.registers, c)
  mlp = {"w12": (c, 2 * h), "w3": (h, c)}
  if not config.swiglu:
    mlp = {"c_fc": (c, 4 * c), "c_proj": (4 * c, c)}
  linears = {"attn/in_proj": (c, 3 * c), "attn/out_proj": (c, c)}
  linears |= {f"mlp/{name}": sides for name, sides in mlp.items()}
  norms = []
  for i in range(config.layers):
    path = f"resblocks_{i}"
    norms += [f"{path}/ln_1", f"{path}/ln_2"]
    shapes |= {f"{path}/ls_1": (c,), f"{path}/ls_2": (c,)}
    for name, sides in linears.items():
      shapes[f"{path}/{name}/kernel"] = sides
      shapes[f"{path}/{name}/bias"] = sides[1:]
  for name in (*norms, "ln_post"):
    shapes |= {f"{name}/scale": (c,), f"{name}/bias": (c,)}
  return shapes


def check(params: types.Params, config: DinoConfig, source: str) -> None:
  """Check that parameters have the names and shapes of a configuration.

  Args:
    params: nested or flat parameters. Names that no rule translates are still
      those of the file.
    config: sizes of the model.
    source: name of the parameters in the error message.

  Raises:
    ValueError: names are missing or unknown, or shapes differ.
  """
  flat = clip_convert.flatten(params)
  found = {name: np.shape(x) for name, x in flat.items()}
  if problem := clip_convert.differences(param_shapes(config), found):
    raise ValueError(f"{source} does not fit {config}: {problem}")


def _infer_config(flat: Mapping[str, Any], source: str) -> DinoConfig:
  """Infer the sizes of a model from its weights."""
  axes = {"conv1/kernel": 4, "positional_embedding": 2}
  shapes = [np.shape(flat[name]) for name in axes if name in flat]
  if [len(shape) for shape in shapes] != [*axes.values()]:
    names = ", ".join(list(flat)[:3])
    raise ValueError(
      f"{source} is not a DINOv2: it has no patch_embed.proj.weight of four "
      f"axes and pos_embed of three; its first tensors are {names or 'none'}."
    )
  (patch_size, _, _, width), (positions, _) = shapes
  if width < 1 or positions < 2 or patch_size < 1:
    raise ValueError(f"{source}: the patch embedding has no element.")
  heads = [m.heads for m in MODELS.values() if m.width == width]
  if not heads and width % HEAD_WIDTH:
    raise ValueError(
      f"{source} has the width {width}, expected a multiple of {HEAD_WIDTH}, "
      "the width of a head."
    )
  registers = flat.get("register_embedding")
  numbers = [re.match(r"resblocks_(\d+)/", name) for name in flat]
  return DinoConfig(
    width=width,
    layers=max((int(m[1]) + 1 for m in numbers if m), default=0),
    heads=heads[0] if heads else 0,
    image_size=math.isqrt(positions - 1) * patch_size,
    patch_size=patch_size,
    registers=0 if registers is None else len(registers),
    swiglu=any("/mlp/w12/" in name for name in flat),
  )
