"""Input images of a detector: validation and parallel decoding."""

import concurrent.futures
import dataclasses
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from zsad_jax.datasets import preprocess
from zsad_jax.inference import tile_stream
from zsad_jax.runtime import copies

# What a detector accepts; `check` has the details.
ImageInput = str | os.PathLike[str] | PIL.Image.Image | np.ndarray
# For static type checkers only: a run-time checker (used in tests) would raise
# its own errors before `check_all`.
if TYPE_CHECKING:
  ImageInputs = Sequence[ImageInput]
else:
  ImageInputs = Any

_ACCEPTED = (
  "Accepted are a path, a PIL image, a NumPy array of dtype uint8 and shape "
  "(height, width, 3) in RGB order, or a list or tuple of these."
)
# A PIL image reads its file on first use, which is not thread-safe.
_PIL_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedImage:
  """An image at the resolution of the model.

  Attributes:
    pixels: RGB, resized to a square.
    size: height and width before resizing, orientation applied.
  """

  pixels: UInt8[np.ndarray, "s s 3"]
  size: tuple[int, int]


def check(image: Any, name: str) -> str:
  """Check that an input is one image, without reading a file.

  Args:
    image: a path, a PIL image or a uint8 array (h, w, 3).
    name: name of the input in messages, such as "images[2]".

  Returns:
    The name of the image in messages: its path where it has one, else `name`.

  Raises:
    TypeError: it is of another type or dtype.
    ValueError: it is an array of another shape.
  """
  if isinstance(image, (str, os.PathLike)):
    return os.fsdecode(image)
  if isinstance(image, PIL.Image.Image):
    return str(getattr(image, "filename", "") or name)
  if not isinstance(image, np.ndarray):
    raise TypeError(f"{name} is {_describe(image)}. {_ACCEPTED}")
  if image.dtype != np.uint8:
    raise TypeError(f"{name} is {_describe(image)}. {_ACCEPTED}")
  if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
    raise ValueError(f"{name} is {_describe(image)}. {_ACCEPTED}")
  return name


def check_all(images: Any) -> list[str]:
  """Check a list or tuple of images and return their names in messages.

  Raises:
    TypeError, ValueError: see `check`.
  """
  if not isinstance(images, (list, tuple)):
    raise TypeError(f"The images are {_describe(images)}. {_ACCEPTED}")
  return [check(image, f"images[{i}]") for i, image in enumerate(images)]


def _describe(value: Any) -> str:
  """Describe a value by its type and, for arrays, dtype and shape."""
  kind = type(value)
  text = f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
  if hasattr(value, "dtype") and hasattr(value, "shape"):
    text += f" of dtype {value.dtype} and shape {tuple(value.shape)}"
  return text


def decode(image: ImageInput, name: str, size: int) -> DecodedImage:
  """Decode one image and resize it as the files of data sets are.

  Args:
    image: checked by `check`.
    name: name of the image in messages.
    size: side of the result in pixels.

  Raises:
    ValueError: see `open_image`.
  """
  opened = open_image(image, name)
  return DecodedImage(
    pixels=preprocess.resize_image(opened, size),
    size=(opened.height, opened.width),
  )


def open_image(image: ImageInput, name: str) -> PIL.Image.Image:
  """Return one image as RGB in its own size.

  Args:
    image: checked by `check`.
    name: name of the image in messages.

  Raises:
    ValueError: the image is missing, corrupt, too large or of an unsupported
      mode.
  """
  if isinstance(image, (str, os.PathLike)):
    return preprocess.open_image(copies.local(image))
  if isinstance(image, PIL.Image.Image):
    with _PIL_LOCK:
      return preprocess.convert_image(image, name)
  return preprocess.convert_image(PIL.Image.fromarray(image), name)


def open_ahead(
  images: Sequence[ImageInput],
  names: Sequence[str],
  *,
  skip_corrupt: bool = False,
) -> Iterator[tile_stream.Opened | str]:
  """Open images in their own size; see `tile_stream.open_ahead`.

  Args:
    images: checked by `check_all`.
    names: of the images in messages.
    skip_corrupt: see `decode_batches`.
  """

  def load(number: int) -> tile_stream.Opened:
    name = names[number]
    return tile_stream.Opened(name, open_image(images[number], name))

  return tile_stream.open_ahead(load, names, skip_corrupt=skip_corrupt)


def digest(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
  """Return a digest of decoded pixels, equal for copies of an image."""
  return tile_stream.new_digest(pixels).digest()


def decode_batches(
  images: Sequence[ImageInput],
  names: Sequence[str],
  *,
  image_size: int,
  batch_size: int,
  skip_corrupt: bool = False,
) -> Iterator[list[DecodedImage | str]]:
  """Decode images in parallel, one batch ahead of the consumer.

  Args:
    images: checked by `check_all`.
    names: of the images in messages.
    image_size: side of the decoded images in pixels.
    batch_size: images per batch; the last batch may be smaller.
    skip_corrupt: yield the message of an image that cannot be read, instead of
      raising it.

  Yields:
    For each image of a batch, in order, the decoded image or a message.

  Raises:
    ValueError: an image cannot be read.
  """

  def load(i: int) -> DecodedImage | str:
    try:
      return decode(images[i], names[i], image_size)
    except ValueError as error:
      if not skip_corrupt:
        raise
      return str(error)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    batches = [
      range(i, min(i + batch_size, len(images)))
      for i in range(0, len(images), batch_size)
    ]
    submit = lambda batch: [pool.submit(load, i) for i in batch]
    current = submit(batches[0]) if batches else []
    for following in itertools.islice([*batches, range(0)], 1, None):
      decoded = [future.result() for future in current]
      current = submit(following)
      yield decoded
