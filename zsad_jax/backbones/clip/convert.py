"""Conversion of published CLIP state dicts to our parameter tree.

Each table of rules (see `torch_io.rules`) maps the names and layouts of one
source to paths of our tree, a nested dict whose flat names are joined by "/".
`param_shapes` lists all of them.

  OPENAI        OpenAI's archives and open_clip's checkpoints
  HUGGING_FACE  CLIPModel of transformers
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from zsad_jax import types
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.torch_io.rules import (
  Rule,
  Table,
  fuse,
  linear,
  norm,
  rename,
  without,
)

# Our activations by their names in the config of transformers.
HF_ACTIVATIONS = {"quick_gelu": "quick", "gelu": "gelu_erf"}
LAYER_NORM_EPS = 1e-5  # Fixed in `blocks.LayerNorm`.
QKV = ("q_proj", "k_proj", "v_proj")  # Layers of transformers.
MAX_LISTED = 8  # Names per category in an error message.


def openai_blocks(pattern: str, path: str) -> Table:
  """Return the rules of transformer blocks in OpenAI's layout."""
  attn, ours = rf"{pattern}\.attn", f"{path}/attn"
  return (
    *norm(rf"{pattern}\.(ln_[12])", rf"{path}/\2"),
    Rule(rf"{attn}\.in_proj_weight", f"{ours}/in_proj/kernel", "linear"),
    Rule(rf"{attn}\.in_proj_bias", f"{ours}/in_proj/bias"),
    *linear(rf"{attn}\.out_proj", f"{ours}/out_proj"),
    *linear(rf"{pattern}\.mlp\.(c_fc|c_proj)", rf"{path}/mlp/\2"),
  )


def hugging_face_blocks(pattern: str, path: str) -> Table:
  """Return the rules of transformer blocks in the layout of transformers.

  `fuse` joins the three projections to in_proj afterwards.
  """
  attn, ours = rf"{pattern}\.self_attn", f"{path}/attn"
  return (
    *norm(rf"{pattern}\.layer_norm([12])", rf"{path}/ln_\2"),
    *linear(rf"{attn}\.([qkv]_proj)", rf"{ours}/\2"),
    *linear(rf"{attn}\.out_proj", f"{ours}/out_proj"),
    *linear(rf"{pattern}\.mlp\.fc1", f"{path}/mlp/c_fc"),
    *linear(rf"{pattern}\.mlp\.fc2", f"{path}/mlp/c_proj"),
  )


OPENAI = (
  Rule(r"visual\.conv1\.weight", "visual/conv1/kernel", "conv"),
  Rule(r"visual\.class_embedding", "visual/class_embedding"),
  Rule(r"visual\.positional_embedding", "visual/positional_embedding"),
  *norm(r"visual\.(ln_pre|ln_post)", r"visual/\1"),
  *openai_blocks(
    r"visual\.transformer\.resblocks\.(\d+)", r"visual/resblocks_\1"
  ),
  Rule(r"visual\.proj", "visual/proj"),  # Used as x @ proj: not transposed.
  Rule(r"token_embedding\.weight", "text/token_embedding"),
  Rule(r"positional_embedding", "text/positional_embedding"),
  *openai_blocks(r"transformer\.resblocks\.(\d+)", r"text/resblocks_\1"),
  *norm(r"ln_final", "text/ln_final"),
  Rule(r"text_projection", "text/text_projection"),
  Rule(r"logit_scale", "logit_scale"),
)
# Sizes stored with OpenAI's weights, and the causal mask.
OPENAI_UNUSED = r"input_resolution|context_length|vocab_size|attn_mask"

V, T = "vision_model", "text_model"
HUGGING_FACE = (
  Rule(
    rf"{V}\.embeddings\.patch_embedding\.weight",
    "visual/conv1/kernel",
    "conv",
  ),
  Rule(rf"{V}\.embeddings\.class_embedding", "visual/class_embedding"),
  Rule(
    rf"{V}\.embeddings\.position_embedding\.weight",
    "visual/positional_embedding",
  ),
  *norm(rf"{V}\.pre_layrnorm", "visual/ln_pre"),  # Their spelling.
  *hugging_face_blocks(rf"{V}\.encoder\.layers\.(\d+)", r"visual/resblocks_\1"),
  *norm(rf"{V}\.post_layernorm", "visual/ln_post"),
  Rule(r"visual_projection\.weight", "visual/proj", "linear"),
  Rule(rf"{T}\.embeddings\.token_embedding\.weight", "text/token_embedding"),
  Rule(
    rf"{T}\.embeddings\.position_embedding\.weight",
    "text/positional_embedding",
  ),
  *hugging_face_blocks(rf"{T}\.encoder\.layers\.(\d+)", r"text/resblocks_\1"),
  *norm(rf"{T}\.final_layer_norm", "text/ln_final"),
  Rule(r"text_projection\.weight", "text/text_projection", "linear"),
  Rule(r"logit_scale", "logit_scale"),
)
# Position ids 0, 1, 2, ... stored by older versions of transformers.
HUGGING_FACE_UNUSED = rf"({V}|{T})\.embeddings\.position_ids"


def from_openai(
  state: Mapping[str, np.ndarray],
  *,
  activation: str = "quick",
  source: str = "the state dict",
) -> tuple[types.Params, clip_config.ClipConfig]:
  """Convert the state dict of OpenAI's CLIP or of open_clip.

  Args:
    state: arrays by torch name. They determine the sizes of the model; the
      number of heads is that of a known model of the same width, or one per
      64 channels.
    activation: activation that the weights were trained with; it is not
      stored in the file.
    source: name of the state dict in error messages.

  Returns:
    The parameters, nested and in the data types of `state`, and the sizes of
    the model.

  Raises:
    ValueError: names or shapes are not those of a CLIP with a ViT.
  """
  flat = rename(without(state, OPENAI_UNUSED), OPENAI)
  config = _infer_config(flat, activation, source)
  check(flat, config, source)
  return unflatten(flat), config


def from_hugging_face(
  state: Mapping[str, np.ndarray],
  hf_config: Any,
  *,
  source: str = "the state dict",
) -> tuple[types.Params, clip_config.ClipConfig]:
  """Convert the state dict of a CLIPModel of transformers.

  Args:
    state: arrays by name.
    hf_config: the `transformers.CLIPConfig` of the model.
    source: name of the state dict in error messages.

  Returns:
    As `from_openai`.

  Raises:
    ValueError: names or shapes differ from those of `hf_config`, or our towers
      do not support a setting in it.
  """
  config = _translate_config(hf_config, source)
  used = without(state, HUGGING_FACE_UNUSED)
  flat = fuse(rename(used, HUGGING_FACE), QKV, "in_proj")
  check(flat, config, source)
  return unflatten(flat), config


def param_shapes(config: clip_config.ClipConfig) -> dict[str, tuple[int, ...]]:
  """Return the shape of every parameter by its flat name."""
  c, d, p = config.vision_width, config.embed_dim, config.patch_size
  c_text = config.text_width
  return {
    "visual/conv1/kernel": (p, p, 3, c),
    "visual/class_embedding": (c,),
    "visual/positional_embedding": (1 + config.grid**2, c),
    **_norm_shapes("visual/ln_pre", c),
    **_block_shapes("visual", config.vision_layers, c),
    **_norm_shapes("visual/ln_post", c),
    "visual/proj": (c, d),
    "text/token_embedding": (config.vocab_size, c_text),
    "text/positional_embedding": (config.context_length, c_text),
    **_block_shapes("text", config.text_layers, c_text),
    **_norm_shapes("text/ln_final", c_text),
    "text/text_projection": (c_text, d),
    "logit_scale": (),
  }


def check(
  params: types.Params, config: clip_config.ClipConfig, source: str
) -> None:
  """Check that parameters have the names and shapes of a configuration.

  Args:
    params: nested or flat parameters. Names that no rule translates are still
      those of the file.
    config: sizes of the model.
    source: name of the parameters in the error message.

  Raises:
    ValueError: names are missing or unknown, or shapes differ; the message
      lists all of them.
  """
  found = {name: np.shape(x) for name, x in flatten(params).items()}
  if problem := differences(param_shapes(config), found):
    raise ValueError(f"{source} does not fit {config}: {problem}")


def check_values(params: types.Params, source: str) -> None:
  """Check that parameters are finite floating-point numbers.

  Args:
    params: nested or flat parameters.
    source: name of the parameters in the error message.

  Raises:
    ValueError: an array has another data type, or a number is NaN or infinite;
      the message has its name.
  """
  for name, value in flatten(params).items():
    x = np.asarray(value)
    # NumPy does not know the kind of bfloat16.
    if x.dtype.kind != "f" and x.dtype.name != "bfloat16":
      raise ValueError(
        f"{source}: {name} holds {x.dtype}, expected floating-point numbers; "
        "quantized weights are not read."
      )
    if not np.isfinite(x).all():
      raise ValueError(
        f"{source}: {name} holds {(~np.isfinite(x)).sum():,} numbers that are "
        "NaN or infinite. The file is corrupt; fetch or make it again."
      )


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
  """Return a message that lists different names and shapes, "" if none."""
  misshapen = [
    f"{name}: expected {shape}, found {found[name]}"
    for name, shape in expected.items()
    if name in found and found[name] != shape
  ]
  missing = [name for name in expected if name not in found]
  unknown = [name for name in found if name not in expected]
  if not (misshapen or missing or unknown):
    return ""
  return _sides(missing=missing, unknown=unknown, misshapen=misshapen)


def flatten(params: types.Params) -> dict[str, Any]:
  """Return `{"a/b": x}` for a tree `{"a": {"b": x}}`."""
  return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Return the tree of flat names; the inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep="/")


def _infer_config(flat, activation, source):
  """Infer the sizes of a model from its weights."""
  axes = {
    "visual/conv1/kernel": 4,
    "visual/positional_embedding": 2,
    "visual/proj": 2,
    "text/token_embedding": 2,
    "text/positional_embedding": 2,
  }
  shapes = {name: np.shape(flat[name]) for name in axes if name in flat}
  missing = [name for name in axes if name not in shapes]
  misshapen = [
    f"{name}: expected {axes[name]} axes, found {shape}"
    for name, shape in shapes.items()
    if len(shape) != axes[name]
  ]
  if missing or misshapen:
    unknown = [name for name in flat if "." in name]  # Ours have no dots.
    raise ValueError(
      f"{source} is not a CLIP with a ViT image tower: "
      + _sides(missing=missing, unknown=unknown, misshapen=misshapen)
    )
  if empty := [name for name, shape in shapes.items() if min(shape) < 1]:
    raise ValueError(f"{source}: the tensor {empty[0]} has no element.")
  kernel, positions, proj, tokens, text_positions = (shapes[x] for x in axes)
  patch_size, vision_width = kernel[0], kernel[-1]
  return clip_config.ClipConfig(
    embed_dim=proj[1],
    image_size=math.isqrt(positions[0] - 1) * patch_size,
    patch_size=patch_size,
    vision_width=vision_width,
    vision_layers=_count_blocks(flat, "visual"),
    text_width=tokens[1],
    text_layers=_count_blocks(flat, "text"),
    vocab_size=tokens[0],
    context_length=text_positions[0],
    vision_heads=_count_heads("vision", vision_width, source),
    text_heads=_count_heads("text", tokens[1], source),
    activation=activation,
  )


def _count_blocks(flat, tower):
  """Return the last block's number plus one; `check` then reports gaps."""
  found = [re.match(rf"{tower}/resblocks_(\d+)/", name) for name in flat]
  return max((int(match[1]) + 1 for match in found if match), default=0)


def _count_heads(tower, width, source):
  """Return the heads of a known model of this width, or one per 64 channels.

  Weights do not determine the number of heads; open_clip's ViT-H has fewer.
  """
  for model in clip_config.MODELS.values():
    if getattr(model, f"{tower}_width") == width:
      return getattr(model, f"{tower}_heads")
  if width % clip_config.HEAD_WIDTH:
    raise ValueError(
      f"{source} has a {tower} tower of width {width}, expected a multiple "
      f"of {clip_config.HEAD_WIDTH}, the width of a head."
    )
  return width // clip_config.HEAD_WIDTH


def _translate_config(hf_config, source):
  """Return our configuration for a `transformers.CLIPConfig`."""
  vision, text = hf_config.vision_config, hf_config.text_config
  acts = {vision.hidden_act, text.hidden_act}
  if len(acts) > 1 or not acts <= set(HF_ACTIVATIONS):
    raise ValueError(
      f"{source}: hidden_act is {vision.hidden_act!r} in the vision tower "
      f"and {text.hidden_act!r} in the text tower; expected one of "
      f"{sorted(HF_ACTIVATIONS)} in both."
    )
  if {vision.layer_norm_eps, text.layer_norm_eps} != {LAYER_NORM_EPS}:
    raise ValueError(
      f"{source}: layer_norm_eps is {vision.layer_norm_eps} and "
      f"{text.layer_norm_eps}; our towers have {LAYER_NORM_EPS}."
    )
  return clip_config.ClipConfig(
    embed_dim=hf_config.projection_dim,
    image_size=vision.image_size,
    patch_size=vision.patch_size,
    vision_width=vision.hidden_size,
    vision_layers=vision.num_hidden_layers,
    text_width=text.hidden_size,
    text_layers=text.num_hidden_layers,
    vocab_size=text.vocab_size,
    context_length=text.max_position_embeddings,
    vision_heads=vision.num_attention_heads,
    text_heads=text.num_attention_heads,
    activation=HF_ACTIVATIONS[vision.hidden_act],
  )


def _norm_shapes(path, width):
  return {f"{path}/scale": (width,), f"{path}/bias": (width,)}


def _linear_shapes(path, width_in, width_out):
  return {f"{path}/kernel": (width_in, width_out), f"{path}/bias": (width_out,)}


def _block_shapes(tower, layers, c):
  shapes = {}
  for i in range(layers):
    path = f"{tower}/resblocks_{i}"
    shapes |= {
      **_norm_shapes(f"{path}/ln_1", c),
      **_linear_shapes(f"{path}/attn/in_proj", c, 3 * c),
      **_linear_shapes(f"{path}/attn/out_proj", c, c),
      **_norm_shapes(f"{path}/ln_2", c),
      **_linear_shapes(f"{path}/mlp/c_fc", c, 4 * c),
      **_linear_shapes(f"{path}/mlp/c_proj", 4 * c, c),
    }
  return shapes


def _sides(**lists: list[str]) -> str:
  """Return e.g. "2 missing: a, b; 0 unknown; ..."; long lists are cut."""
  parts = []
  for problem, names in lists.items():
    shown = names[:MAX_LISTED] + ["..."] * (len(names) > MAX_LISTED)
    listing = ": " + ", ".join(shown) if shown else ""
    parts.append(f"{len(names)} {problem}{listing}")
  return "; ".join(parts) + "."
