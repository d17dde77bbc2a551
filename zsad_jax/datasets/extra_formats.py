"""Image formats that need an optional package: HEIC, AVIF and DICOM."""

import functools
import importlib.util
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, features

_AVIF, _HEIC, _DICOM = (".avif",), (".heic", ".heif"), (".dcm", ".dicom")
_SEVERAL = ("TIFF", "GIF", "PNG", "WEBP", "AVIF")
_STACKS = (".gif", ".apng", ".mp4", ".avi", ".mov")


def suffixes() -> frozenset[str]:
  """Return the suffixes that can be read with the packages installed here."""
  return frozenset(
    (
      *(_AVIF if features.check("avif") else ()),
      *(_HEIC if _installed("pillow_heif") else ()),
      *(_DICOM if _installed("pydicom") else ()),
    )
  )


def hint(kinds: Iterable[str]) -> str:
  """Return what reads files of these suffixes, or "" if nothing does.

  Args:
    kinds: suffixes in lower case.
  """
  kinds, readable = frozenset(kinds), suffixes()
  needed = [
    f"pip install 'zsad_jax[{extra}]' for {found[0]}"
    for extra, names in (("heic", _HEIC), ("dicom", _DICOM))
    if (found := sorted(kinds & {*names} - readable))
  ]
  if kinds & {*_AVIF} - readable:
    needed.append("this Pillow does not read .avif")
  if found := sorted(kinds & {*_STACKS}):
    needed.append(f"save single images of {found[0]} as .png")
  return "; ".join(needed)


def open_file(file: Any) -> Image.Image:
  """Open an image file, of these formats as well; `PIL.Image.open`.

  Args:
    file: a path, or a binary file.

  Raises:
    ValueError, OSError: it cannot be read.
  """
  name = file.lower() if isinstance(file, str) else ""
  if name.endswith(_HEIC):
    _register_heic()
  if name.endswith(_DICOM):
    return _open_dicom(file)
  return Image.open(file)


def check_single(file: Image.Image) -> None:
  """Check that an opened file holds one image, not a stack or an animation.

  Pages of other sizes, such as reduced copies in a TIFF file, and the previews
  of cameras are no further images.

  Raises:
    ValueError: it holds several.
  """
  count = getattr(file, "n_frames", 1)
  if count == 1 or file.format not in _SEVERAL:
    return
  size = file.size
  file.seek(1)
  second = file.size
  file.seek(0)
  if second == size:
    raise ValueError(f"it holds {count} images; save each as a file")


@functools.cache
def _installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


@functools.cache
def _register_heic() -> None:
  if not _installed("pillow_heif"):
    raise ValueError("HEIC needs pip install 'zsad_jax[heic]'")
  # Not at the top: an optional package.
  import pillow_heif  # pyright: ignore[reportMissingImports]

  pillow_heif.register_heif_opener()


def _open_dicom(path: str) -> Image.Image:
  """Open a DICOM image as a viewer shows it: with the window of the file.

  Without a window the range of the stored bits is used, so that equal values
  are equally bright in all files of a device.
  """
  if not _installed("pydicom"):
    raise ValueError("DICOM needs pip install 'zsad_jax[dicom]'")
  # Not at the top: an optional package.
  import pydicom  # pyright: ignore[reportMissingImports]
  from pydicom import pixels  # pyright: ignore[reportMissingImports]

  data = pydicom.dcmread(path)
  if int(data.get("NumberOfFrames") or 1) > 1:
    raise ValueError("it has several frames; save each as an image")
  if data.SamplesPerPixel == 3:
    colour = pixels.pixel_array(data)  # Converts YBR to RGB.
    if colour.dtype != np.uint8:
      raise ValueError("colours of more than 8 bits are not supported")
    return Image.fromarray(colour)
  return Image.fromarray(_grey(data, pixels))


def _grey(data: Any, pixels: Any) -> np.ndarray:
  """Return the grey values of a DICOM image as uint8."""
  kind = data.PhotometricInterpretation
  if kind not in ("MONOCHROME1", "MONOCHROME2"):
    raise ValueError(f"the photometric interpretation {kind} is not supported")
  modality = lambda x: pixels.apply_modality_lut(np.asarray(x), data)
  values = np.asarray(modality(pixels.pixel_array(data)), np.float64)
  bits, signed = data.BitsStored, data.PixelRepresentation
  least = -(1 << (bits - 1)) if signed else 0
  ends = modality(np.array([least, least + (1 << bits) - 1]))
  low, high = float(min(ends)), float(max(ends))
  if "WindowWidth" in data:
    first = lambda value: float(np.atleast_1d(np.asarray(value, float))[0])
    width, center = first(data.WindowWidth), first(data.WindowCenter)
    # DICOM PS3.3, C.11.2.1.2.1: the linear function.
    low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
  elif "VOILUTSequence" in data:
    raise ValueError("a table of grey values (VOI LUT) is not supported")
  scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
  if kind == "MONOCHROME1":  # The least value is white.
    scaled = 1 - scaled
  return np.round(255 * scaled).astype(np.uint8)
