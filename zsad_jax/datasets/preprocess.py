"""Decodes images and masks with Pillow, as the papers' authors do.

Pillow instead of TensorFlow, because published numbers depend on resampling:
other bicubic filters differ by one or two grey levels. One departure from the
authors: the EXIF orientation of photographs is applied.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageChops, ImageOps

from zsad_jax.datasets import bit_depth, extra_formats, index
from zsad_jax.datasets import masks as masks_lib
from zsad_jax.runtime import environment
from zsad_jax.types import ANOMALOUS

# Pillow's own limit raises the error of a corrupt file; see MAX_PIXELS.
Image.MAX_IMAGE_PIXELS = None

MAX_PIXELS = environment.max_pixels()


def load_image(
  path: str | os.PathLike[str], size: int
) -> UInt8[np.ndarray, "size size 3"]:
  """Return an image as RGB, resized to a square regardless of its aspect.

  Args:
    path: an image that Pillow reads; transparency is dropped, 16-bit grey is
      scaled to 8 bit.
    size: side of the result in pixels.

  Raises:
    ValueError: the file is missing, corrupt, or of 32 bits per channel.
  """
  return resize_image(open_image(path), size)


class Unreadable(ValueError):
  """An image that cannot be decoded; the arguments are reason and message."""

  @property
  def reason(self) -> str:
    """Why it cannot be decoded."""
    return self.args[0]

  def __str__(self) -> str:
    return self.args[1]


class Pair(NamedTuple):
  """Image and mask of a sample.

  Attributes:
    image: PIL image of mode RGB or, resized, uint8 (size, size, 3).
    mask: PIL image of mode L, 0 or 255; or uint8 (size, size), 0 or 1.
    findings: what is suspicious about the mask.
  """

  image: Any
  mask: Any
  findings: masks_lib.Finding = masks_lib.Finding.NONE


def load_mask(
  path: str | os.PathLike[str],
  image_path: str | os.PathLike[str],
  size: int,
  *,
  lossy: bool = False,
) -> UInt8[np.ndarray, "size size"]:
  """Return a mask as 0 (normal) and 1 (anomalous).

  Every value but 0 is anomalous, as masks may hold defect numbers; with
  `lossy`, in a mask of graded values, those above one half, since JPEG files
  ring at edges; see `masks.read`. An anomaly that covers less than half of the
  support of a resized pixel vanishes.

  Args:
    path: the mask.
    image_path: its image, whose size it must have.
    size: side of the result in pixels.
    lossy: whether it may be a JPEG file that marks one kind of anomaly.

  Raises:
    ValueError: a file is missing or corrupt, or the two sizes differ.
  """
  size_of_image = open_image(image_path).size
  mask = open_mask(path, image_path, size_of_image, lossy=lossy)
  return resize_mask(mask, size)


def open_pair(sample: index.Sample) -> tuple[Image.Image, Image.Image]:
  """Return the RGB image and the mask (0 or 255) in the file's size.

  The mask is empty for a sample without one; several masks are united.

  Raises:
    ValueError: a file is missing or corrupt, or the two sizes differ.
  """
  pair = inspect_pair(sample)
  return pair.image, pair.mask


def inspect_pair(sample: index.Sample) -> Pair:
  """Return the RGB image and the mask as `open_pair` does, with findings.

  Raises:
    ValueError: a file is missing, corrupt or ambiguous, or the two sizes
      differ.
  """
  image, turned = _oriented_image(sample.image_path)
  mask, found = Image.new("L", image.size), masks_lib.Finding.NONE
  paths = [*filter(None, (sample.mask_path, *sample.more_masks))]
  for path in paths:
    more = _fitted_mask(
      path,
      sample.image_path,
      image.size,
      orientation=turned,
      robust=sample.lossy_mask,
      resize=sample.resize_mask,
    )
    mask = ImageChops.lighter(mask, more.image)
    found |= more.findings
  if paths and sample.label == ANOMALOUS:
    judged = masks_lib.judge(mask)
    if index.file_and_box(sample.image_path)[1]:  # A part may be all defect.
      judged &= ~masks_lib.Finding.INVERTED
    found |= judged
  if sample.unused_mask and read_mask(sample.unused_mask).any():
    found |= masks_lib.Finding.OF_NORMAL
  return Pair(image, mask, found)


def load_pair(
  sample: index.Sample, size: int
) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
  """Return image and mask of a sample; see `load_image` and `load_mask`."""
  pair = load_inspected(sample, size)
  return pair.image, pair.mask


def load_inspected(sample: index.Sample, size: int) -> Pair:
  """Return image and mask as `load_pair` does, with findings."""
  pair = inspect_pair(sample)
  mask, found = resize_mask(pair.mask, size), pair.findings
  if pair.mask.getbbox() and not mask.any():
    found |= masks_lib.Finding.VANISHES
  return Pair(resize_image(pair.image, size), mask, found)


def open_image(path: str | os.PathLike[str]) -> Image.Image:
  """Return an image as RGB in its own size. See `load_image`."""
  return _oriented_image(path)[0]


def _oriented_image(path: str | os.PathLike[str]) -> tuple[Image.Image, int]:
  """Return an image as RGB, and the EXIF orientation that was applied."""
  with _decoding(path), _open_file(path) as (file, box):
    deep_colors = bit_depth.has_deep_colors(file)
    extra_formats.check_single(file)
    bit_depth.check(file, deep_colors=deep_colors)
    turned = masks_lib.orientation(file)
    return _to_rgb(_part(file, box)), turned


def convert_image(image: Image.Image, name: str) -> Image.Image:
  """Convert a PIL image to RGB in the same way as `open_image` does a file.

  Args:
    image: of any mode; its EXIF orientation is applied.
    name: of the image in messages.

  Raises:
    ValueError: the image is corrupt, too large, or of 32 bits per channel.
  """
  with _decoding(name):
    _check_size(image)
    deep_colors = bit_depth.has_deep_colors(image)
    bit_depth.check(image, deep_colors=deep_colors)
    return _to_rgb(ImageOps.exif_transpose(image))


def open_mask(
  path: str | os.PathLike[str],
  image_path: str | os.PathLike[str],
  image_size: tuple[int, int],
  *,
  lossy: bool = False,
) -> Image.Image:
  """Return a mask as 0 and 255 in its own size. See `load_mask`.

  Args:
    path: the mask.
    image_path: its image, for the message.
    image_size: width and height of the image.
    lossy: see `load_mask`.
  """
  return _fitted_mask(path, image_path, image_size, robust=lossy).image


def read_mask(path: str | os.PathLike[str]) -> Bool[np.ndarray, "h w"]:
  """Return a mask in the size of its file, True where it is anomalous.

  Raises:
    ValueError: the file is missing, corrupt or ambiguous.
  """
  with _decoding(path), _open_file(path) as (file, box):
    return masks_lib.marked(masks_lib.read(file, box=box).image)


def _fitted_mask(
  path: str | os.PathLike[str],
  image_path: str | os.PathLike[str],
  image_size: tuple[int, int],
  *,
  orientation: int | None = None,
  robust: bool = False,
  resize: bool = False,
) -> masks_lib.Mask:
  """Return a mask of its image's size, with findings.

  Args:
    path: the mask.
    image_path: its image, for the message.
    image_size: width and height of the image.
    orientation: EXIF orientation of the image; None: that of the mask.
    robust: see `masks.read`.
    resize: see `masks.fit`.
  """
  with _decoding(path), _open_file(path) as (file, box):
    own = masks_lib.orientation(file)
    mask = masks_lib.read(file, box=box, robust=robust)
    image, found = masks_lib.fit(
      mask.image,
      (image_size[0], image_size[1]),
      orientations=(orientation or own, own),
      image_name=str(image_path),
      resize=resize,
    )
  return masks_lib.Mask(image, mask.findings | found)


def resize_image(
  image: Image.Image,
  size: int,
  box: tuple[float, float, float, float] | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
  """Resize an RGB image; Pillow's bicubic filter is antialiased.

  Args:
    image: the image.
    size: side of the result in pixels.
    box: left, upper, right and lower border of the part to resize, in pixels
      of the image, which may be fractions; None: the whole image.
  """
  resample = Image.Resampling.BICUBIC
  return np.array(image.resize((size, size), resample, box=box))


def resize_mask(
  mask: Image.Image, size: int | tuple[int, int]
) -> UInt8[np.ndarray, "h w"]:
  """Resize a mask of 0 and 255 and threshold it at one half.

  Args:
    mask: the mask.
    size: side of the result in pixels, or its height and width.
  """
  height, width = (size, size) if isinstance(size, int) else size
  mask = mask.resize((width, height), Image.Resampling.BILINEAR)
  return (np.asarray(mask) / 255 > 0.5).astype(np.uint8)


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
  """Return height and width of a file's image, in the file's orientation.

  Only the header is read, where the format has one.

  Raises:
    ValueError: the file is missing or corrupt.
  """
  with _decoding(path), _open_file(path) as (file, box):
    left, top, right, bottom = box or (0, 0, *file.size)
    return bottom - top, right - left


@contextmanager
def _open_file(
  path: str | os.PathLike[str],
) -> Iterator[tuple[Image.Image, index.Box | None]]:
  """Open a file, not decoded yet, and return the part that the path names."""
  name, box = index.file_and_box(path)
  source = _file(name)
  try:
    opened = extra_formats.open_file(source)  # Only the header, mostly.
  except Exception:
    if isinstance(source, str) and os.path.getsize(source) == 0:
      raise ValueError("the file is empty") from None
    raise
  with opened as file:
    _check_size(file)
    if box and (box[0] >= file.width or box[3] > file.height):
      raise ValueError(f"it has {file.width} x {file.height} pixels")
    yield file, box


def _part(file: Image.Image, box: index.Box | None) -> Image.Image:
  """Return an image, turned by its EXIF orientation, or a part of it."""
  image = ImageOps.exif_transpose(file)
  # Black beyond the right border, as in DRA's tiles.
  return image if box is None else image.crop(box)


def _check_size(image):
  """Check the number of pixels, which may exceed what fits in memory."""
  if image.width * image.height > MAX_PIXELS:
    raise ValueError(
      f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}; "
      "ZSAD_JAX_MAX_PIXELS sets another limit"
    )


def _file(name: str) -> str | io.BytesIO:
  """Return the name of a file, or the bytes of a record."""
  if not name.startswith(index.BUILT):
    return name
  # Not at the top: TensorFlow is slow to import, and most data are files.
  from zsad_jax.datasets import tfds_records

  return io.BytesIO(tfds_records.read(name))


@contextmanager
def _decoding(path: str | os.PathLike[str]) -> Iterator[None]:
  """Convert every exception of Pillow to a `ValueError` with the path."""
  try:
    yield
  except FileNotFoundError as error:
    raise ValueError(f"{path}: the file does not exist.") from error
  except masks_lib.Ambiguous as error:
    raise ValueError(f"{path}: {error}") from error
  # Pillow's decoders raise more than OSError on corrupt files: SyntaxError for
  # PNG, EOFError, struct.error, or an index or size out of range.
  except Exception as error:
    raise Unreadable(
      str(error),
      f"{path}: cannot be read as an image ({error}). Replace or remove the "
      "file.",
    ) from error


def _to_rgb(image):
  """Convert any mode to RGB, before any resize.

  Palettes and bitmaps cannot be interpolated.
  """
  if image.mode in bit_depth.MODES:
    image = bit_depth.to_8_bit(image)
  elif image.mode == "F":
    raise ValueError(
      "32-bit values have no known maximum; save it with 8 or 16 bits"
    )
  return _convert(image, "RGB")


def _convert(image: Image.Image, mode: str) -> Image.Image:
  if image.mode == "P" and "transparency" in image.info:
    # The same colours, without Pillow's warning about transparency.
    image = image.convert("RGBA")
  return image.convert(mode)
