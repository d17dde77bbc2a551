"""Conversion of published state dicts of SAM to our parameter tree.

Only the image encoder is read: the prompt encoder and the mask decoder are
left out.

  META          Meta's checkpoints (`image_encoder.*`)
  HUGGING_FACE  SamModel of transformers (`vision_encoder.*`)
"""

import re
from collections.abc import Mapping

import numpy as np

from zsad_jax import types
from zsad_jax.backbones.clip import convert as shared
from zsad_jax.backbones.sam.config import SamConfig
from zsad_jax.torch_io.rules import Rule, Table, linear, norm, rename


def _table(root: str, names: Mapping[str, str]) -> Table:
  """Return the rules of a layout.

  Args:
    root: regular expression before all names.
    names: of the modules that the layouts call differently.
  """
  block = rf"{root}\.{names['blocks']}\.(\d+)"
  convs = (
    (names["conv1"], "neck/conv1/kernel"),
    (names["conv2"], "neck/conv2/kernel"),
  )
  return (
    Rule(rf"{root}\.{names['patch']}\.weight", "patch/kernel", "conv"),
    Rule(rf"{root}\.{names['patch']}\.bias", "patch/bias"),
    Rule(rf"{root}\.pos_embed", "positional_embedding", "lead1"),
    *norm(rf"{block}\.{names['norm']}([12])", r"blocks_\1/norm\2"),
    *linear(rf"{block}\.attn\.(qkv|proj)", r"blocks_\1/attn/\2"),
    Rule(rf"{block}\.attn\.(rel_pos_[hw])", r"blocks_\1/attn/\2"),
    *linear(rf"{block}\.mlp\.(lin[12])", r"blocks_\1/mlp/\2"),
    *(Rule(rf"{root}\.{x}\.weight", path, "conv") for x, path in convs),
    *norm(rf"{root}\.{names['norm_neck1']}", "neck/norm1"),
    *norm(rf"{root}\.{names['norm_neck2']}", "neck/norm2"),
  )


META = _table(
  "image_encoder",
  {
    "patch": r"patch_embed\.proj",
    "blocks": "blocks",
    "norm": "norm",
    "conv1": r"neck\.0",
    "norm_neck1": r"neck\.1",
    "conv2": r"neck\.2",
    "norm_neck2": r"neck\.3",
  },
)
HUGGING_FACE = _table(
  "vision_encoder",
  {
    "patch": r"patch_embed\.projection",
    "blocks": "layers",
    "norm": "layer_norm",
    "conv1": r"neck\.conv1",
    "norm_neck1": r"neck\.layer_norm1",
    "conv2": r"neck\.conv2",
    "norm_neck2": r"neck\.layer_norm2",
  },
)
# The other parts of SAM in both layouts.
UNUSED = r"(prompt_encoder|mask_decoder|shared_image_embedding)\..*"


def from_state(
  state: Mapping[str, np.ndarray], *, source: str = "the state dict"
) -> tuple[types.Params, SamConfig]:
  """Convert a state dict of Meta or of transformers.

  Args:
    state: arrays by torch name; their shapes give all sizes of the model.
    source: name of the state dict in error messages.

  Returns:
    The parameters, nested and in the data types of `state`, and the sizes.

  Raises:
    ValueError: names or shapes are not those of SAM's image encoder.
  """
  used = {k: x for k, x in state.items() if not re.fullmatch(UNUSED, k)}
  of_meta = any(name.startswith("image_encoder.") for name in used)
  flat = rename(used, META if of_meta else HUGGING_FACE)
  config = _infer_config(flat, source)
  # A convolution of one pixel is a linear layer.
  if flat.get("neck/conv1/kernel", np.zeros(0)).ndim == 4:
    flat["neck/conv1/kernel"] = flat["neck/conv1/kernel"][0, 0]
  check(flat, config, source)
  return shared.unflatten(flat), config


def param_shapes(config: SamConfig) -> dict[str, tuple[int, ...]]:
  """Return the shape of every parameter by its flat name."""
  c, p, n = config.width, config.patch_size, config.neck_width
  shapes = {
    "patch/kernel": (p, p, 3, c),
    "patch/bias": (c,),
    "positional_embedding": (config.grid, config.grid, c),
  }
  for i in range(config.layers):
    side = config.grid if i + 1 in config.global_layers else config.window
    table = 2 * side - 1, config.head_width
    block = {
      **_linear("attn/qkv", c, 3 * c),
      **_linear("attn/proj", c, c),
      "attn/rel_pos_h": table,
      "attn/rel_pos_w": table,
      **_linear("mlp/lin1", c, 4 * c),
      **_linear("mlp/lin2", 4 * c, c),
      **_norm("norm1", c),
      **_norm("norm2", c),
    }
    shapes |= {f"blocks_{i}/{name}": x for name, x in block.items()}
  return shapes | {
    "neck/conv1/kernel": (c, n),
    "neck/conv2/kernel": (3, 3, n, n),
    **_norm("neck/norm1", n),
    **_norm("neck/norm2", n),
  }


def check(params: types.Params, config: SamConfig, source: str) -> None:
  """Check that parameters have the names and shapes of a configuration.

  Raises:
    ValueError: names are missing or unknown, or shapes differ.
  """
  found = {name: np.shape(x) for name, x in shared.flatten(params).items()}
  if problem := shared.differences(param_shapes(config), found):
    raise ValueError(f"{source} does not fit {config}: {problem}")


def _infer_config(flat, source):
  """Infer the sizes of a model from its weights."""
  shapes = {name: np.shape(x) for name, x in flat.items()}
  axes = {
    "patch/kernel": 4,
    "positional_embedding": 3,
    "neck/conv2/kernel": 4,
    "blocks_0/attn/rel_pos_h": 2,
  }
  for name, number in axes.items():
    if len(shapes.get(name, ())) != number:
      raise ValueError(
        f"{source} is not the image encoder of a SAM: {name} is "
        f"{shapes.get(name, 'missing')}, expected {number} axes."
      )
  blocks = [re.match(r"blocks_(\d+)/", name) for name in flat]
  layers = 1 + max(int(match[1]) for match in blocks if match)
  patch_size, _, _, width = shapes["patch/kernel"]
  grid = shapes["positional_embedding"][0]
  tables = [
    shapes.get(f"blocks_{i}/attn/rel_pos_h", (0,))[0] for i in range(layers)
  ]
  # A table for windows is shorter than one for the whole image.
  inside = [x for x in tables if x != 2 * grid - 1]
  return SamConfig(
    width=width,
    layers=layers,
    heads=max(1, width // max(1, shapes["blocks_0/attn/rel_pos_h"][1])),
    global_layers=tuple(
      i + 1 for i, x in enumerate(tables) if x == 2 * grid - 1
    ),
    image_size=grid * patch_size,
    patch_size=patch_size,
    window=(inside[0] + 1) // 2 if inside else grid,
    neck_width=shapes["neck/conv2/kernel"][-1],
  )


def _linear(path, width_in, width_out):
  return {f"{path}/kernel": (width_in, width_out), f"{path}/bias": (width_out,)}


def _norm(path, width):
  return {f"{path}/scale": (width,), f"{path}/bias": (width,)}
