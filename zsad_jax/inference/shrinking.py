"""Warnings about image sizes.

Small defects are lost where images are shrunk by a large factor, and tiles have
no effect where images are smaller.
"""

import logging
from collections.abc import Iterable

from zsad_jax.datasets import preprocess
from zsad_jax.inference.tiling import Tiling

LARGEST_FACTOR = 4.0  # Without a warning.

_log = logging.getLogger(__name__)


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
    if factor <= LARGEST_FACTOR or self._warned:
      return self._warned
    self._warned = True
    what = f"the image of {width} x {height} pixels is"
    remedy = f"overlapping tiles (--tile={2 * side}) find smaller ones"
    if tiling is not None:
      what = f"tiles of {tiling.size} pixels are"
      remedy = f"smaller tiles (--tile={2 * side}) find smaller ones"
    _log.warning(
      "warning: %s: %s shrunk by a factor of %.1f to the %d x %d pixels of the "
      "model: defects smaller than about %d pixels (one of its patches) may be "
      "lost; %s.",
      name,
      what,
      factor,
      side,
      side,
      round(patch_size * factor),
      remedy,
    )
    return True

  def _note_single_tile(self, name, image_size, tiling):
    """Log once that tiles are not smaller than an image."""
    height, width = image_size
    if self._noted or max(height, width) > tiling.size:
      return
    self._noted = True
    _log.warning(
      "note: %s: the image of %d x %d pixels is not larger than a tile "
      "(--tile=%d): it is scored as a whole.",
      name,
      width,
      height,
      tiling.size,
    )

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
