"""Configuration of CLIP models and a table of the published ones."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

# Mean and deviation of CLIP's training images, RGB in [0, 1] (OpenAI).
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_HALF = np.full(3, 0.5, np.float32)
# Normalization of pixels -> mean and deviation. "half" is that of one LAION
# model; open_clip's table of pretrained models calls it INCEPTION.
PIXELS = {"openai": (MEAN, STD), "half": (_HALF, _HALF)}

HEAD_WIDTH = 64  # Default width of an attention head, both towers.

# Fields of `ClipConfig` in which weights of the same sizes can differ.
TRAINED_WITH = ("activation", "pixels")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Sizes of a CLIP model with a ViT image tower.

  Attributes:
    embed_dim: width of the joint embedding (d).
    image_size: side of the training images in pixels; gives the size of the
      position table.
    patch_size: side of a patch in pixels.
    vision_width: channels of the vision tower (c).
    vision_layers: number of blocks of the vision tower.
    text_width: channels of the text tower.
    text_layers: number of blocks of the text tower.
    vocab_size: rows of the token table.
    context_length: rows of the text position table.
    vision_heads: attention heads of the vision tower; 0 for one per 64
      channels.
    text_heads: attention heads of the text tower, likewise.
    activation: activation that the weights were trained with, "quick" or
      "gelu_erf"; methods may override it.
    pixels: normalization of pixels that the weights were trained with, a key of
      `PIXELS`.
  """

  embed_dim: int
  image_size: int
  patch_size: int
  vision_width: int
  vision_layers: int
  text_width: int
  text_layers: int
  vocab_size: int = 49408
  context_length: int = 77
  vision_heads: int = 0
  text_heads: int = 0
  activation: str = "quick"
  pixels: str = "openai"

  def __post_init__(self):
    for tower in ("vision", "text"):
      if not getattr(self, f"{tower}_heads"):
        heads = getattr(self, f"{tower}_width") // HEAD_WIDTH
        object.__setattr__(self, f"{tower}_heads", heads)

  @property
  def grid(self) -> int:
    """Patches per side in the position table."""
    return self.image_size // self.patch_size


def from_dict(sizes: Mapping[str, Any]) -> ClipConfig:
  """Build a configuration from the metadata of a file of weights.

  Args:
    sizes: fields of `ClipConfig`; files of version 0.1 call the activation
      "act".

  Raises:
    ValueError: a field is missing, unknown or of another type.
  """
  if not isinstance(sizes, Mapping):
    raise ValueError(f"the sizes of the model are {sizes!r}, no object")
  old = {"act": "activation"}
  given = {old.get(k, k): v for k, v in sizes.items()}
  for field in dataclasses.fields(ClipConfig):
    if field.name not in given:
      if field.default is dataclasses.MISSING:
        raise ValueError(f"the size {field.name} of the model is missing")
      continue
    value = given.pop(field.name)
    if field.name == "activation":
      valid, expected = isinstance(value, str), "text"
    elif field.name == "pixels":
      valid, expected = value in tuple(PIXELS), " or ".join(PIXELS)
    else:
      low = 0 if field.name.endswith("_heads") else 1
      whole = isinstance(value, int) and not isinstance(value, bool)
      valid = whole and value >= low
      expected = f"a whole number of at least {low}"
    if not valid:
      raise ValueError(
        f"the size {field.name} of the model is {value!r}, expected {expected}"
      )
  if given:
    raise ValueError(f"the size {sorted(given)[0]!r} of the model is unknown")
  return ClipConfig(**{old.get(k, k): v for k, v in sizes.items()})


# Names of open_clip; heads of ViT-H-14's vision tower have 80 channels.
MODELS = {
  "ViT-B-32": ClipConfig(512, 224, 32, 768, 12, 512, 12),
  "ViT-B-16": ClipConfig(512, 224, 16, 768, 12, 512, 12),
  "ViT-L-14": ClipConfig(768, 224, 14, 1024, 24, 768, 12),
  "ViT-L-14-336": ClipConfig(768, 336, 14, 1024, 24, 768, 12),
  "ViT-B-16-plus-240": ClipConfig(
    640, 240, 16, 896, 12, 640, 12, activation="gelu_erf"
  ),
  "ViT-H-14": ClipConfig(
    1024, 224, 14, 1280, 32, 1024, 24, vision_heads=16, activation="gelu_erf"
  ),
}
