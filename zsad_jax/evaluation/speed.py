"""Images per second of an evaluation, without the time of compilations."""

import functools
import math
import time
from typing import Any

import jax

from zsad_jax.runtime import distributed


class Speed:
  """Number of predictions in the time that they took.

  Batches during which a program was compiled are left out, images and time.
  """

  def __init__(self) -> None:
    self._images, self._seconds = 0, 0.0
    self.start()

  def start(self) -> None:
    """Begin the time of the next batch."""
    self._begin, self._compiled = time.perf_counter(), _compilations()

  def add(self, images: int) -> None:
    """Count the images of a batch, and begin the time of the next one."""
    if self._compiled == _compilations():
      self._images += images
      self._seconds += time.perf_counter() - self._begin
    self.start()

  def compute(self) -> float:
    """Return images per second of all processes; nan if there is none."""
    parts = distributed.all_gather_object((self._images, self._seconds))
    images = sum(part[0] for part in parts)
    seconds = max(part[1] for part in parts)
    return images / seconds if images and seconds else math.nan


@functools.cache
def _compilation_times() -> list[float]:
  """Return a list that receives the time of each compilation from now on."""
  times: list[float] = []

  def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
    del kwargs
    if event.endswith("backend_compile_duration"):
      times.append(duration_secs)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return times


def _compilations() -> int:
  """Return the number of programs that were compiled, or read from a cache."""
  return len(_compilation_times())
