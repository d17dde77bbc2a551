"""Reads masks by value: a pixel is anomalous where it is not background.

The only place where the content of a file becomes a mask. The background has
value 0: black, the index 0 of a palette whatever its colour, or transparency.
What contradicts itself is refused; what is likely to be a mistake is returned
as a `Finding` and reported by `data verify` and by `evaluate`.
"""

import enum
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped
from PIL import Image, ImageOps

OPTIONS = ("compat", "robust", "resize")
HELP = (
  'Reading of masks: "compat" (every value but 0 is anomalous, as in the '
  'papers\' code), "robust" (in masks of graded values, such as JPEG files, '
  'those above one half), "resize" (masks of another size are resized to their '
  'images), or "robust,resize".'
)
ORIENTATION = 0x0112  # EXIF tag.

_HALF = 127  # Of 8 bits; above the ringing of JPEG files.
_LARGEST_CODE = 63  # Numbers of kinds of defects are small.
_VOID = 255  # "Ignore" in PASCAL VOC, Cityscapes and others.
_COLOURED = 64  # Difference of channels above that of compressed grey.
_LOSSY = ("JPEG", "MPO")
_SAME = {"La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}


class Ambiguous(ValueError):
  """The content of a mask has no single meaning."""


class Finding(enum.IntFlag):
  """Properties of a mask that are likely to be mistakes."""

  NONE = 0
  EMPTY = 1  # No pixel is anomalous, but the image is.
  GRADED = 2  # Values between background and maximum: JPEG, smooth borders.
  INVERTED = 4  # Most of the image and of its border is anomalous.
  VOID = 8  # The value 255 together with small numbers.
  TURNED = 16  # EXIF turned the image, but not the mask, or the reverse.
  RESIZED = 32  # Resized to its image.
  PALETTE = 128  # Index 0 is shown in a colour, another index in black.
  VANISHES = 64  # Not empty, but empty at the size that is used.
  OF_NORMAL = 256  # Some pixel is anomalous, but the image is normal.


class Option(NamedTuple):
  """Ways to read masks; see `parse`."""

  robust: bool = False
  resize: bool = False


class Mask(NamedTuple):
  """A mask in the size of its file.

  Attributes:
    image: mode "L", 0 or 255.
    findings: GRADED, VOID and PALETTE only.
  """

  image: Image.Image
  findings: Finding


def parse(text: str) -> Option:
  """Return the ways to read masks that an option names.

  Args:
    text: "compat" (every value but 0 is anomalous), "robust" (in masks of
      graded values, those above one half), "resize" (to the image's size, by
      the nearest pixel) or "robust,resize".

  Raises:
    ValueError: it names something else.
  """
  names = [name.strip() for name in text.split(",")]
  exclusive = "compat" in names and len(names) > 1
  if exclusive or not set(names) <= set(OPTIONS):
    raise ValueError(
      f"config.masks is one of {', '.join(OPTIONS)}, or robust,resize; got "
      f"{text!r}."
    )
  return Option("robust" in names, "resize" in names)


def read(
  file: Image.Image,
  *,
  box: tuple[int, int, int, int] | None = None,
  robust: bool = False,
) -> Mask:
  """Return the mask in an image, turned by its EXIF orientation.

  A pixel is anomalous where its value, before any conversion, is not 0: in a
  coloured image where any channel is not 0, in a palette where the index is
  not 0. Of JPEG files the luminance is used. Transparency decides where the
  colours are constant.

  Args:
    file: the opened file, not decoded yet.
    box: the part to return, beyond which the image is background.
    robust: in masks of graded values, count those above one half.

  Raises:
    Ambiguous: it has several pages, NaN, 16 bits in colours, or transparency
      that contradicts the colours.
  """
  _check_file(file)
  lossy = file.format in _LOSSY or _is_lossy_webp(file)
  values, codes = _values(ImageOps.exif_transpose(file), lossy)
  found = _distinct(values)
  findings, limit = Finding.NONE, 0.0
  if file.mode == "P" and _background_is_black(file, found):
    findings |= Finding.PALETTE
  if not lossy and _has_void(found):
    findings |= Finding.VOID
  elif len(found) > 2 and not codes and _is_graded(found, lossy):
    limit = _half(found[-1]) if robust else 0.0
    findings |= Finding.NONE if robust else Finding.GRADED
  anomalous = values > limit if limit else values != 0
  mask = Image.fromarray(np.where(anomalous, 255, 0).astype(np.uint8))
  return Mask(mask if box is None else mask.crop(box), findings)


def judge(mask: Image.Image) -> Finding:
  """Return EMPTY or INVERTED for the mask, 0 and 255, of an anomalous image."""
  values = np.asarray(mask) > 0
  if not values.any():
    return Finding.EMPTY
  border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
  inverted = values.mean() > 0.5 and border.mean() > 0.5
  return Finding.INVERTED if inverted else Finding.NONE


def orientation(file: Image.Image) -> int:
  """Return the EXIF orientation of a file that is not decoded yet, 1 to 8."""
  value = file.getexif().get(ORIENTATION, 1)
  return value if value in range(1, 9) else 1


def fit(
  mask: Image.Image,
  size: tuple[int, int],
  *,
  orientations: tuple[int, int],
  image_name: str,
  resize: bool = False,
) -> tuple[Image.Image, Finding]:
  """Return a mask of the image's size, and what is suspicious about it.

  Args:
    mask: 0 and 255.
    size: width and height of the image, turned.
    orientations: EXIF orientations of the image and of the mask.
    image_name: of the image in messages.
    resize: resize a mask of another size by the nearest pixel.

  Raises:
    Ambiguous: the sizes differ; they must agree or, with `resize`, not be
      those of a mask that lies across.
  """
  differ = orientations[0] != orientations[1]
  quarter = (orientations[0] > 4) != (orientations[1] > 4)
  width, height = size
  if mask.size == size:
    # A quarter turn of another shape than a square would change the size.
    unclear = differ and (not quarter or width == height)
    return mask, Finding.TURNED if unclear else Finding.NONE
  across = mask.size == (height, width)
  if resize and not across:
    return mask.resize(size, Image.Resampling.NEAREST), Finding.RESIZED
  turned, advice = "", "expected equal sizes"
  if orientations[0] > 4:
    turned = (
      f" (stored as {height} x {width}, turned by its EXIF orientation "
      f"{orientations[0]})"
    )
  if across:
    advice += ": turn the mask"
    advice += ", or save the image turned and without it" if turned else ""
  elif not resize:
    advice += "; --masks=resize resizes masks to their images"
  raise Ambiguous(
    f"the mask is {mask.width} x {mask.height} pixels, but its image "
    f"{image_name} is {width} x {height}{turned}; {advice}."
  )


def _check_file(file: Image.Image) -> None:
  """Refuse files of which Pillow would return a part only."""
  pages = getattr(file, "n_frames", 1)
  if pages > 1:
    raise Ambiguous(
      f"a mask of {pages} pages; expected one. Save the page of the mask, or "
      "the union of all, as a file with one page."
    )
  # Such as ("RGB;16B", 0, 1) or "RGBA;16B", which Pillow reduces to 8 bits.
  for tile in getattr(file, "tile", ()):
    raw = tile[3] if isinstance(tile[3], str) else (tile[3] or ("",))[0]
    if ";16" in str(raw) and file.mode in ("RGB", "RGBA", "LA", "CMYK"):
      if str(raw).startswith("BGR"):  # Of all channels.
        continue
      raise Ambiguous(
        "a mask with 16 bits in each of several channels, of which small "
        "values would be lost; save it with one channel, or with 8 bits."
      )


def _is_lossy_webp(file: Image.Image) -> bool:
  """Return whether a WebP file, not decoded yet, is compressed with loss."""
  if file.format != "WEBP":
    return False
  stream = getattr(file, "fp", None)
  if stream is None:
    return True
  position = stream.tell()
  stream.seek(0)
  content = stream.read()
  stream.seek(position)
  return b"VP8L" not in content  # The kind of its only chunk of pixels.


def _values(
  image: Image.Image, lossy: bool
) -> tuple[Shaped[np.ndarray, "h w"], bool]:
  """Return values whose background is 0, and whether they are only codes."""
  if image.mode in _SAME:
    image = image.convert(_SAME[image.mode])
  elif image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
    image = image.convert("RGB")
  pixels = np.asarray(image)
  alpha = _alpha(image, pixels)
  if image.mode in ("LA", "RGBA", "PA"):
    pixels = pixels[..., :-1]
  codes = image.mode in ("P", "PA")
  if pixels.ndim == 2:
    values = pixels
  else:
    values, coloured = _of_channels(pixels, lossy)
    codes = codes or coloured
  if values.dtype.kind == "f" and not np.isfinite(values).all():
    raise Ambiguous("a mask with NaN or infinite values; replace them by 0.")
  if alpha is None or (alpha == alpha.flat[0]).all():
    return values, codes
  one_colour = (pixels == pixels[0, 0]).all()
  if one_colour and not alpha.all():
    return alpha, False
  if not one_colour and (alpha.all() or np.array_equal(values != 0, alpha > 0)):
    return values, codes
  raise Ambiguous(
    "the transparency of the mask marks other pixels than its colours (every "
    "colour but black, every index but 0); save it without transparency, "
    "white on black."
  )


def _alpha(
  image: Image.Image, pixels: np.ndarray
) -> Shaped[np.ndarray, "h w"] | None:
  """Return the opacity, 0 where a pixel is transparent; None: no such."""
  if image.mode in ("LA", "RGBA", "PA"):
    return pixels[..., -1]
  key = image.info.get("transparency")
  if key is None:
    return None
  if isinstance(key, bytes):  # One value for each of the first indices.
    table = np.full(256, 255, np.uint8)
    table[: len(key)] = np.frombuffer(key, np.uint8)[:256]
    return table[pixels]
  differs = pixels != np.asarray(key)
  if differs.ndim == 3:
    differs = differs.any(axis=2)
  return np.where(differs, 255, 0).astype(np.uint8)


def _of_channels(
  pixels: Shaped[np.ndarray, "h w c"], lossy: bool
) -> tuple[Shaped[np.ndarray, "h w"], bool]:
  """Return one value per pixel, 0 for black; and whether colours are codes."""
  channels = [pixels[..., i] for i in range(pixels.shape[2])]
  if all(np.array_equal(channels[0], other) for other in channels[1:]):
    return np.ascontiguousarray(channels[0]), False
  high = functools.reduce(np.maximum, channels)
  if not lossy:
    return high, True
  luminance = np.asarray(Image.fromarray(pixels).convert("L"))
  low = functools.reduce(np.minimum, channels)
  strong = high - low > _COLOURED
  return np.where(strong, np.maximum(luminance, high), luminance), False


def _distinct(
  values: Shaped[np.ndarray, "h w"],
) -> Shaped[np.ndarray, " n"]:
  """Return the values that occur, sorted."""
  if values.dtype != np.uint8:
    return np.unique(values)
  counts = Image.fromarray(values).histogram()  # Faster than NumPy's.
  return np.flatnonzero(counts).astype(np.uint8)


def _has_void(found: Shaped[np.ndarray, " n"]) -> bool:
  """Return whether 255 is found with small numbers only, as in VOC."""
  if found.dtype != np.uint8 or found[-1] != _VOID:
    return False
  others = found[(found > 0) & (found < _VOID)]
  return bool(others.size and others[-1] <= _LARGEST_CODE)


def _background_is_black(
  image: Image.Image, found: Shaped[np.ndarray, " n"]
) -> bool:
  """Return whether an index other than 0, but not 0, is shown in black."""
  palette = image.getpalette() or []
  shown = {int(i): sum(palette[3 * i : 3 * i + 3]) for i in map(int, found)}
  return shown.get(0, 0) > 0 and 0 in shown.values()


def _is_graded(found: Shaped[np.ndarray, " n"], lossy: bool) -> bool:
  """Return whether values between the extremes are degrees, not numbers."""
  if lossy:
    return True
  if found[0] < 0:
    return False
  if found.dtype.kind == "f":
    return bool((found != np.round(found)).any())
  return bool(found[-1] > (_HALF if found.dtype == np.uint8 else 255))


def _half(high: np.number) -> float:
  """Return one half of the largest value, of 8 bits for bright masks."""
  return float(_HALF if _HALF < high <= 255 else high / 2)


def marked(mask: Image.Image) -> Bool[np.ndarray, "h w"]:
  """Return a mask as an array, True where it is anomalous."""
  return np.asarray(mask) > 0
