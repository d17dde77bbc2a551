"""Loading of the CLIP models that `config.backbone.name` can select."""

import dataclasses

from zsad_jax.backbones.clip import model, tiny, weights
from zsad_jax.backbones.clip.config import MODELS, ClipConfig

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
    path: file written by `python -m zsad_jax.convert`; for "embedded", a file
      written by `python -m zsad_jax.pretrain`, or "" for the shipped weights.
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
  if not path:
    raise ValueError(
      f"config.backbone.path is empty: give the converted weights of {name} "
      f"(python -m zsad_jax.convert --source=SOURCE --model={name} "
      "--output=FILE)."
    )
  params, config = weights.load(path)
  sizes = lambda c: {**dataclasses.asdict(c), "activation": None}
  if sizes(config) != sizes(MODELS[name]):
    raise ValueError(
      f"{path} holds {config}, but config.backbone.name is {name}, which is "
      f"{MODELS[name]}."
    )
  return model.from_params(params, config)
