"""Conversion of DINOv2 weights from a source to a file of this package.

The format of the file is that of `clip/weights.py`.
"""

import dataclasses
import pathlib

import numpy as np

from zsad_jax import types
from zsad_jax.backbones.clip import conversion as clip_conversion
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import weights as clip_weights
from zsad_jax.backbones.dinov2 import convert as dino_convert
from zsad_jax.backbones.dinov2 import sources
from zsad_jax.backbones.dinov2.config import MODELS, DinoConfig, from_dict
from zsad_jax.runtime import copies

KIND = "DINOv2"


def convert(
  source: str,
  output: str | pathlib.Path,
  *,
  model: str,
  name: str = "",
) -> str:
  """Convert DINOv2 weights.

  Args:
    source: see `sources.read`.
    output: safetensors file to write.
    model: key of `config.MODELS` whose sizes the weights must have.
    name: of the source in the file and in messages; "" for the source itself.

  Returns:
    A summary in several lines.

  Raises:
    ValueError: the source is corrupt, no DINOv2, or of another model.
    OSError: a file is missing or cannot be read or written.
  """
  found = sources.read(copies.local(source))
  check_model(found.config, model, name or source)
  origin = {
    "name": name or clip_conversion.short_name(source),
    "sha256": found.sha256,
  }
  save(output, found.params, found.config, origin)
  return clip_conversion.summary(name or source, output, found)


def check_model(config: DinoConfig, model: str, source: str) -> None:
  """Check the sizes of weights.

  Args:
    config: the sizes.
    model: key of `config.MODELS`.
    source: name of the weights in the error message.

  Raises:
    ValueError: the sizes are not those of the model.
  """
  expected = dataclasses.asdict(MODELS[model])
  differing = [
    f"{name}: expected {expected[name]}, found {value}"
    for name, value in dataclasses.asdict(config).items()
    if value != expected[name]
  ]
  if differing:
    raise ValueError(f"{source} is not {model}: {'; '.join(differing)}.")


def save(
  path: str | pathlib.Path,
  params: types.Params,
  config: DinoConfig,
  source: dict,
) -> None:
  """Write parameters in their data types, atomically.

  Args:
    path: the file to write.
    params: nested or flat arrays.
    config: sizes of the model.
    source: origin of the weights, of JSON types.

  Raises:
    ValueError: names or shapes of `params` differ from those of `config`.
    OSError: the file cannot be written.
  """
  model = f"The model to save as {path}"
  dino_convert.check(params, config, model)
  clip_convert.check_values(params, model)
  sizes = dataclasses.asdict(config)
  about = {"model": KIND, "config": sizes, "source": source}
  clip_weights.write(path, params, about)


def load(path: str | pathlib.Path) -> tuple[types.Params, DinoConfig]:
  """Read a file that `save` wrote.

  Args:
    path: the file, which exists.

  Returns:
    The parameters, nested and in float32, and the sizes of the model.

  Raises:
    ValueError: the file is corrupt, or of another format or kind of model.
  """
  path = pathlib.Path(path)
  try:
    tensors, metadata = clip_weights.read_safetensors(path)
    config = clip_weights.read_config(metadata, path, KIND, from_dict)
    dino_convert.check(tensors, config, str(path))
    clip_convert.check_values(tensors, str(path))
  except ValueError as error:
    raise ValueError(
      f"{error} Make it with `zsad convert --source=SOURCE "
      f"--model=MODEL --output={path}`."
    ) from error
  floats = {name: x.astype(np.float32) for name, x in tensors.items()}
  return clip_convert.unflatten(floats), config
