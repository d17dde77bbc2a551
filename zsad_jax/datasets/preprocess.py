"""Decodes images and masks with Pillow, as the papers' authors do.

Pillow instead of TensorFlow, because published numbers depend on resampling:
other bicubic filters differ by one or two grey levels. One departure from the
authors: the EXIF orientation of photographs is applied.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops, ImageOps

from zsad_jax.datasets import extra_formats, index

# Pillow's own limit raises the error of a corrupt file; see MAX_PIXELS.
Image.MAX_IMAGE_PIXELS = None

MAX_PIXELS = int(os.environ.get("ZSAD_JAX_MAX_PIXELS", 200_000_000))
_MAX_16_BIT = 65535
_HALF = 127  # Of 8 bits; above the ringing of JPEG files.
_MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # "I": PGM files.


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


def load_mask(
  path: str | os.PathLike[str],
  image_path: str | os.PathLike[str],
  size: int,
  *,
  lossy: bool = False,
) -> UInt8[np.ndarray, "size size"]:
  """Return a mask as 0 (normal) and 1 (anomalous).

  Every value but 0 is anomalous, as masks may hold defect numbers; with
  `lossy`, in a mask of more than two values, those above one half, since JPEG
  files ring at edges. An anomaly that covers less than half of the support of a
  resized pixel vanishes.

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
  image = open_image(sample.image_path)
  mask = Image.new("L", image.size)
  for path in filter(None, (sample.mask_path, *sample.more_masks)):
    more = open_mask(
      path, sample.image_path, image.size, lossy=sample.lossy_mask
    )
    mask = ImageChops.lighter(mask, more)
  return image, mask


def load_pair(
  sample: index.Sample, size: int
) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
  """Return image and mask of a sample; see `load_image` and `load_mask`."""
  image, mask = open_pair(sample)
  return resize_image(image, size), resize_mask(mask, size)


def open_image(path: str | os.PathLike[str]) -> Image.Image:
  """Return an image as RGB in its own size. See `load_image`."""
  with _decoding(path), _open(path, single=True) as image:
    return _to_rgb(image)


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
  with _decoding(path), _open(path) as file:
    # Pillow clips 16 bits at 255 here; 0 stays 0.
    mask = _convert(file, "L")
    values = np.asarray(mask)
    rings = lossy and np.count_nonzero(np.bincount(values.ravel())) > 2
    anomalous = values > (_HALF if rings else 0)
  if mask.size != tuple(image_size):
    width, height = image_size
    raise ValueError(
      f"{path}: the mask is {mask.width} x {mask.height} pixels, but its "
      f"image {image_path} is {width} x {height}; expected equal sizes."
    )
  return Image.fromarray(np.where(anomalous, 255, 0).astype(np.uint8))


def resize_image(
  image: Image.Image, size: int
) -> UInt8[np.ndarray, "size size 3"]:
  """Resize an RGB image; Pillow's bicubic filter is antialiased."""
  return np.array(image.resize((size, size), Image.Resampling.BICUBIC))


def fraction_between(path: str | os.PathLike[str]) -> float:
  """Return the fraction of pixels that are neither darkest nor lightest.

  More than two values in a mask of one kind of anomaly are compression
  artefacts of JPEG files.

  Raises:
    ValueError: the file is missing or corrupt.
  """
  with _decoding(path), _open(path) as file:
    values = np.asarray(_convert(file, "L"))
  return float(((values > values.min()) & (values < values.max())).mean())


def resize_mask(mask: Image.Image, size: int) -> UInt8[np.ndarray, "size size"]:
  """Resize a mask of 0 and 255 and threshold it at one half."""
  mask = mask.resize((size, size), Image.Resampling.BILINEAR)
  return (np.asarray(mask) / 255 > 0.5).astype(np.uint8)


@contextmanager
def _open(
  path: str | os.PathLike[str], *, single: bool = False
) -> Iterator[Image.Image]:
  """Open an image, or the part of it that the path names."""
  name, box = index.file_and_box(path)
  with extra_formats.open_file(_file(name)) as file:  # Only the header, mostly.
    _check_size(file)
    if single:
      extra_formats.check_single(file)
    image = ImageOps.exif_transpose(file)
    if box is None:
      yield image
      return
    if box[0] >= image.width or box[3] > image.height:
      raise ValueError(f"it has {image.width} x {image.height} pixels")
    yield image.crop(box)  # Black beyond the right border, as in DRA's tiles.


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
  # Pillow's decoders raise more than OSError on corrupt files: SyntaxError for
  # PNG, EOFError, struct.error, or an index or size out of range.
  except Exception as error:
    raise ValueError(
      f"{path}: cannot be read as an image ({error}). Replace "
      "or remove the file."
    ) from error


def _to_rgb(image):
  """Convert any mode to RGB, before any resize.

  Palettes and bitmaps cannot be interpolated.
  """
  if image.mode in _MODES_16_BIT:
    image = _to_8_bit(np.asarray(image))
  elif image.mode == "F":
    raise ValueError(
      "32-bit values have no known maximum; save it with 8 or 16 bits"
    )
  return _convert(image, "RGB")


def _to_8_bit(image: np.ndarray) -> Image.Image:
  """Scale by the largest value of 16 bits; Pillow would clip at 255."""
  if image.min() < 0 or image.max() > _MAX_16_BIT:
    raise ValueError("more than 16 bits per pixel; save it with 8 or 16")
  scale = _MAX_16_BIT // 255
  return Image.fromarray(
    ((image.astype(np.uint32) + scale // 2) // scale).astype(np.uint8)
  )


def _convert(image: Image.Image, mode: str) -> Image.Image:
  if image.mode == "P" and "transparency" in image.info:
    # The same colours, without Pillow's warning about transparency.
    image = image.convert("RGBA")
  return image.convert(mode)
