"""Images of 16 bits per channel, as 8 bits."""

from typing import Any

import numpy as np
from PIL import Image

MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # Grey; "I": PGM files.
_COLOR = "RGB;16"  # Part of Pillow's raw modes, for which it keeps 8 bits.
_LARGEST = 65535
_LEAST_MAXIMUM = 4096  # 2^12: values of 12 bits are smaller.


def has_deep_colors(file: Image.Image) -> bool:
  """Return whether a file, not decoded yet, has colors of 16 bits."""
  # Decoding empties `tile`.
  return any(_COLOR in str(tile[3]) for tile in getattr(file, "tile", ()))


def check(image: Image.Image, *, deep_colors: bool) -> None:
  """Check that values of 16 bits are not those of 8, 10 or 12 bits.

  Args:
    image: the whole image, of any mode.
    deep_colors: whether its file has colors of 16 bits.

  Raises:
    ValueError: all values are below 4096, and not all are 0, so that the image
      would be nearly black.
  """
  if image.mode not in MODES and not deep_colors:
    return
  largest = int(np.asarray(image).max()) * (256 if deep_colors else 1)
  if 0 < largest < _LEAST_MAXIMUM:
    raise ValueError(
      f"16 bits per channel, but no value of {_LEAST_MAXIMUM} or more: it "
      "would be nearly black. Scale values of 8, 10 or 12 bits to 16 bits"
    )


def to_8_bit(image: Any) -> Image.Image:
  """Scale grey values by the largest of 16 bits; Pillow would clip at 255.

  Args:
    image: of one of `MODES`.

  Raises:
    ValueError: a value needs more than 16 bits.
  """
  values = np.asarray(image)
  if values.min() < 0 or values.max() > _LARGEST:
    raise ValueError("more than 16 bits per pixel; save it with 8 or 16")
  scale = _LARGEST // 255
  scaled = (values.astype(np.uint32) + scale // 2) // scale
  return Image.fromarray(scaled.astype(np.uint8))
