"""Preview of a synthesized data set."""

import collections
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_PAIRS = 3  # Shown of each kind.
_TILE, _LINE = 160, 24  # Pixels.


def draw(written: Sequence[tuple[str, str, str]]) -> Image.Image:
  """Draw some images of each kind of anomaly, each next to its mask.

  Args:
    written: kind, image and mask of every anomalous image, as
      `synthesis.synthesize` returns them.
  """
  chosen: dict[str, list[str]] = collections.defaultdict(list)
  for kind, *paths in written:
    if len(chosen[kind]) < 2 * _PAIRS:
      chosen[kind] += paths
  canvas = Image.new(
    "RGB", (2 * _PAIRS * _TILE, len(chosen) * (_TILE + _LINE)), "white"
  )
  pen = ImageDraw.Draw(canvas)
  for row, (kind, paths) in enumerate(chosen.items()):
    top = row * (_TILE + _LINE)
    pen.text((4, top + 2), kind, "black", ImageFont.load_default(_LINE - 6))
    for column, path in enumerate(paths):
      tile = Image.open(path).convert("RGB").resize((_TILE, _TILE))
      canvas.paste(tile, (column * _TILE, top + _LINE))
  return canvas
