"""Configuration of SAM's image encoder and a table of the published ones."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

# Mean and deviation of ImageNet, RGB in [0, 1], as SAM was trained with.
MEAN = np.array([123.675, 116.28, 103.53], np.float32) / 255
STD = np.array([58.395, 57.12, 57.375], np.float32) / 255


@dataclasses.dataclass(frozen=True)
class SamConfig:
  """Sizes of a vision transformer with windowed attention.

  Attributes:
    width: channels (c).
    layers: number of blocks.
    heads: attention heads.
    global_layers: blocks (1-based) that attend to the whole image; the others
      attend within windows.
    image_size: side of the training images in pixels; gives the sizes of the
      position tables.
    patch_size: side of a patch in pixels.
    window: side of a window in patches.
    neck_width: channels of SAM's image embedding.
  """

  width: int
  layers: int
  heads: int
  global_layers: tuple[int, ...]
  image_size: int = 1024
  patch_size: int = 16
  window: int = 14
  neck_width: int = 256

  @property
  def grid(self) -> int:
    """Patches per side in the position table."""
    return self.image_size // self.patch_size

  @property
  def head_width(self) -> int:
    """Channels of an attention head."""
    return self.width // self.heads


def from_dict(sizes: Mapping[str, Any]) -> SamConfig:
  """Build a configuration from the metadata of a file of weights.

  Raises:
    ValueError: a field is missing, unknown or of another type.
  """
  fields = [field.name for field in dataclasses.fields(SamConfig)]
  if not isinstance(sizes, Mapping) or set(sizes) != set(fields):
    raise ValueError(f"the sizes of the model are {sizes!r}, not {fields}")
  for name, value in sizes.items():
    numbers = value if name == "global_layers" else [value]
    whole = lambda x: isinstance(x, int) and not isinstance(x, bool) and x >= 1
    if not isinstance(numbers, (list, tuple)) or not all(map(whole, numbers)):
      raise ValueError(
        f"the size {name} of the model is {value!r}, expected whole numbers"
      )
  return SamConfig(**{**sizes, "global_layers": tuple(sizes["global_layers"])})


# Names of the repositories on the Hugging Face hub.
MODELS = {
  "sam-vit-base": SamConfig(768, 12, 12, (3, 6, 9, 12)),
  "sam-vit-large": SamConfig(1024, 24, 16, (6, 12, 18, 24)),
  "sam-vit-huge": SamConfig(1280, 32, 16, (8, 16, 24, 32)),
}
