"""File format of the small CLIP that the package ships.

`zsad_jax.pretrain` makes it. The format is that of `weights.py` in float16,
except for the token table: only rows of words in captions were trained and
are stored, with their ids. All other rows are those of `random_clip` with the
seed in the metadata. See TINY_CLIP.md.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import model, weights
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.runtime import files

FILE = pathlib.Path(__file__).with_name("tiny_clip.safetensors")
SHA256 = "4a46c81832427b0f79c727b837c74f9ea1ad59bd2af88165aee80729fb8e3bbb"
TABLE, ROWS, IDS = "text/token_embedding", "text/token_rows", "text/token_ids"


def load(path: str | pathlib.Path = "") -> model.Clip:
  """Read a file that `save` wrote.

  Args:
    path: the file; "" for the file of the package, whose SHA-256 is checked.

  Returns:
    The model, in float32.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the file is corrupt or of another format.
  """
  shipped, path = not path, pathlib.Path(path or FILE)
  hint = (
    "Install zsad_jax again."
    if shipped
    else "Make one with `zsad pretrain --config=configs/tiny_clip.py`."
  )
  if not path.is_file():
    raise FileNotFoundError(f"{path} is not a file. {hint}")
  if shipped:
    _check_digest(path, hint)
  tensors, metadata = weights.read_safetensors(path)
  try:
    stored = json.loads(metadata[weights.METADATA_KEY])
    config, seed = clip_config.from_dict(stored["config"]), stored["seed"]
    rows, ids = tensors.pop(ROWS), tensors.pop(IDS)
    table = random_table(config, seed)
    table[ids] = rows
  except KeyError as error:
    raise ValueError(
      f"{path} holds no embedded CLIP: {error} is missing or unknown. {hint}"
    ) from error
  except (IndexError, OverflowError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} holds no embedded CLIP or is corrupt: {error}. {hint}"
    ) from error
  tensors[TABLE] = table
  clip_convert.check(tensors, config, str(path))
  clip_convert.check_values(tensors, str(path))
  return model.from_params(clip_convert.unflatten(tensors), config)


def save(
  path: str | pathlib.Path,
  clip: model.Clip,
  *,
  vocabulary: np.ndarray,
  seed: int,
  about: Mapping[str, Any],
) -> str:
  """Write a CLIP in float16, atomically.

  Args:
    path: the file to write.
    clip: the model; rows of its token table outside the vocabulary are those
      of `random_table`.
    vocabulary: ids (n,) of the rows to store.
    seed: seed of `random_table`.
    about: description of how the weights were made, of JSON types.

  Returns:
    The file's SHA-256.

  Raises:
    OSError: the file cannot be written.
  """
  flat = clip_convert.flatten(clip.params)
  tensors: dict[str, np.ndarray] = {
    name: np.asarray(x, np.float16) for name, x in flat.items()
  }
  tensors[ROWS] = tensors.pop(TABLE)[vocabulary]
  tensors[IDS] = np.asarray(vocabulary, np.int32)
  metadata = {
    "format": weights.FORMAT,
    "config": dataclasses.asdict(clip.config),
    "seed": seed,
    **about,
  }
  data = safetensors.numpy.save(
    tensors, {weights.METADATA_KEY: json.dumps(metadata)}
  )
  files.write_bytes(path, data)
  return hashlib.sha256(data).hexdigest()


def random_table(config: ClipConfig, seed: int) -> np.ndarray:
  """Return the token table before training: float32 (v, c)."""
  random = model.random_clip(config, seed).params
  return np.array(random["text"]["token_embedding"])


def _check_digest(path, hint):
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  if digest != SHA256:
    raise ValueError(
      f"{path} is corrupt: its SHA-256 is {digest}, expected {SHA256}. {hint}"
    )
