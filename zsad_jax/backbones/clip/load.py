"""The CLIP models that `config.backbone.name` can name, and their loading."""

import dataclasses

from zsad_jax.backbones.clip import model, tiny, weights
from zsad_jax.backbones.clip.config import MODELS, ClipConfig

EMBEDDED = "embedded"  # The small CLIP that the package ships.
RANDOM = "embedded_random"  # The same before its training.
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
NOTES = {
  EMBEDDED: (
    "The backbone is the small CLIP of the package, trained on drawn "
    "pictures: its numbers compare methods with one another, not with "
    "published ones."
  ),
  RANDOM: (
    "The backbone is the small CLIP of the package with random weights: "
    "the numbers show what comes from the method alone."
  ),
}


NAMES = (EMBEDDED, RANDOM, *MODELS)


def load(name: str, path: str, dtype: str = "float32") -> model.Clip:
  """Returns the frozen CLIP of that name.

  Args:
    name: one of `NAMES`.
    dtype: of matrix products, see `backbones.DTYPES`.
    path: file written by `python -m zsad_jax.convert`; for "embedded" one of
      `python -m zsad_jax.pretrain` instead of the package's.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file holds a model of other sizes.
  """
  return _load(name, path).computing_in(dtype)


def _load(name, path):
  if name == EMBEDDED:
    return tiny.load(path)
  if name == RANDOM:
    return model.random_clip(RANDOM_CONFIG, RANDOM_SEED)
  if not path:
    raise ValueError(
      f"config.backbone.path is empty: name the converted weights of {name} "
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
