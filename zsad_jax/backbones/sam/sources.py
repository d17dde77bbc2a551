"""Reading of published SAM weights, and their conversion to our file."""

import pathlib
from typing import Any

from zsad_jax import types
from zsad_jax.backbones.clip import convert as shared
from zsad_jax.backbones.clip import sources as clip_sources
from zsad_jax.backbones.clip import weights as clip_weights
from zsad_jax.backbones.sam import convert as sam_convert
from zsad_jax.backbones.sam import vision, weights
from zsad_jax.backbones.sam.config import MODELS, SamConfig
from zsad_jax.runtime import copies, hub
from zsad_jax.torch_io import file as torch_file


def convert(source: str, output: str, *, model: str, name: str = "") -> str:
  """Convert weights of SAM's image encoder.

  Args:
    source: a checkpoint of Meta (.pth), a directory of transformers that holds
      config.json, or a name on the hub such as facebook/sam-vit-base.
    output: safetensors file to write.
    model: key of `config.MODELS` whose sizes the weights must have.
    name: of the source in the file and in messages; "" for the source itself.

  Returns:
    A summary in several lines.

  Raises:
    ValueError: the source is corrupt, no SAM, or of another model.
    OSError: a file is missing or cannot be read or written.
  """
  params, config, digests = read(copies.local(source))
  name = name or source
  if config != MODELS[model]:
    raise ValueError(
      f"{name} is not a {model}: it holds {config}, expected {MODELS[model]}."
    )
  origin = name if hub.NAME.fullmatch(name) else pathlib.Path(name).name
  weights.save(output, params, config, {"name": origin, "sha256": digests})
  count = sum(x.size for x in shared.flatten(params).values())
  return "\n".join(
    [
      f"read    {name}",
      *(f"sha256  {digest}  {file}" for file, digest in digests.items()),
      f"params  {count:,}",
      f"wrote   {output}",
    ]
  )


def read(source: str) -> tuple[types.Params, SamConfig, dict[str, str]]:
  """Read weights; see `convert`.

  Returns:
    The parameters, the sizes and the SHA-256 of each file by name.

  Raises:
    ValueError, OSError: see `convert`.
  """
  path = pathlib.Path(source)
  stated = {}
  if path.is_file():
    is_torch = path.suffix != ".safetensors"
    state = (
      torch_file.read(path)
      if is_torch
      else clip_weights.read_safetensors(path)[0]
    )
    found = [path]
  else:
    path = path if path.is_dir() else clip_sources.download(source)
    stated = _read_config(path / "config.json")
    state, found = clip_sources.read_weights(path)
  params, config = sam_convert.from_state(state, source=source)
  _check_stated(stated, config, path / "config.json")
  shared.check_values(params, source)
  digests = {file.name: clip_sources.sha256_of(file) for file in found}
  return params, config, digests


def _read_config(path):
  """Return `vision_config` of a SamModel."""
  if not path.is_file():
    raise FileNotFoundError(
      f"{path.parent} has no config.json, so it is not a transformers model."
    )
  fields: Any = clip_sources.read_json(path)
  if fields.get("model_type") != "sam":
    raise ValueError(
      f"{path}: model_type is {fields.get('model_type')!r}, expected 'sam'."
    )
  vision_config = fields.get("vision_config", {})
  if not isinstance(vision_config, dict):
    raise ValueError(f"{path}: vision_config must be an object.")
  return vision_config


def _check_stated(stated, config, path):
  """Compare what config.json states with the shapes of the weights."""
  expected = {
    "hidden_act": "gelu",
    "layer_norm_eps": vision.EPSILON,
    "image_size": config.image_size,
    "window_size": config.window,
    "num_attention_heads": config.heads,
    "global_attn_indexes": [i - 1 for i in config.global_layers],
  }
  for name, value in expected.items():
    if name in stated and stated[name] != value:
      raise ValueError(
        f"{path}: vision_config.{name} is {stated[name]!r}, but the weights "
        f"and this encoder have {value!r}."
      )
