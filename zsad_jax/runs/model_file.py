"""File of the model of a run: `model.safetensors`, without training state.

Trained parameters are called params/<path>, running statistics stats/<path>.
The metadata entry `zsad_jax_run` is a JSON object:

  format    version of this format
  step      training step of the parameters
  seconds   training time up to that step; null where it is unknown
  digest    SHA-256 of names, shapes and values of all tensors
  backbone  `name`, the name of its weights in the catalogue, "" for none, and
            the `digest` of its parameters; the weights are not in the file
  versions  of the packages that wrote the file

`zsad push` writes it; a run is loaded from it where there are no checkpoints.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from zsad_jax import backbones, types
from zsad_jax.runtime import digests, files

FILE = "model.safetensors"
FORMAT = 1
_KEY = "zsad_jax_run"
_FIELDS = ("format", "step", "seconds", "digest", "backbone", "versions")
_HINT = "Fetch or make the file again."


def write(
  path: pathlib.Path,
  model: Mapping[str, types.Params],
  *,
  step: int,
  seconds: float,
  backbone: Mapping[str, str],
  versions: Mapping[str, str],
) -> None:
  """Write the model of a run, atomically.

  Args:
    path: the file.
    model: "params" and "stats", trees of arrays.
    step: training step of the parameters.
    seconds: training time; nan where it is unknown.
    backbone: see the module's docstring.
    versions: see the module's docstring.

  Raises:
    OSError: the file cannot be written.
  """
  tensors = {
    name: np.asarray(x, order="C") for name, x in _flatten(model).items()
  }
  about = {
    "format": FORMAT,
    "step": int(step),
    "seconds": None if math.isnan(seconds) else float(seconds),
    "digest": digests.of_arrays(sorted(tensors.items())),
    "backbone": dict(backbone),
    "versions": dict(versions),
  }
  data = safetensors.numpy.save(tensors, {_KEY: json.dumps(about)})
  files.write_bytes(path, data)


def read(
  path: pathlib.Path, like: Mapping[str, types.Params]
) -> tuple[dict[str, types.Params], dict[str, Any]]:
  """Read the model of a run.

  Args:
    path: the file.
    like: "params" and "stats" of the method, with the shapes and data types
      that the file must have.

  Returns:
    NumPy arrays in the structure of `like`, and the metadata.

  Raises:
    ValueError: the file is corrupt or of another method.
    OSError: it cannot be read.
  """
  try:
    with safetensors.safe_open(path, framework="np") as file:
      metadata = file.metadata() or {}
      tensors = {name: file.get_tensor(name) for name in file.keys()}
  except (OSError, TypeError, safetensors.SafetensorError) as error:
    if isinstance(error, OSError) and error.errno:
      raise
    raise ValueError(
      f"{path} is truncated or no safetensors file ({error}). "
      f"{files.other_kind(path)} {_HINT}"
    ) from error
  about = _about(path, metadata)
  if digests.of_arrays(sorted(tensors.items())) != about["digest"]:
    raise ValueError(f"{path} is corrupt: its digest is wrong. {_HINT}")
  expected = _flatten(like)
  for name, x in expected.items():
    found = tensors.get(name)
    if found is None:
      raise ValueError(
        f"{path} does not fit config.json next to it: {name} is missing."
      )
    if (found.shape, found.dtype) != (x.shape, x.dtype):
      raise ValueError(
        f"{path} does not fit config.json next to it: {name} is {found.dtype} "
        f"{found.shape}, expected {x.dtype} {x.shape}."
      )
  if unknown := sorted(tensors.keys() - expected.keys()):
    raise ValueError(
      f"{path} does not fit config.json next to it: {unknown[0]} is unknown."
    )
  flat, tree = jax.tree_util.tree_flatten_with_path(dict(like))
  leaves = [tensors[_name(key)] for key, _ in flat]
  return jax.tree.unflatten(tree, leaves), about


def check_backbone(
  path: pathlib.Path, about: Mapping[str, Any], digest: str, config: Any
) -> None:
  """Check that a run is loaded with the weights that it was trained with.

  Args:
    path: the file, for the message.
    about: its metadata.
    digest: that of the backbone's parameters.
    config: `config.backbone` of the run.

  Raises:
    ValueError: the weights are others.
  """
  stored = about["backbone"]
  if digest == stored.get("digest"):
    return
  where = config.path or f"the weights {config.name} of this package"
  name = stored.get("name")
  known = name and name in backbones.published()
  get = (
    f"Fetch them by `zsad weights get {name} --overwrite --output={where}`."
    if known and config.path
    else "Install the version of zsad_jax that made the run, or set "
    "config.backbone.path to its weights in config.json."
  )
  raise ValueError(
    f"{where} holds other weights, or with another config.backbone.dtype, than "
    f"the run in {path.parent} was trained with (digest {digest[:16]}, "
    f"expected {str(stored.get('digest'))[:16]}). {get}"
  )


def _about(path, metadata) -> dict[str, Any]:
  """Return the metadata of a file, which is checked."""
  if _KEY not in metadata:
    raise ValueError(
      f"{path} is no model of zsad_jax: its metadata has no `{_KEY}`."
    )
  try:
    found = json.loads(metadata[_KEY])
  except ValueError as error:
    raise ValueError(
      f"{path} is corrupt: its metadata is no JSON. {_HINT}"
    ) from error
  for field in _FIELDS:
    if not isinstance(found, dict) or field not in found:
      raise ValueError(
        f"{path} is corrupt: {field} is missing in its metadata. {_HINT}"
      )
  if found["format"] != FORMAT:
    raise ValueError(
      f"{path} has format {found['format']}, expected {FORMAT}: update "
      "zsad_jax."
    )
  step, seconds = found["step"], found["seconds"]
  valid = isinstance(step, int) and isinstance(found["backbone"], dict)
  if not valid or not isinstance(seconds, (int, float, type(None))):
    raise ValueError(f"{path} is corrupt: its metadata is invalid. {_HINT}")
  return found | {"seconds": math.nan if seconds is None else float(seconds)}


def _flatten(model) -> dict[str, Any]:
  flat, _ = jax.tree_util.tree_flatten_with_path(dict(model))
  return {_name(path): x for path, x in flat}


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
