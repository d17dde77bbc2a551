"""Configuration of DINOv2 models and a table of the published ones."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

# Mean and deviation of ImageNet's images, RGB in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

HEAD_WIDTH = 64  # Of an attention head of all published models.


@dataclasses.dataclass(frozen=True)
class DinoConfig:
  """Sizes of a DINOv2 model.

  Attributes:
    width: channels (c).
    layers: number of blocks.
    heads: attention heads; 0 for one per 64 channels.
    image_size: side of the images in pixels that the position table fits.
    patch_size: side of a patch in pixels.
    registers: number of register tokens (Darcet et al., arXiv:2309.16588).
    swiglu: whether the MLPs are gated (SwiGLU), as in ViT-g.
  """

  width: int
  layers: int
  heads: int = 0
  image_size: int = 518
  patch_size: int = 14
  registers: int = 0
  swiglu: bool = False

  def __post_init__(self):
    if not self.heads:
      object.__setattr__(self, "heads", self.width // HEAD_WIDTH)

  @property
  def grid(self) -> int:
    """Patches per side in the position table."""
    return self.image_size // self.patch_size

  @property
  def gated_width(self) -> int:
    """Hidden channels of a SwiGLU: two thirds of 4 c, a multiple of 8."""
    return (int(4 * self.width * 2 / 3) + 7) // 8 * 8

  @property
  def pos_resize(self) -> str:
    """Resampling of the position table, see `layers.resample`.

    That of `Dinov2Model` and `Dinov2WithRegistersModel` of transformers.
    """
    return "bicubic_antialias" if self.registers else "bicubic"


def from_dict(sizes: Mapping[str, Any]) -> DinoConfig:
  """Build a configuration from the metadata of a file of weights.

  Args:
    sizes: all fields of `DinoConfig`.

  Raises:
    ValueError: a field is missing, unknown or of another type.
  """
  names = [field.name for field in dataclasses.fields(DinoConfig)]
  if not isinstance(sizes, Mapping) or sorted(sizes) != sorted(names):
    raise ValueError(
      f"the sizes of the model are {sizes!r}, expected {', '.join(names)}"
    )
  for name, value in sizes.items():
    low = 0 if name == "registers" else 1
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name == "swiglu":
      valid, expected = isinstance(value, bool), "a truth value"
    else:
      valid = whole and value >= low
      expected = f"a whole number of at least {low}"
    if not valid:
      raise ValueError(
        f"the size {name} of the model is {value!r}, expected {expected}"
      )
  return DinoConfig(**sizes)


_SIZES = {
  "small": DinoConfig(384, 12),
  "base": DinoConfig(768, 12),
  "large": DinoConfig(1024, 24),
  "giant": DinoConfig(1536, 40, swiglu=True),
}
# Names of the repositories of facebook on the Hugging Face hub.
MODELS = {f"dinov2-{size}": config for size, config in _SIZES.items()} | {
  f"dinov2-with-registers-{size}": dataclasses.replace(config, registers=4)
  for size, config in _SIZES.items()
}
