"""Random changes of training images, functions of (seed, epoch, sample).

VCP-CLIP's authors change every training image and its mask with a library that
this package does not need; the operations, their probabilities and ranges are
theirs, the random numbers are not.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage

Policy = Literal["none", "vcpclip"]
MosaicLabel = Literal["stale", "any"]
MosaicImages = Literal["all", "anomalous"]
Pair = tuple[Image.Image, Image.Image]

# Separates these draws from those of the order and of mosaics.
_STREAM = 2
_PROB = 0.5  # Of each operation.
_DEGREES = 30.0
_JITTER = 0.2  # Largest change of brightness, contrast, saturation and hue.
_VARIANCES = (10.0, 50.0)  # Of the noise, for pixels in [0, 255].
_KERNELS = (3, 5, 7)  # Sides of Gaussian filters in pixels.


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """How training images are changed at random.

  Attributes:
    mosaic_label: of a mosaic: "stale" is the label of the image it replaces
      (AdaCLIP, authors' code), "any" is 1 if it shows an anomaly.
    mosaic_images: of a mosaic: "all" are four distinct test images of the class
      (AdaCLIP), "anomalous" are anomalous ones, drawn with replacement
      (VCP-CLIP).
    policy: "vcpclip" changes every image and mosaic, see `vcpclip`.
  """

  mosaic_label: MosaicLabel = "stale"
  mosaic_images: MosaicImages = "all"
  policy: Policy = "none"

  def draw(self, seed: int, epoch: int, sample: int) -> "Change | None":
    """Return the change of a sample; None if images are not changed."""
    if self.policy == "none":
      return None
    rng = np.random.default_rng([seed, epoch, sample, _STREAM])
    return lambda image, mask: vcpclip(image, mask, rng)


NONE = Augmentation()
Change = Callable[[Image.Image, Image.Image], Pair]


def vcpclip(
  image: Image.Image, mask: Image.Image, rng: np.random.Generator
) -> Pair:
  """Change an image as VCP-CLIP's training does (authors' code).

  Each with probability 1/2 and in this order: rotation within 30 degrees, with
  mirrored borders; rotation by a multiple of 90 degrees; brightness and
  contrast; Gaussian noise; and one of box filter, color jitter and Gaussian
  filter.

  Args:
    image: RGB.
    mask: of the same size; it is rotated with the image, without new values.
    rng: source of the random numbers.
  """
  pixels, labels = np.asarray(image), np.asarray(mask)
  if rng.random() < _PROB:
    angle = rng.uniform(-_DEGREES, _DEGREES)
    pixels, labels = rotate(pixels, angle, 1), rotate(labels, angle, 0)
  if rng.random() < _PROB:
    turns = int(rng.integers(4))
    pixels, labels = np.rot90(pixels, turns), np.rot90(labels, turns)
  if rng.random() < _PROB:
    contrast, brightness = 1 + rng.uniform(-_JITTER, _JITTER, 2)
    pixels = _rounded(contrast * pixels + 255 * (brightness - 1))
  if rng.random() < _PROB:
    sigma = math.sqrt(rng.uniform(*_VARIANCES))
    pixels = _rounded(pixels + rng.normal(0, sigma, pixels.shape))
  changed = Image.fromarray(np.ascontiguousarray(pixels))
  if rng.random() < _PROB:
    operation = (_box_filter, color_jitter, _gaussian_filter)[rng.integers(3)]
    changed = operation(changed, rng)
  turned = Image.fromarray(np.ascontiguousarray(labels))
  return changed, turned.convert(mask.mode)


def rotate(pixels: np.ndarray, degrees: float, order: int) -> np.ndarray:
  """Rotate an image about its center and keep its size.

  Args:
    pixels: (h, w) or (h, w, c).
    degrees: of the rotation, counterclockwise.
    order: 0 for the nearest pixel, 1 for bilinear interpolation.

  Returns:
    The image, of the same type; what is outside is mirrored at the border.
  """
  return ndimage.rotate(
    pixels, degrees, axes=(1, 0), reshape=False, order=order, mode="mirror"
  )


def color_jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
  """Change brightness, contrast, saturation and hue in a random order."""
  enhancers = (
    ImageEnhance.Brightness,
    ImageEnhance.Contrast,
    ImageEnhance.Color,
  )
  for i in rng.permutation(len(enhancers) + 1):
    change = rng.uniform(-_JITTER, _JITTER)
    if i < len(enhancers):
      image = enhancers[i](image).enhance(1 + change)
    else:
      image = _shift_hue(image, change)
  return image


def _shift_hue(image, share):
  """Shift the hue by a share of the color circle."""
  hsv = np.array(image.convert("HSV"))
  hsv[..., 0] += np.uint8(round(256 * share) % 256)
  return Image.fromarray(hsv, "HSV").convert("RGB")


def _box_filter(image, rng):
  """Average 3 x 3 pixels."""
  del rng
  return image.filter(ImageFilter.BoxBlur(1))


def _gaussian_filter(image, rng):
  """Apply a Gaussian filter of a random size."""
  side = int(rng.choice(_KERNELS))
  # The deviation that OpenCV, which the authors use, gives a filter of a size.
  return image.filter(
    ImageFilter.GaussianBlur(0.3 * ((side - 1) / 2 - 1) + 0.8)
  )


def _rounded(pixels):
  """Return pixels as bytes."""
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
