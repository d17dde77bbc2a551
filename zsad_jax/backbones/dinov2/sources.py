"""Reading of published DINOv2 weights from files, directories or the hub.

No code in a file is executed, and torch is not needed; see `torch_io.file`.
"""

import pathlib
from typing import Any, NamedTuple

from zsad_jax import types
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import sources as clip_sources
from zsad_jax.backbones.clip import weights as clip_weights
from zsad_jax.backbones.dinov2 import convert as dino_convert
from zsad_jax.backbones.dinov2.config import MEAN, STD, DinoConfig
from zsad_jax.runtime import hub
from zsad_jax.torch_io import file as torch_file

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
# Fields of config.json that the tower supports with one value only.
_FIXED = {
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-6,
  "mlp_ratio": 4,
  "num_channels": 3,
  "qkv_bias": True,
}


class Weights(NamedTuple):
  """Weights of a published model.

  Attributes:
    params: nested parameters, in the data types of the source.
    config: sizes of the model.
    sha256: SHA-256 of each file, by name.
  """

  params: types.Params
  config: DinoConfig
  sha256: dict[str, str]


def read(source: str) -> Weights:
  """Read weights from a file, a directory or the Hugging Face hub.

  Args:
    source: a file of facebookresearch/dinov2, a directory of transformers, or a
      name on the hub.

  Returns:
    The weights.

  Raises:
    FileNotFoundError: the source or a part of it does not exist.
    ValueError: a file is corrupt or no DINOv2.
  """
  path = pathlib.Path(source)
  if path.is_file():
    found = _read_file(path)
  else:
    on_hub = hub.NAME.fullmatch(source) and not path.is_absolute()
    is_name = on_hub and path.suffix not in clip_sources.FILE_SUFFIXES
    if not path.is_dir() and is_name:
      path = clip_sources.download(source)
    if not path.is_dir():
      raise FileNotFoundError(
        f"{source} is no file, no directory and no name on the hub, such as "
        "facebook/dinov2-base."
      )
    found = _read_directory(path)
  clip_convert.check_values(found.params, source)
  return found


def _read_file(path):
  """Read a state dict in the layout of facebookresearch/dinov2."""
  if path.suffix == ".safetensors":
    state, _ = clip_weights.read_safetensors(path)
  else:
    state = torch_file.read(path)
  if any(name.startswith("embeddings.") for name in state):
    raise ValueError(
      f"{path} is a transformers model: pass the directory that holds it "
      "and its config.json."
    )
  params, config = dino_convert.from_meta(state, source=str(path))
  return Weights(params, config, {path.name: clip_sources.sha256_of(path)})


def _read_directory(directory):
  """Read config.json and the weights of a model of transformers."""
  config_file = directory / "config.json"
  if not config_file.is_file():
    raise FileNotFoundError(
      f"{directory} has no config.json, so it is not a transformers model. "
      "Pass a .pth file itself, not its directory."
    )
  config = _read_config(clip_sources.read_json(config_file), config_file)
  _check_pixels(directory / clip_sources.PREPROCESSOR)
  state, files = clip_sources.read_weights(directory)
  params, config = dino_convert.from_hugging_face(
    state, config, source=str(directory)
  )
  digests = {file.name: clip_sources.sha256_of(file) for file in files}
  return Weights(params, config, digests)


def _read_config(fields: dict[str, Any], path: pathlib.Path) -> DinoConfig:
  """Return our sizes for the content of a config.json."""
  import transformers  # Slow to import, and used here only.

  kind = fields.get("model_type")
  if kind not in MODEL_TYPES:
    raise ValueError(
      f"{path}: model_type is {kind!r}, expected {' or '.join(MODEL_TYPES)}."
    )
  names = ("Dinov2Config", "Dinov2WithRegistersConfig")
  cls = getattr(transformers, names[MODEL_TYPES.index(kind)])
  try:
    given: Any = cls.from_dict(fields)  # Adds what config.json omits.
  except Exception as error:  # Of transformers or its validation.
    reason = " ".join(str(error).split())
    raise ValueError(
      f"{path} has a value that transformers refuses: {reason}"
    ) from error
  for name, expected in _FIXED.items():
    if getattr(given, name) != expected:
      raise ValueError(
        f"{path}: {name} is {getattr(given, name)!r}, but our tower has "
        f"{expected!r}."
      )
  ours = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "registers": "num_register_tokens",
  }
  sizes = {n: getattr(given, theirs, 0) for n, theirs in ours.items()}
  for name, value in sizes.items():
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < (name != "registers"):
      raise ValueError(
        f"{path}: {ours[name]} is {value!r}, expected a whole number of at "
        f"least {int(name != 'registers')}."
      )
  return DinoConfig(**sizes, swiglu=bool(given.use_swiglu_ffn))


def _check_pixels(path):
  """Check the normalization that a preprocessor_config.json states.

  Raises:
    ValueError: it is not ImageNet's.
  """
  if not path.is_file():
    return
  fields = clip_sources.read_json(path)
  for name, expected in (("image_mean", MEAN), ("image_std", STD)):
    value = fields.get(name)
    if value is not None and not clip_sources.are_close(value, expected):
      raise ValueError(
        f"{path}: {name} is {value}, but DINOv2 was trained with "
        f"{[round(float(x), 4) for x in expected]}."
      )
