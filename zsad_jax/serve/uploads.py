"""Reception of images by HTTP: limits of size, time and number."""

import asyncio
import contextlib
import dataclasses
import io
from collections.abc import Iterator

import fastapi
import PIL.Image

from zsad_jax.datasets import extra_formats

NAME = "The image"  # In messages.
# Formats that are recognized by their first bytes; some others of Pillow's run
# external programs, or take any file for an image.
PIL.Image.init()
_FORMATS = sorted(
  {"PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "JPEG2000", "PPM", "GIF"}
  | {"AVIF"} & {*PIL.Image.OPEN}
)
_CURL = "curl --data-binary @photo.jpg URL"


class Refused(Exception):
  """A request that is refused.

  Attributes:
    status: of the answer.
    headers: of the answer.
  """

  def __init__(self, status: int, reason: str, **headers: str) -> None:
    super().__init__(reason)
    self.status = status
    self.headers = {k.replace("_", "-"): v for k, v in headers.items()}


@dataclasses.dataclass
class Uploads:
  """Receives images within limits.

  Attributes:
    max_bytes: of an image file.
    max_pixels: of an image.
    timeout: seconds for sending an image.
    capacity: images that may be received at the same time.
  """

  max_bytes: int
  max_pixels: int
  timeout: float
  capacity: int
  active: int = 0

  async def receive(self, request: fastapi.Request) -> bytearray:
    """Return the image file that a request sends.

    The server drops what a client sends after the answer.

    Raises:
      Refused: it is no image, too large, too slow, or there are too many.
      ClientDisconnect: the client has ended the connection.
    """
    try:
      with self._counted():
        self._check_headers(request)
        async with asyncio.timeout(self.timeout):
          data = await self._read(request)
    except TimeoutError:
      raise Refused(
        408, f"The image was not complete within {self.timeout:g} s."
      ) from None
    if not data:
      raise Refused(
        400, f"The body is empty (0 bytes); send the image file: {_CURL}."
      )
    await asyncio.to_thread(self._check_image, data)
    return data

  @contextlib.contextmanager
  def _counted(self) -> Iterator[None]:
    if self.active >= self.capacity:
      raise busy()
    self.active += 1
    try:
      yield
    finally:
      self.active -= 1

  def _check_headers(self, request: fastapi.Request) -> None:
    """Check all that is known before the image is received."""
    kind = request.headers.get("content-type", "").partition(";")[0].lower()
    if kind.startswith("multipart/"):
      raise Refused(
        415,
        "A form is not accepted; send the image file itself as the body: "
        f"{_CURL} (not -F).",
      )
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
      raise Refused(
        415, f"Content-Encoding {encoding[:40]} is not accepted; send the file."
      )
    # The server has checked that it is a number.
    if int(request.headers.get("content-length", 0)) > self.max_bytes:
      raise self._too_large()

  def _too_large(self) -> Refused:
    return Refused(413, f"The file has more than {self.max_bytes} bytes.")

  async def _read(self, request: fastapi.Request) -> bytearray:
    data = bytearray()
    async for part in request.stream():
      if len(data) + len(part) > self.max_bytes:
        raise self._too_large()
      data += part
    return data

  def _check_image(self, data: bytearray) -> None:
    """Check the size that the header of an image states; decode nothing."""
    with open_image(data) as image:
      width, height = image.size
      if width * height > self.max_pixels:
        raise Refused(
          413,
          f"The image has {width} x {height} pixels; at most "
          f"{self.max_pixels} are accepted.",
        )
      try:
        extra_formats.check_single(image)
      except Exception as error:
        raise Refused(422, f"The image is refused: {error}.") from None


def busy() -> Refused:
  """Return the refusal of a service that has too much to do."""
  return Refused(
    503, "Too many images are waiting; try again.", Retry_After="1"
  )


def open_image(data: bytearray) -> PIL.Image.Image:
  """Open an image file; only its header is read.

  Raises:
    Refused: it is no image of a known format.
  """
  try:
    return PIL.Image.open(io.BytesIO(data), formats=_FORMATS)
  except Exception as error:
    reason = str(error)
    if isinstance(error, PIL.UnidentifiedImageError):
      reason = "unknown format"
    raise unreadable(reason) from None


def unreadable(reason: str) -> Refused:
  """Return the refusal of a body that is no image, or a corrupt one."""
  return Refused(
    422,
    f"The body cannot be read as an image ({reason}). Send the bytes of an "
    f"image file: {_CURL}.",
  )
