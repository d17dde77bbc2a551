"""Loading of the CLIP models that `config.backbone.name` can select."""

import dataclasses

from zsad_jax.backbones import fetching
from zsad_jax.backbones.clip import (
  catalog,
  conversion,
  model,
  tiny,
  weights,
)
from zsad_jax.backbones.clip.config import MODELS, TRAINED_WITH, ClipConfig
from zsad_jax.backbones.published_weights import Published

EMBEDDED = "embedded"  # The small CLIP that the package ships.
RANDOM = "embedded_random"  # A CLIP of the same size with random weights.
RANDOM_CONFIG = ClipConfig(
  embed_dim=128,
  image_size=112,
  patch_size=8,
  vision_width=160,
  vision_layers=8,
  text_width=160,
  text_layers=5,
  vision_heads=5,
  text_heads=5,
)
RANDOM_SEED = 0
PUBLISHED = catalog.PUBLISHED

NAMES = (EMBEDDED, RANDOM, *MODELS)
NOTES = {
  EMBEDDED: (
    "The backbone is the small CLIP of the package, trained on synthetic "
    "images: its numbers compare methods with each other, not with published "
    "results. For real inspection convert a pretrained CLIP, see README."
  ),
  RANDOM: (
    "The backbone is the small CLIP of the package with random weights: the "
    "numbers show the contribution of the method alone."
  ),
}


def load(name: str, path: str, dtype: str = "float32") -> model.Clip:
  """Load a frozen CLIP.

  Args:
    name: one of `NAMES`.
    path: file written by `zsad convert`; for "embedded", a file
      written by `zsad pretrain`, or "" for the shipped weights.
    dtype: data type of matrix products, one of `backbones.DTYPES`.

  Returns:
    The model.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: no path is given, or the file holds a model of another size.
  """
  return _load(name, path).with_dtype(dtype)


def _load(name: str, path: str) -> model.Clip:
  if name == EMBEDDED:
    return tiny.load(path)
  if name == RANDOM:
    return model.random_clip(RANDOM_CONFIG, RANDOM_SEED)
  fetching.require_file(name, path, PUBLISHED)
  params, config = weights.load(path)
  sizes = lambda c: {
    **dataclasses.asdict(c),
    **dict.fromkeys(TRAINED_WITH),
  }
  if sizes(config) != sizes(MODELS[name]):
    raise ValueError(
      f"{path} holds {config}, but config.backbone.name is {name}, which is "
      f"{MODELS[name]}."
    )
  return model.from_params(params, config)


def fetch(entry: Published, output: str, *, offline: bool) -> str:
  """Fetch published weights, convert them and return a summary.

  Args:
    entry: of `PUBLISHED`.
    output: safetensors file to write.
    offline: use no network, only what was downloaded before.

  Raises:
    OSError: the weights cannot be fetched, or the file cannot be written.
    ValueError: a download is corrupt, or of another model.
  """
  return fetching.fetch(entry, output, conversion.convert, offline=offline)


def identify(name: str, path: str) -> Published | None:
  """Return the published weights that a converted file was made from.

  The file holds the name and the SHA-256 of its source.

  Args:
    name: one of `MODELS`.
    path: file of converted weights.
  """
  return fetching.identify(name, path, PUBLISHED)
