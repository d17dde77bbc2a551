"""Warning about images that are shrunk so much that small defects are lost."""

import logging
from collections.abc import Iterable

from zsad_jax.datasets import preprocess
from zsad_jax.inference.tiling import Tiling

LARGEST_FACTOR = 4.0  # Without a warning.

_log = logging.getLogger(__name__)


class ShrinkWarning:
  """Warns once, about the first image that is shrunk too much."""

  def __init__(self) -> None:
    self._warned = False

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
