"""Figures of images, ground truth and anomaly maps in columns.

All maps of a grid share one scale, so that rows can be compared: a map scaled
to its own extremes shows bright spots even in a normal image.
"""

import functools
import io
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from zsad_jax.runtime import files

# Night blue, plum, red, amber, straw: the hue changes with the lightness, which
# increases evenly (CIE L* of 7, 27, 49, 71 and 92), so that the order of values
# is visible in greyscale and to colour-blind readers.
_ANCHORS = np.array(
  [(14, 18, 48), (92, 38, 124), (208, 64, 84), (247, 152, 48), (255, 232, 120)]
)
_OPACITY = 0.7  # Of the highest value; the surface stays visible through it.
_OPACITY_POWER = 1.2  # Above 1: less opacity for low background values.
_BLOCK = 1 << 18  # Pixels that are blended at once, to save memory.

COLUMNS = ("image", "ground truth", "anomaly map", "overlay")
TILE = 224  # Side in pixels.
EXAMPLE_TILE = 112  # Side in pixels, in the HTML page.
_GAP, _MARGIN = 8, 20
_TITLE_SIZE, _TEXT_SIZE = 22, 15
_HEAD, _ROW = 84, TILE + 38  # Heights: above the first tile, of a row.
_BAR = (120, 12)  # Width and height of the colour scale.
_INK, _FAINT, _PAPER = (28, 30, 38), (108, 112, 124), (255, 255, 255)
_EMPTY = (236, 238, 242)  # Of a tile with nothing to show.


def heat_colours(
  values: Float[np.ndarray, "*n"],
) -> UInt8[np.ndarray, "*n 3"]:
  """Return colours from dark (0) to bright (1); values are clipped to it."""
  at = np.linspace(0.0, 1.0, len(_ANCHORS))
  channels = [np.interp(values, at, channel) for channel in _ANCHORS.T]
  return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def overlay(
  image: UInt8[np.ndarray, "h w 3"],
  anomaly_map: Float[np.ndarray, "h w"],
  *,
  low: float,
  high: float,
) -> UInt8[np.ndarray, "h w 3"]:
  """Blend the colours of a map into its image.

  Args:
    image: RGB.
    anomaly_map: higher = more anomalous, any scale.
    low: value at and below which the image is unchanged.
    high: value at and above which the colour is strongest.

  Returns:
    RGB of the size of the image.

  Raises:
    ValueError: `low` exceeds `high`.
  """
  blended = np.empty_like(image)
  step = max(1, _BLOCK // image.shape[1])
  for top in range(0, len(image), step):
    rows = slice(top, top + step)
    scaled = _scale(anomaly_map[rows], low, high)
    opacity = _OPACITY * scaled[..., None] ** _OPACITY_POWER
    blend = (1.0 - opacity) * image[rows] + opacity * heat_colours(scaled)
    blended[rows] = np.rint(blend)
  return blended


def example_strip(
  image: UInt8[np.ndarray, "h w 3"],
  gt_mask: Shaped[np.ndarray, "h w"] | None,
  anomaly_map: Float[np.ndarray, "h w"],
  *,
  low: float,
  high: float,
) -> bytes:
  """Return image, mask and overlay in one row, as a JPEG file.

  Args:
    image: RGB.
    gt_mask: nonzero = anomalous; None where unknown, which is drawn grey.
    anomaly_map: higher = more anomalous, any scale.
    low: lower end of the colour scale; see `overlay`.
    high: upper end of the colour scale.
  """
  size = (EXAMPLE_TILE, EXAMPLE_TILE)
  mask = (
    np.full_like(image, 128)
    if gt_mask is None
    else np.repeat(255 * gt_mask.astype(np.uint8)[..., None], 3, axis=2)
  )
  blend = overlay(image, anomaly_map, low=low, high=high)
  strip = Image.new("RGB", (3 * EXAMPLE_TILE, EXAMPLE_TILE))
  for i, tile in enumerate((image, mask, blend)):
    strip.paste(Image.fromarray(tile).resize(size), (i * EXAMPLE_TILE, 0))
  data = io.BytesIO()
  strip.save(data, "JPEG", quality=82)
  return data.getvalue()


def comparison_grid(
  images: Sequence[UInt8[np.ndarray, "h w 3"]],
  gt_masks: Sequence[Shaped[np.ndarray, "h w"] | None] | None,
  anomaly_maps: Sequence[Shaped[np.ndarray, "h w"]],
  captions: Sequence[str],
  *,
  title: str,
) -> Image.Image:
  """Draw a row per sample: image, ground truth, anomaly map, overlay.

  Maps and overlays are scaled from the lowest to the highest finite value of
  all the maps; the scale is drawn above them.

  Args:
    images: RGB, drawn as squares of `TILE` pixels whatever their size.
    gt_masks: nonzero = anomalous, drawn white on black; None where unknown.
    anomaly_maps: higher = more anomalous, any scale.
    captions: a line per sample, such as "scratch  score 0.83".
    title: of the figure.

  Raises:
    ValueError: there is no sample, the numbers of images, masks, maps and
      captions differ, or a map contains NaN.
  """
  if gt_masks is None:
    gt_masks = [None] * len(images)
  _check_counts(images, gt_masks, anomaly_maps, captions)
  low, high = _limits(anomaly_maps)
  width = _left(len(COLUMNS)) - _GAP + _MARGIN
  height = _HEAD + len(images) * _ROW + _MARGIN
  canvas = Image.new("RGB", (width, height), _PAPER)
  draw = ImageDraw.Draw(canvas)
  _draw_head(canvas, draw, title, low, high)
  rows = zip(images, gt_masks, anomaly_maps, captions)
  for i, (image, mask, one_map, caption) in enumerate(rows):
    top = _HEAD + i * _ROW
    for column, tile in enumerate(_tiles(image, mask, one_map, low, high)):
      canvas.paste(tile, (_left(column), top))
    line = _shorten(caption, load_font(_TEXT_SIZE), width - 2 * _MARGIN)
    draw.text(
      (_MARGIN, top + TILE + 15), line, _INK, load_font(_TEXT_SIZE), anchor="lm"
    )
  return canvas


def save_png(path: str | os.PathLike[str], image: Image.Image) -> None:
  """Write a PNG file, which appears complete or not at all.

  Raises:
    OSError: the file cannot be written.
  """
  data = io.BytesIO()
  # More compression of noisy photographs takes seconds and saves little.
  image.save(data, format="PNG", compress_level=3)
  files.write_bytes(path, data.getvalue())


def _check_counts(images, gt_masks, anomaly_maps, captions):
  counts = [len(x) for x in (images, gt_masks, anomaly_maps, captions)]
  if not counts[0] or len(set(counts)) > 1:
    raise ValueError(
      "A grid needs as many masks, maps and captions as images, at least "
      "one; got {1} masks, {2} maps, {3} captions, {0} images.".format(*counts)
    )


def _limits(anomaly_maps):
  """Return lowest and highest finite value of all maps; (0, 0) if none."""
  low, high = np.inf, -np.inf
  for i, anomaly_map in enumerate(anomaly_maps):
    if np.isnan(anomaly_map).any():
      raise ValueError(f"The anomaly map of image {i} contains NaN.")
    finite = anomaly_map[np.isfinite(anomaly_map)]
    if finite.size:
      low, high = min(low, finite.min()), max(high, finite.max())
  return (float(low), float(high)) if low <= high else (0.0, 0.0)


def _scale(anomaly_map, low, high):
  """Scale [low, high] to [0, 1]; a constant map becomes 0."""
  if low > high:
    raise ValueError(f"low must not exceed high, got {low} and {high}.")
  clipped = np.clip(anomaly_map.astype(np.float64), low, high)
  return (clipped - low) / (high - low or 1.0)


def _tiles(image, gt_mask, anomaly_map, low, high):
  """Return one tile per column."""
  tile = _resize(Image.fromarray(image))
  scaled = Image.fromarray(_scale(anomaly_map, low, high).astype(np.float32))
  heat = np.clip(np.asarray(_resize(scaled)), 0.0, 1.0)
  return (
    tile,
    _no_mask() if gt_mask is None else _black_and_white(gt_mask),
    Image.fromarray(heat_colours(heat)),
    Image.fromarray(overlay(np.asarray(tile), heat, low=0.0, high=1.0)),
  )


def _resize(image, resample=Image.Resampling.BILINEAR):
  return image.resize((TILE, TILE), resample)


def _black_and_white(gt_mask):
  """Return a white-on-black tile.

  The square root brightens regions thinner than a pixel of the tile.
  """
  mask = Image.fromarray(np.where(gt_mask, 255, 0).astype(np.uint8))
  share = np.asarray(_resize(mask, Image.Resampling.BOX)) / 255
  return Image.fromarray(np.rint(255 * np.sqrt(share)).astype(np.uint8))


def _no_mask():
  tile = Image.new("RGB", (TILE, TILE), _EMPTY)
  ImageDraw.Draw(tile).text(
    (TILE // 2, TILE // 2),
    "no mask",
    _FAINT,
    load_font(_TEXT_SIZE),
    anchor="mm",
  )
  return tile


def _draw_head(canvas, draw, title, low, high):
  """Draw title and colour scale in one line, names of the columns below."""
  font, small = load_font(_TITLE_SIZE), load_font(_TEXT_SIZE)
  middle, right = _MARGIN + 10, canvas.width - _MARGIN
  low_text, high_text = scale_labels(low, high)
  bar = right - round(small.getlength(high_text)) - _GAP - _BAR[0]
  draw.text((right, middle), high_text, _INK, small, anchor="rm")
  ramp = heat_colours(np.linspace(0.0, 1.0, _BAR[0]))
  canvas.paste(
    Image.fromarray(np.tile(ramp, (_BAR[1], 1, 1))),
    (bar, middle - _BAR[1] // 2),
  )
  label = f"scale of all rows   {low_text}"
  draw.text((bar - _GAP, middle), label, _INK, small, anchor="rm")
  space = bar - _MARGIN - small.getlength(label) - 4 * _GAP
  draw.text(
    (_MARGIN, middle), _shorten(title, font, space), _INK, font, anchor="lm"
  )
  for column, name in enumerate(COLUMNS):
    draw.text((_left(column), _HEAD - _GAP), name, _FAINT, small, anchor="ls")


def scale_labels(low: float, high: float) -> tuple[str, str]:
  """Format both ends so that their distance has two significant digits."""
  span = high - low or 1.0
  decimals = max(0, 1 - math.floor(math.log10(span)))
  return f"{low:z.{decimals}f}", f"{high:z.{decimals}f}"


def _left(column):
  return _MARGIN + column * (TILE + _GAP)


@functools.cache
def load_font(size: int) -> Any:
  """Return the font of all figures, which has Latin characters only.

  Args:
    size: height of a line in pixels.
  """
  return ImageFont.load_default(size=size)


def _shorten(text, font, width):
  """Cut a text that is too wide and append three dots."""
  if font.getlength(text) <= width:
    return text
  while text and font.getlength(text + "...") > width:
    text = text[:-1]
  return text.rstrip() + "..."
