"""Rotated copies of images, on the host."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from scipy import ndimage


def rotate(
  images: UInt8[np.ndarray, "k s s 3"], angles: Sequence[float]
) -> UInt8[np.ndarray, "n s s 3"]:
  """Rotate square images around their centre.

  Values between pixels are interpolated linearly; outside, the image is
  mirrored at the centre of its border pixels.

  Args:
    images: k images.
    angles: in degrees, counter-clockwise.

  Returns:
    The copies of the first image by angle, then those of the next one.
  """
  copies = [_rotated(image, angle) for image in images for angle in angles]
  return np.stack(copies)


def _rotated(image, angle):
  if not angle % 90:  # Exactly.
    return np.rot90(image, round(angle / 90) % 4)
  radians = np.deg2rad(angle)
  # From rows and columns of the copy to those of the image.
  turn = np.array(
    [
      [np.cos(radians), np.sin(radians)],
      [-np.sin(radians), np.cos(radians)],
    ]
  )
  centre = (np.array(image.shape[:2]) - 1) / 2
  offset: Any = centre - turn @ centre
  channels = [
    ndimage.affine_transform(
      channel.astype(np.float32),
      turn,
      offset=offset,
      order=1,
      mode="mirror",
    )
    for channel in np.moveaxis(image, -1, 0)
  ]
  return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
