"""Warnings about image sizes.

Small defects are lost where images are shrunk by a large factor, and tiles have
no effect where images are smaller.
"""

import contextlib
import contextvars
import logging
from collections.abc import Iterable, Iterator

from zsad_jax.datasets import preprocess
from zsad_jax.inference.tiling import Tiling

LARGEST_FACTOR = 4.0  # Without a warning.

_log = logging.getLogger(__name__)
_collected: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar(
  "collected", default=None
)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
  """Collect what there is to say about images, each time, in this thread.

  Yields:
    A list that receives the messages within the context, without the name of
    an image, each once; also those that the log has already.
  """
  found: list[str] = []
  token = _collected.set(found)
  try:
    yield found
  finally:
    _collected.reset(token)


def _tell(kind: str, name: str, message: str, *, log: bool) -> None:
  """Collect a message about an image, and log it."""
  found = _collected.get()
  if found is not None and message not in found:
    found.append(message)
  if log:
    _log.warning("%s: %s: %s", kind, name, message)


class ShrinkWarning:
  """Warns once, about the first image that is shrunk too much.

  Another message, also once, is about the first image that has a single tile.
  """

  def __init__(self) -> None:
    self._warned = False
    self._noted = False

  def check(
    self,
    name: str,
    image_size: tuple[int, int],
    *,
    side: int,
    patch_size: int,
    tiling: Tiling | None = None,
  ) -> bool:
    """Warn if an image, or its tiles, is shrunk by more than the factor.

    Args:
      name: of the image.
      image_size: its height and width in pixels.
      side: height and width that the model reads.
      patch_size: side of a patch of the model in its pixels.
      tiling: size of the tiles; None: the whole image is resized.

    Returns:
      Whether the warning was logged, now or before.
    """
    height, width = image_size
    longest = max(height, width)
    if tiling is not None:
      self._note_single_tile(name, image_size, tiling)
      longest = min(longest, tiling.size)
    factor = longest / side
    if factor <= LARGEST_FACTOR:
      return self._warned
    what = f"the image of {width} x {height} pixels is"
    tiles = f"overlapping tiles (--tile={2 * side})"
    if tiling is not None:
      what = f"tiles of {tiling.size} pixels are"
      tiles = f"smaller tiles (--tile={2 * side})"
    message = (
      f"{what} shrunk by a factor of {factor:.1f} to the {side} x {side} "
      "pixels of the model: defects smaller than about "
      f"{round(patch_size * factor)} pixels (one of its patches) may be lost; "
      f"{tiles} can find smaller ones: compare both on known defects."
    )
    _tell("warning", name, message, log=not self._warned)
    self._warned = True
    return True

  def _note_single_tile(self, name, image_size, tiling):
    """Log once that tiles are not smaller than an image."""
    height, width = image_size
    if max(height, width) > tiling.size:
      return
    message = (
      f"the image of {width} x {height} pixels is not larger than a tile "
      f"(--tile={tiling.size}): it is scored as a whole."
    )
    _tell("note", name, message, log=not self._noted)
    self._noted = True

  def check_files(
    self,
    paths: Iterable[str],
    *,
    side: int,
    patch_size: int,
    tiling: Tiling | None = None,
  ) -> None:
    """Check image files, of which only the sizes are read; see `check`."""
    for path in paths:
      try:
        size = preprocess.read_size(path)
      except ValueError:
        continue  # An error, or skipped, when it is read.
      if self.check(
        path, size, side=side, patch_size=patch_size, tiling=tiling
      ):
        return
