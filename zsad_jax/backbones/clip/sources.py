"""Reading of published CLIP weights from files, directories or the hub.

No code in a file is executed, and torch is not needed; see `torch_io.file`.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from zsad_jax import types
from zsad_jax.backbones.clip import config as clip_config
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import weights
from zsad_jax.runtime import hub
from zsad_jax.torch_io import file as torch_file

# OpenAI publishes each file under a URL that contains its SHA-256
# (openaipublic.azureedge.net/clip/models/<SHA-256>/<file>).
OPENAI_SHA256 = {
  "ViT-B-32.pt": (
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
  ),
  "ViT-B-16.pt": (
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
  ),
  "ViT-L-14.pt": (
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
  ),
  "ViT-L-14-336px.pt": (
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
  ),
}
# Names of open_clip's releases end in the first digits of their SHA-256.
OPEN_CLIP_RELEASE = re.compile(r".+-([0-9a-f]{8})\.pt")
FILE_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")

# Files of a transformers model, in order of preference.
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
TORCH = "pytorch_model.bin"
# Mean and deviation of pixels: of transformers, and next to an open_clip file.
PREPROCESSOR = "preprocessor_config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"


class Weights(NamedTuple):
  """Weights of a published model.

  Attributes:
    params: nested parameters, in the data types of the source.
    config: sizes of the model.
    sha256: SHA-256 of each file, by name.
  """

  params: types.Params
  config: clip_config.ClipConfig
  sha256: dict[str, str]


def read(
  source: str, activation: str | None = None, pixels: str | None = None
) -> Weights:
  """Read weights from a file, a directory or the Hugging Face hub.

  Args:
    source: a file of OpenAI or open_clip, a directory of transformers, or a
      name on the hub.
    activation: "quick" or "gelu_erf", for files of open_clip.
    pixels: normalization of pixels, a key of `config.PIXELS`; None for the one
      that files next to the weights state, or else OpenAI's.

  Returns:
    The weights.

  Raises:
    FileNotFoundError: the source or a part of it does not exist.
    ValueError: a file is corrupt or no CLIP, or the activation is missing or
      given in two places.
  """
  found = _read(source, activation)
  clip_convert.check_values(found.params, source)
  if pixels:
    changed = dataclasses.replace(found.config, pixels=pixels)
    found = found._replace(config=changed)
  return found


def _read(source, activation):
  """Return the weights of a source; see `read`."""
  path = pathlib.Path(source)
  if path.is_file():
    return _read_file(path, activation)
  looks_like_hub = hub.NAME.fullmatch(source) and not path.is_absolute()
  if not path.is_dir() and path.suffix not in FILE_SUFFIXES and looks_like_hub:
    path = download(source)
  if not path.is_dir():
    raise FileNotFoundError(
      f"{source} is no file, no directory and no name on the hub, such as "
      "openai/clip-vit-large-patch14-336."
    )
  if activation:
    raise ValueError(
      f"--activation is for open_clip files; the activation of {source} is in "
      "its config.json."
    )
  return _read_directory(path)


def check_sha256(path: pathlib.Path, digest: str) -> None:
  """Check the digest of a file that has the name of a published one.

  Raises:
    ValueError: the published file has another SHA-256.
  """
  expected = published_digest(path.name)
  if expected and not digest.startswith(expected):
    more = "..." * (len(expected) < len(digest))
    raise ValueError(
      f"{path} is not the file published under this name: its SHA-256 is "
      f"{digest}, expected {expected}{more}. Download it again, or rename it "
      "if it is another file."
    )


def published_digest(name: str) -> str:
  """Return SHA-256, or its beginning, of a published file, "" if not known.

  Args:
    name: of the file.
  """
  release = OPEN_CLIP_RELEASE.fullmatch(name)
  return OPENAI_SHA256.get(name) or (release[1] if release else "")


def _read_file(path, activation):
  """Read a state dict in the layout of OpenAI and open_clip."""
  digest = sha256(path)
  check_sha256(path, digest)
  if path.suffix == ".safetensors":
    state, _ = weights.read_safetensors(path)
  else:
    state = torch_file.read(path)
  if any(name.startswith("vision_model.") for name in state):
    raise ValueError(
      f"{path} is a transformers model: pass the directory that holds it "
      "and its config.json."
    )
  if not activation and not _is_from_openai(state):
    raise ValueError(
      f"{path} does not store its activation. Pass --activation=quick for a "
      "model of OpenAI or one called -quickgelu, --activation=gelu_erf for "
      "others."
    )
  activation = activation or "quick"
  params, config = clip_convert.from_openai(
    state, activation=activation, source=str(path)
  )
  config = _with_pixels(config, path.with_name(OPEN_CLIP_CONFIG))
  return Weights(params, config, {path.name: digest})


def _is_from_openai(state):
  """Check for half-precision matrices next to float32 parameters.

  Only OpenAI's files mix the two (`convert_weights` in their model.py).
  """
  dtypes = [
    getattr(state.get(name), "dtype", None)
    for name in ("visual.conv1.weight", "visual.class_embedding")
  ]
  return dtypes == [np.float16, np.float32]


def _read_directory(directory):
  """Read config.json and the weights of a CLIPModel of transformers."""
  import transformers  # Slow to import, and used here only.

  config_file = directory / "config.json"
  if not config_file.is_file():
    raise FileNotFoundError(
      f"{directory} has no config.json, so it is not a transformers model. "
      "Pass an open_clip file itself, not its directory."
    )
  fields = read_json(config_file)
  for name in ("vision_config", "text_config"):
    if not isinstance(fields.get(name, {}), dict):
      raise ValueError(f"{config_file}: {name} must be an object.")
  if fields.get("model_type") != "clip":
    raise ValueError(
      f"{config_file}: model_type is {fields.get('model_type')!r}, "
      "expected 'clip'."
    )
  # Adds the defaults that config.json omits.
  try:
    hf_config = transformers.CLIPConfig.from_dict(fields)
  except Exception as error:  # Of transformers or its validation.
    reason = " ".join(str(error).split())
    raise ValueError(
      f"{config_file} has a value that transformers refuses: {reason}"
    ) from error
  _check_sizes(hf_config, config_file)
  state, files = read_weights(directory)
  params, config = clip_convert.from_hugging_face(
    state, hf_config, source=str(directory)
  )
  config = _with_pixels(config, directory / PREPROCESSOR)
  return Weights(params, config, {file.name: sha256(file) for file in files})


def _check_sizes(hf_config, path):
  """Check that all sizes of a `transformers.CLIPConfig` are whole numbers."""
  shared = "hidden_size num_hidden_layers num_attention_heads".split()
  names = {
    "vision_config": [*shared, "image_size", "patch_size"],
    "text_config": [*shared, "vocab_size", "max_position_embeddings"],
  }
  found = {"projection_dim": hf_config.projection_dim}
  for part, fields in names.items():
    section = getattr(hf_config, part)
    found |= {f"{part}.{name}": getattr(section, name) for name in fields}
  for name, value in found.items():
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 1:
      raise ValueError(
        f"{path}: {name} is {value!r}, expected a whole number of at least 1."
      )


def read_weights(
  directory: pathlib.Path,
) -> tuple[dict[str, np.ndarray], list[pathlib.Path]]:
  """Return the arrays of a transformers model and the files that hold them."""
  single, index, torch = (
    directory / name for name in (SAFETENSORS, SAFETENSORS_INDEX, TORCH)
  )
  if single.is_file():
    return weights.read_safetensors(single)[0], [single]
  if index.is_file():
    return _read_shards(index)
  if torch.is_file():
    return torch_file.read(torch), [torch]
  raise FileNotFoundError(
    f"{directory} has no weights; expected {SAFETENSORS}, "
    f"{SAFETENSORS_INDEX} or {TORCH}."
  )


def _read_shards(index):
  """Read the files in an index; each must hold the arrays listed for it."""
  shard_of = read_json(index).get("weight_map")
  if not (
    isinstance(shard_of, dict)
    and shard_of
    and all(isinstance(name, str) for name in shard_of.values())
  ):
    raise ValueError(f"{index} has no weight_map: file by array name.")
  files = [index.with_name(name) for name in sorted(set(shard_of.values()))]
  missing = [file.name for file in files if not file.is_file()]
  if missing:
    raise FileNotFoundError(
      f"{index} lists {len(files)} files, of which {len(missing)} are "
      f"missing: {', '.join(missing)}. Download them, too."
    )
  state = {}
  for file in files:
    shard, _ = weights.read_safetensors(file)
    listed = {name for name, home in shard_of.items() if home == file.name}
    if listed != set(shard):
      raise ValueError(
        f"{file} and {index.name} disagree: not in the file "
        f"{sorted(listed - set(shard))}, not listed for it "
        f"{sorted(set(shard) - listed)}."
      )
    state |= shard
  return state, files


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Return the object in a JSON file.

  Raises:
    ValueError: the file is no JSON, or no object.
  """
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON: {error}.") from error
  if not isinstance(found, dict):
    raise ValueError(f"{path} must be a JSON object.")
  return found


def _with_pixels(config, path):
  """Return a configuration with the normalization that a file states.

  Args:
    config: the sizes of the model.
    path: a preprocessor_config.json or an open_clip_config.json; need not
      exist.

  Raises:
    ValueError: the towers have no such normalization.
  """
  if not path.is_file():
    return config
  fields: Any = read_json(path)
  if path.name == OPEN_CLIP_CONFIG:
    fields = fields.get("preprocess_cfg")
  if not isinstance(fields, dict):
    return config
  mean = fields.get("image_mean", fields.get("mean"))
  std = fields.get("image_std", fields.get("std"))
  if mean is None and std is None:
    return config
  for name, expected in clip_config.PIXELS.items():
    if _are_close(mean, expected[0]) and _are_close(std, expected[1]):
      return dataclasses.replace(config, pixels=name)
  known = "; ".join(
    f"{name}: {[round(float(x), 4) for x in values[0]]}"
    for name, values in clip_config.PIXELS.items()
  )
  raise ValueError(
    f"{path}: pixels are normalized with mean {mean} and deviation {std}, "
    f"which is not supported; supported means are {known}. Give --pixels to "
    "use one of them."
  )


def _are_close(found, expected) -> bool:
  try:
    values = np.array(found, np.float64)
  except (TypeError, ValueError):
    return False
  return values.shape == (3,) and bool(np.allclose(values, expected, atol=1e-4))


def fetch(
  repo: str, names: tuple[str, ...] = (), *, offline: bool = False
) -> hub.Snapshot:
  """Return the verified files of a model on the hub; see `hub.fetch`.

  Args:
    repo: owner/name.
    names: files of weights in order of preference, of which the first that
      exists is fetched; () for those of transformers.
    offline: use only files that were fetched before.

  Raises:
    hub.HubError: the model cannot be fetched, or has no such files.
    ValueError: a file does not have the hash that the hub states.
  """
  small = ("config.json", PREPROCESSOR, OPEN_CLIP_CONFIG)
  weights_files = [[name] for name in names] or [
    ["model*.safetensors", SAFETENSORS_INDEX],
    [TORCH],
  ]

  def choose(listed):
    for patterns in weights_files:
      if found := hub.matching(listed, patterns):
        return [*hub.matching(listed, small), *found]
    return []

  return hub.fetch(repo, choose, offline=offline)


def download(name: str) -> pathlib.Path:
  """Return the local copy of a model on the hub; download it if needed."""
  try:
    return fetch(name).path
  except hub.HubError as error:
    raise FileNotFoundError(
      f"{name} is no local file or directory, and not on the hub: {error} "
      "Without a network, download its config.json and model.safetensors "
      "elsewhere and pass --source=DIRECTORY."
    ) from error


def sha256(path: pathlib.Path) -> str:
  """Return the SHA-256 of a file."""
  with path.open("rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()
