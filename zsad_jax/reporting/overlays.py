"""Overlays of `predict`: image, anomaly map, outlines of regions, caption.

The caption is below the image and covers nothing of it. It has the label, the
score and its threshold, and the color scale of the map.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from zsad_jax.reporting import figures
from zsad_jax.runs import detector as detector_lib

SIDE = 1600  # Longest side of the image in pixels, unless another is given.

_OUTLINE = (0, 229, 255)  # Cyan, which is no color of the map.
_OUTLINE_SHARE = 800  # The image's longest side in widths of an outline.
_SMALLEST_TEXT, _TEXT_SHARE = 13, 70  # Pixels; the width in heights of a line.
_PAPER, _INK, _FAINT = (255, 255, 255), (28, 30, 38), (92, 96, 108)
_LABELS = {"normal": (22, 110, 60), "anomalous": (186, 20, 40)}
_BAR = 9  # Length of the color scale in heights of a line.


class _Item(NamedTuple):
  """Part of the caption.

  Attributes:
    width: in pixels.
    height: in pixels.
    draw: draws it; receives a canvas, left and top.
  """

  width: int
  height: int
  draw: Callable[[Image.Image, int, int], None]


def draw(
  image: Image.Image, detection: detector_lib.Detection, *, side: int = SIDE
) -> Image.Image:
  """Draw the anomaly map over an image, with outlines and a caption.

  Args:
    image: RGB; of the size of the detection.
    detection: its result. Regions are outlined where there is a pixel
      threshold.
    side: longest side of the drawn image in pixels; 0 for that of the image. A
      smaller image is not enlarged.

  Returns:
    The image in the upper left corner and the caption below; it is wider than
    the image where that is too narrow for the caption.
  """
  small = bounded(image, side)
  limits = detection.limits
  blended = figures.overlay(
    np.asarray(small),
    _resized_map(detection.anomaly_map, small.size),
    low=limits.map_low,
    high=_highest(limits),
  )
  if limits.pixel is not None:
    mask = _resized_mask(detection.mask, small.size)
    blended[_outline(mask)] = _OUTLINE
  return _captioned(Image.fromarray(blended), detection)


def _highest(limits):
  """Return the value of the highest color, at least the pixel threshold.

  Only anomalous pixels have the highest color: the limits are those of other
  images.
  """
  return max(limits.map_high, limits.pixel or 0.0)


def bounded(image: Image.Image, side: int) -> Image.Image:
  """Return an image whose longest side has at most `side` pixels.

  Args:
    image: the image; it is not enlarged.
    side: in pixels; 0 for that of the image.
  """
  factor = side / max(image.size)
  if not side or factor >= 1:
    return image
  width, height = (max(1, round(length * factor)) for length in image.size)
  return image.resize((width, height), Image.Resampling.LANCZOS)


def _resized_map(anomaly_map, size):
  if anomaly_map.shape == size[::-1]:
    return anomaly_map
  whole = Image.fromarray(anomaly_map)
  return np.asarray(whole.resize(size, Image.Resampling.BILINEAR))


def _resized_mask(mask, size) -> Bool[np.ndarray, "h w"]:
  """Return a smaller mask in which no region is lost."""
  if mask.shape == size[::-1]:
    return mask
  height, width = mask.shape
  found = np.zeros(size[::-1], bool)
  columns = np.arange(width) * size[0] // width
  for row, pixels in enumerate(mask):
    found[row * size[1] // height, columns[pixels]] = True
  return found


def _outline(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
  """Return the pixels around the regions, which stay visible themselves."""
  width = max(1, round(max(mask.shape) / _OUTLINE_SHARE))
  around = ndimage.maximum_filter(mask, 2 * width + 1, mode="constant")
  return around & ~mask


def _captioned(image: Image.Image, detection: detector_lib.Detection):
  """Return the image with its caption below."""
  size = max(_SMALLEST_TEXT, image.width // _TEXT_SHARE)
  font, gap = figures.load_font(size), size
  items = _items(detection, font, size)
  width = max(image.width, 2 * gap + max(item.width for item in items))
  rows = _wrapped(items, width - 2 * gap, gap)
  heights = [max(item.height for item in row) for row in rows]
  height = sum(heights) + gap * (len(rows) + 1) // 2 + gap // 2
  canvas = Image.new("RGB", (width, image.height + height), _PAPER)
  canvas.paste(image, (0, 0))
  top = image.height + gap // 2
  for row, row_height in zip(rows, heights):
    left = gap
    for item in row:
      if item is items[-1] and len(row) > 1:  # The color scale, to the right.
        left = width - gap - item.width
      item.draw(canvas, left, top)
      left += item.width + gap
    top += row_height + gap // 2
  return canvas


def _wrapped(items, width, gap) -> list[list[_Item]]:
  """Return the items in rows that are not wider than `width`."""
  rows, used = [[]], 0
  for item in items:
    if rows[-1] and used + item.width > width:
      rows.append([])
      used = 0
    rows[-1].append(item)
    used += item.width + gap
  return rows


def _items(detection, font, size) -> list[_Item]:
  """Return the parts of the caption; the last one is the color scale."""
  limits = detection.limits
  texts = [
    (detection.label, _LABELS[detection.label]),
    (f"score {detection.score:.4g}", _INK),
    (f"threshold {detection.threshold:.4g}", _FAINT),
  ]
  return [
    *(_text(text, color, font, size) for text, color in texts),
    _scale(limits.map_low, _highest(limits), limits.pixel, font, size),
  ]


def _text(text, color, font, size) -> _Item:
  height = round(1.2 * size)

  def show(canvas, left, top):
    ImageDraw.Draw(canvas).text((left, top), text, color, font, anchor="la")

  return _Item(round(font.getlength(text)) + 1, height, show)


def _scale(low: float, high: float, pixel: float | None, font: Any, size: int):
  """Return the color scale with its limits, and the pixel threshold below."""
  low_text, high_text = figures.scale_labels(low, high)
  before, after = (round(font.getlength(x)) for x in (low_text, high_text))
  length, space, line = _BAR * size, size // 3, round(1.2 * size)
  note = None if pixel is None else f"outlined from {pixel:.3g}"
  inner = before + length + after + 2 * space
  note_width = 0 if note is None else round(font.getlength(note))
  width = max(inner, note_width)

  def show(canvas, left, top):
    pen = ImageDraw.Draw(canvas)
    bar = left + before + space
    pen.text((left, top), low_text, _FAINT, font, anchor="la")
    pen.text((bar + length + space, top), high_text, _FAINT, font, anchor="la")
    canvas.paste(_ramp(length, round(0.8 * size)), (bar, top + size // 8))
    if note is None or pixel is None:
      return
    share = (pixel - low) / (high - low or 1.0)
    at = bar + round(min(max(share, 0.0), 1.0) * (length - 1))
    tick = max(1, size // 10)
    box = (at - tick // 2, top, at - tick // 2 + tick - 1, top + line)
    pen.rectangle(box, fill=_OUTLINE, outline=None)
    start = min(max(at - note_width // 2, left), left + width - note_width)
    pen.text((start, top + line), note, _INK, font, anchor="la")

  return _Item(width, line * (1 + (note is not None)), show)


def _ramp(length: int, height: int) -> Image.Image:
  """Return the colors of the map from low to high."""
  ramp: UInt8[np.ndarray, "n 3"] = figures.heat_colours(
    np.linspace(0.0, 1.0, length)
  )
  return Image.fromarray(np.tile(ramp, (height, 1, 1)))
