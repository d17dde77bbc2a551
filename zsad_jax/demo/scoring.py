"""Uploaded images of the page, scored one after the other."""

import dataclasses
import hashlib
import logging
import os
import pathlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import PIL.Image

from zsad_jax.datasets import preprocess
from zsad_jax.reporting import overlays
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runs.detector import Detection

_log = logging.getLogger(__name__)


class Refused(ValueError):
  """Uploaded files cannot be scored; the message is shown in the page."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of what is uploaded.

  Attributes:
    max_bytes: of an image file.
    max_pixels: of an image.
    max_images: scored at once; also of references.
  """

  max_bytes: int
  max_pixels: int
  max_images: int


@dataclasses.dataclass(frozen=True, eq=False)
class Scored:
  """An image and its result.

  Attributes:
    name: of the file, distinct among the images that are scored together.
    image: RGB, in the size that it is drawn.
    detection: its result, with the thresholds of the detector.
  """

  name: str
  image: PIL.Image.Image
  detection: Detection


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """Results of images that were scored together.

  Attributes:
    scored: images with a result.
    messages: a line for each of the others.
    limits: thresholds of the detector; None where nothing was scored.
    num_references: references that the images were compared with.
  """

  scored: tuple[Scored, ...] = ()
  messages: tuple[str, ...] = ()
  limits: threshold_lib.Threshold | None = None
  num_references: int = 0


class Scorer:
  """Scores uploaded files with a detector, one user after the other.

  Args:
    detector: a `Detector`.
    limits: of uploads.
    side: longest side in pixels of drawn images; 0: as the image.
    num_references: references that the detector has already.
    accepts_references: whether users may give others. Those of a calibration
      cannot be changed: its thresholds would not fit.
  """

  def __init__(
    self,
    detector: Any,
    limits: Limits,
    *,
    side: int = overlays.SIDE,
    num_references: int = 0,
    accepts_references: bool = True,
  ):
    self.limits = limits
    self.num_references = num_references
    self.accepts_references = accepts_references
    self._detector = detector
    self._side = side
    self._lock = threading.Lock()
    self._few_shot: tuple[tuple[str, ...], Any] = ((), None)

  def score(
    self,
    paths: Sequence[str],
    references: Sequence[str] = (),
    progress: Callable[[int, int], object] = lambda done, total: None,
  ) -> Batch:
    """Score uploaded files.

    Args:
      paths: the images.
      references: normal images to compare with.
      progress: receives the number of finished images and that of all.

    Raises:
      Refused: no image can be scored: there is none, or too many, a reference
        cannot be read, or the run has no threshold.
    """
    if not paths:
      raise Refused("There is no image: choose one or several.")
    self._check_number("images", paths)
    self._check_number("references", references)
    with self._lock:
      try:
        detector = self._with_references(references)
        limits = detector.limits
        scored, messages = [], []
        for number, (path, name) in enumerate(_named(paths), 1):
          found = self._score(detector, path, name)
          (messages if isinstance(found, str) else scored).append(found)
          progress(number, len(paths))
      except (ValueError, OSError) as error:
        raise Refused(_one_line(error)) from None
    count = len(references) or self.num_references
    return Batch(tuple(scored), tuple(messages), limits, count)

  def _check_number(self, what, paths):
    if len(paths) > self.limits.max_images:
      raise Refused(
        f"There are {len(paths)} {what}; at most {self.limits.max_images} are "
        "accepted at once (--max_images)."
      )

  def _with_references(self, paths):
    """Return the detector, with references that are encoded once."""
    if not paths:
      return self._detector
    if not self.accepts_references:
      raise Refused("References are set by the calibration; remove yours.")
    digests = tuple(_digest(path) for path in paths)
    if digests != self._few_shot[0]:
      images = []
      for path, name in _named(paths):
        found = self._open(path, name)
        if isinstance(found, str):
          raise Refused(f"Reference: {found}")
        images.append(found)
      self._few_shot = (digests, self._detector.with_references(images))
    return self._few_shot[1]

  def _open(self, path: str, name: str) -> PIL.Image.Image | str:
    """Return an image as RGB, or why it cannot be scored."""
    try:
      size = os.path.getsize(path)
      if size > self.limits.max_bytes:
        return (
          f"{name}: the file has {size} bytes; at most "
          f"{self.limits.max_bytes} are accepted (--max_bytes)."
        )
      height, width = preprocess.read_size(path)
      if width * height > self.limits.max_pixels:
        return (
          f"{name}: the image has {width} x {height} pixels; at most "
          f"{self.limits.max_pixels} are accepted (--max_pixels)."
        )
      image = preprocess.open_image(path)
    except (ValueError, OSError) as error:
      return _one_line(error).replace(path, name)
    # Name of the image in messages.
    image.filename = name  # pyright: ignore[reportAttributeAccessIssue]
    return image

  def _score(self, detector: Any, path: str, name: str) -> Scored | str:
    """Return the result of an image, or why there is none."""
    image = self._open(path, name)
    if isinstance(image, str):
      return image
    try:
      # Alone: a program is compiled for each number of images.
      detection = detector(image)
    except MemoryError:
      return f"{name}: the image needs more memory than there is."
    except ValueError as error:
      return _one_line(error)
    except Exception as error:
      _log.error("internal error: %s: %s", type(error).__name__, error)
      return f"{name}: internal error; the console has the reason."
    return Scored(name, overlays.bounded(image, self._side), detection)


def _named(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
  """Yield each path with a distinct name."""
  counts: dict[str, int] = {}
  for path in paths:
    name = os.path.basename(path)
    counts[name] = counts.get(name, 0) + 1
    number = counts[name]
    yield path, name if number == 1 else f"{name} ({number})"


def _digest(path: str) -> str:
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split()) or type(error).__name__
