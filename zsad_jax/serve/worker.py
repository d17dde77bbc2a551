"""The thread that owns the model, and its queue."""

import base64
import collections
import concurrent.futures
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import PIL.Image

from zsad_jax.datasets import preprocess
from zsad_jax.inference import regions as regions_lib
from zsad_jax.inference import shrinking
from zsad_jax.reporting import overlays, region_files
from zsad_jax.runs.detector import Detection
from zsad_jax.serve import uploads

_log = logging.getLogger(__name__)


class Full(Exception):
  """The queue is full."""


class Invalid(Exception):
  """The image cannot be scored; the message has the reason."""


class Failed(Exception):
  """The image has no result; the log has the reason."""


class Result(NamedTuple):
  """An image that is scored.

  Attributes:
    image: the image.
    found: its result.
    seconds: time that it took, without the queue.
    warnings: what may be wrong about the result.
  """

  image: PIL.Image.Image
  found: Detection
  seconds: float
  warnings: Sequence[str] = ()


class Job(NamedTuple):
  """An image in the queue.

  Attributes:
    data: the image file.
    draw: makes the answer; runs in the worker.
    name: of the request, in the log.
    answer: receives the answer, an `Invalid` or another error.
  """

  data: bytearray
  draw: Callable[[Result], bytes]
  name: str
  answer: concurrent.futures.Future


class Worker:
  """Scores images one after the other in a thread of its own.

  Args:
    detector: returns a `Detection` for an image.
    capacity: images that may wait.
  """

  def __init__(self, detector: Callable[[Any], Detection], capacity: int):
    self._detector, self._capacity = detector, capacity
    self._jobs: collections.deque[Job] = collections.deque()
    self._changed = threading.Condition()
    self._ended = False
    self._thread = threading.Thread(target=self._run, daemon=True)

  def start(self) -> None:
    """Start the thread."""
    self._thread.start()

  def stop(self) -> None:
    """Let the thread end after the present image; the others get an error."""
    with self._changed:
      self._ended = True
      self._changed.notify()

  @property
  def is_alive(self) -> bool:
    """Whether images are still scored."""
    return self._thread.is_alive() and not self._ended

  @property
  def waiting(self) -> int:
    """Number of images that wait."""
    return len(self._jobs)

  def submit(
    self, data: bytearray, draw: Callable[[Result], bytes], name: str
  ) -> concurrent.futures.Future:
    """Append an image to the queue.

    Args:
      data: the image file.
      draw: see `Job`.
      name: see `Job`.

    Returns:
      The future answer. Once it is cancelled the image is not scored.

    Raises:
      Full: as many images wait as may.
      Failed: the thread has ended.
    """
    job = Job(data, draw, name, concurrent.futures.Future())
    with self._changed:
      if not self.is_alive:
        raise Failed
      if len(self._jobs) >= self._capacity:
        self._drop_cancelled()
      if len(self._jobs) >= self._capacity:
        raise Full
      self._jobs.append(job)
      self._changed.notify()
    return job.answer

  def _drop_cancelled(self):
    left = [job for job in self._jobs if not job.answer.cancelled()]
    self._jobs = collections.deque(left)

  def _run(self):
    try:
      while True:
        with self._changed:
          while not (self._jobs or self._ended):
            self._changed.wait()
          if self._ended:
            return
          job = self._jobs.popleft()
        self._answer(job)
        del job  # Also its image, while the thread waits.
    finally:
      with self._changed:
        self._ended = True
        left, self._jobs = self._jobs, collections.deque()
      for job in left:
        if job.answer.set_running_or_notify_cancel():
          job.answer.set_exception(Failed())

  def _answer(self, job):
    """Score an image; no error ends the thread."""
    if not job.answer.set_running_or_notify_cancel():
      return  # The client has gone.
    try:
      job.answer.set_result(self._score(job))
    except Invalid as error:
      job.answer.set_exception(error)
    except Exception as error:
      _log.error("internal error: %s: %s", job.name, _one_line(error))
      # Without the error's traceback, which refers to the image.
      job.answer.set_exception(Failed())
    except BaseException:  # The end of the thread.
      job.answer.set_exception(Failed())
      raise

  def _score(self, job) -> bytes:
    start = time.monotonic()
    try:
      file = uploads.open_image(job.data)
      image = preprocess.convert_image(file, uploads.NAME)
      # Name of the image in messages.
      image.filename = job.name  # pyright: ignore[reportAttributeAccessIssue]
      with shrinking.collected() as warnings:
        found = self._detector(image)
    except preprocess.Unreadable as error:
      raise Invalid(_one_line(uploads.unreadable(error.reason))) from None
    except (uploads.Refused, ValueError) as error:
      reason = _one_line(error).replace(job.name, uploads.NAME)
      raise Invalid(reason) from None
    except MemoryError:
      raise Invalid("The image needs more memory than there is.") from None
    seconds = time.monotonic() - start
    return job.draw(Result(image, found, seconds, warnings))


def _one_line(error: Exception) -> str:
  text = " ".join(str(error).split()) or type(error).__name__
  known = isinstance(error, (ValueError, uploads.Refused))
  return text if known else f"{type(error).__name__}: {text[:400]}"


def values(result: Result, calibration: str | None) -> dict[str, Any]:
  """Return the fields of an answer; see `as_json`."""
  found = result.found
  height, width = found.image_size
  regions = None
  if found.limits.pixel is not None and not found.image_only:
    regions = regions_lib.find(found.anomaly_map, found.mask)
  return {
    "score": found.score,
    "normalized_score": found.normalized_score,
    "label": found.label,
    "threshold": found.threshold,
    "calibration": calibration,
    "normal_percentile": found.normal_percentile,
    "zero_shot_score": found.zero_shot_score,
    "pixel_threshold": found.limits.pixel,
    "region_count": regions and regions.count,
    "regions": regions and region_files.records(regions),
    "image_size": {"width": width, "height": height},
    "seconds": round(result.seconds, 4),
    "warnings": [text[:1].upper() + text[1:] for text in result.warnings],
  }


def as_json(
  result: Result, *, side: int | None, calibration: str | None
) -> bytes:
  """Return the answer to /predict.

  Args:
    result: the result of an image.
    side: longest side of the overlay; None: without it.
    calibration: its name; None: there is none.
  """
  answer = values(result, calibration)
  if side is not None:
    png = as_png(result, side=side)
    answer["overlay"] = base64.b64encode(png).decode()
  return json.dumps(answer, allow_nan=False).encode()


def as_png(result: Result, *, side: int) -> bytes:
  """Return the answer to /overlay; see `as_json`.

  Raises:
    Invalid: the method has image scores only.
  """
  if result.found.image_only:
    raise Invalid(
      "This method has image scores only, without maps: use /predict without "
      "an overlay."
    )
  data = io.BytesIO()
  overlays.draw(result.image, result.found, side=side).save(data, "PNG")
  return data.getvalue()
