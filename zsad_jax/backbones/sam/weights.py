"""File format of converted weights of SAM: one safetensors file.

Arrays have the flat names of `convert.param_shapes`. The metadata entry
`zsad_jax` is a JSON object: format, model ("sam"), config (fields of
`SamConfig`) and source (name and SHA-256 of the original files).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from zsad_jax import types
from zsad_jax.backbones.clip import convert as shared
from zsad_jax.backbones.clip import weights as clip_weights
from zsad_jax.backbones.sam import config as sam_config
from zsad_jax.backbones.sam import convert
from zsad_jax.runtime import files

FORMAT, MODEL = 1, "sam"
KEY = clip_weights.METADATA_KEY


def load(
  path: str | pathlib.Path,
) -> tuple[types.Params, sam_config.SamConfig]:
  """Read a file that `save` wrote.

  Returns:
    The parameters, nested and in float32, and the sizes of the model.

  Raises:
    ValueError: the file is corrupt, or of another model or format.
    OSError: the file cannot be read.
  """
  path = pathlib.Path(path)
  tensors, metadata = clip_weights.read_safetensors(path)
  make = f"Make it with `{clip_weights.HOW_TO_MAKE.format(path=path)}`."
  try:
    about = json.loads(metadata.get(KEY, "{}"))
    kind, version = about.get("model"), about.get("format")
  except (AttributeError, ValueError) as error:
    raise ValueError(f"{path} is corrupt: no JSON in its metadata.") from error
  if (kind, version) != (MODEL, FORMAT):
    raise ValueError(
      f"{path} holds no image encoder of SAM (model {kind!r}, format "
      f"{version}; expected {MODEL!r}, {FORMAT}). {make}"
    )
  try:
    config = sam_config.from_dict(about.get("config"))
  except ValueError as error:
    raise ValueError(f"{path} is corrupt: {error}. {make}") from error
  convert.check(tensors, config, str(path))
  shared.check_values(tensors, str(path))
  floats = {name: x.astype(np.float32) for name, x in tensors.items()}
  return shared.unflatten(floats), config


def save(
  path: str | pathlib.Path,
  params: types.Params,
  config: sam_config.SamConfig,
  source: Mapping[str, Any],
) -> None:
  """Write parameters in their data types, atomically.

  Args:
    path: the file to write.
    params: nested or flat arrays.
    config: sizes of the model.
    source: origin of the weights, of JSON types: file names, digests.

  Raises:
    ValueError: the parameters do not fit, or are not finite.
    OSError: the file cannot be written.
  """
  model = f"The model to save as {path}"
  convert.check(params, config, model)
  shared.check_values(params, model)
  about = {
    "format": FORMAT,
    "model": MODEL,
    "config": dataclasses.asdict(config),
    "source": source,
  }
  tensors = {
    name: np.asarray(x, order="C") for name, x in shared.flatten(params).items()
  }
  data = safetensors.numpy.save(tensors, {KEY: json.dumps(about)})
  files.write_local_bytes(pathlib.Path(path), data)
