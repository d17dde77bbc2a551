"""File format of converted CLIP weights: one safetensors file.

Arrays have the flat names of `convert.param_shapes` and the data types of
their source. The metadata entry `zsad_jax` is a JSON object:

  format   version of this format
  model    kind of model; CLIP where it is missing
  config   fields of `ClipConfig`, or of that of another kind
  source   name and SHA-256 of the original files
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

from zsad_jax import types
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.runtime import files

FORMAT = 1
KIND = "CLIP"  # Of model.
Config = TypeVar("Config")
METADATA_KEY = "zsad_jax"
# Of safetensors.
_DTYPES = "F64 F32 F16 BF16 I64 I32 I16 I8 U64 U32 U16 U8 BOOL".split()
_DTYPE_NAMES = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
HOW_TO_MAKE = "zsad convert --source=SOURCE --output={path}"


def load(
  path: str | pathlib.Path,
) -> tuple[types.Params, clip_config.ClipConfig]:
  """Read a file that `save` wrote.

  Args:
    path: the file.

  Returns:
    The parameters, nested and in float32, and the sizes of the model.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file is corrupt or of another format.
  """
  path = pathlib.Path(path)
  make = f"Make it with `{HOW_TO_MAKE.format(path=path)}`."
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not a file. {make}")
  try:
    tensors, metadata = read_safetensors(path)
    config = read_config(metadata, path, KIND, clip_config.from_dict)
    clip_convert.check(tensors, config, str(path))
    clip_convert.check_values(tensors, str(path))
  except ValueError as error:
    raise ValueError(f"{error} {make}") from error
  floats = {name: x.astype(np.float32) for name, x in tensors.items()}
  return clip_convert.unflatten(floats), config


def save(
  path: str | pathlib.Path,
  params: types.Params,
  config: clip_config.ClipConfig,
  source: Mapping[str, Any],
) -> None:
  """Write parameters in their data types, atomically.

  Args:
    path: the file to write; missing folders are created, an existing file is
      replaced.
    params: nested or flat arrays.
    config: sizes of the model.
    source: origin of the weights, of JSON types: file names, digests.

  Raises:
    ValueError: names or shapes of `params` differ from those of `config`.
    OSError: the file cannot be written.
  """
  model = f"The model to save as {path}"
  clip_convert.check(params, config, model)
  clip_convert.check_values(params, model)
  about = {"config": dataclasses.asdict(config), "source": source}
  write(path, params, about)


def write(
  path: str | pathlib.Path, params: types.Params, about: Mapping[str, Any]
) -> None:
  """Write checked parameters of any kind of model, atomically.

  Args:
    path: see `save`.
    params: nested or flat arrays.
    about: entries of the metadata besides the format, see above.

  Raises:
    OSError: the file cannot be written.
  """
  # safetensors ignores strides: transposed views have to be copied.
  tensors = {
    name: np.asarray(x, order="C")
    for name, x in clip_convert.flatten(params).items()
  }
  metadata = {METADATA_KEY: json.dumps({"format": FORMAT, **about})}
  files.write_local_bytes(
    pathlib.Path(path), safetensors.numpy.save(tensors, metadata)
  )


def read_origin(path: str | pathlib.Path) -> dict[str, Any]:
  """Return the `source` of a file that `save` wrote; {} where it has none."""
  with safetensors.safe_open(path, framework="np") as file:
    metadata = file.metadata() or {}
  found = json.loads(metadata.get(METADATA_KEY, "{}")).get("source")
  return found if isinstance(found, dict) else {}


def read_safetensors(
  path: pathlib.Path,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Read the arrays and the metadata of any safetensors file.

  Raises:
    ValueError: the file is corrupt or of another format.
  """
  try:
    with safetensors.safe_open(path, framework="np") as f:
      for name in f.keys():
        dtype = f.get_slice(name).get_dtype()
        if dtype not in _DTYPES:
          raise ValueError(
            f"{path}: the tensor {name} is {_DTYPE_NAMES.get(dtype, dtype)}, "
            "which is not read; use a file in float16, bfloat16 or float32."
          )
      return {name: f.get_tensor(name) for name in f.keys()}, f.metadata() or {}
  except (OSError, safetensors.SafetensorError) as error:
    if isinstance(error, OSError) and error.errno:
      raise
    raise ValueError(
      f"{path} is truncated or no safetensors file "
      f"({path.stat().st_size:,} bytes; {error}). {files.other_kind(path)}"
    ) from error


def read_config(
  metadata: Mapping[str, str],
  path: pathlib.Path,
  kind: str,
  build: Callable[[Any], Config],
) -> Config:
  """Return the sizes of the model from the metadata of a file.

  Args:
    metadata: of the file.
    path: of the file, for messages.
    kind: of model that is expected.
    build: makes the configuration from the stored sizes.

  Raises:
    ValueError: the file is corrupt, or of another format or kind.
  """
  if METADATA_KEY not in metadata:
    raise ValueError(
      f"{path} was not made by `zsad convert`: its metadata has no "
      f"`{METADATA_KEY}`."
    )
  try:
    about = json.loads(metadata[METADATA_KEY])
    version, sizes = about["format"], about["config"]
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} is corrupt: its metadata has no format and config "
      f"({type(error).__name__}: {error})."
    ) from error
  if version != FORMAT:
    raise ValueError(f"{path} has format {version}, expected {FORMAT}.")
  if (found := about.get("model", KIND)) != kind:
    raise ValueError(f"{path} holds weights of {found}, expected {kind}.")
  try:
    return build(sizes)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{path} is corrupt: {error}") from error
