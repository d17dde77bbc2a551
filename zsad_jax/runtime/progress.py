"""Progress lines of long loops: about every 10 s, with the time left."""

import logging
import time
from collections.abc import Callable

SECONDS = 10.0  # Between two lines.
_log = logging.getLogger(__name__)


class Progress:
  """Logs the progress of a loop and the time left.

  The time up to the first report, which includes compilation, is not counted.

  Args:
    what: name of the loop in the lines, such as "Evaluation".
    total: number of images.
    clock: returns seconds.
  """

  def __init__(
    self,
    what: str,
    total: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
  ) -> None:
    self._what, self._total, self._clock = what, total, clock
    self._done, self._logged = 0, clock()
    self._first: tuple[int, float] | None = None

  def add(self, count: int) -> None:
    """Report `count` further images."""
    self.update(self._done + count)

  def update(self, done: int) -> None:
    """Report the images done so far; log unless the last line is recent."""
    self._done, now = done, self._clock()
    if self._first is None:
      self._first = (done, now)
    if now - self._logged < SECONDS or done >= self._total:
      return
    self._logged = now
    text = f"  {self._what}: {done}/{self._total} images"
    first, start = self._first
    if done > first and now > start:
      left = (now - start) / (done - first) * (self._total - done)
      text += f", {duration(left)} left"
    _log.info(text)


def duration(seconds: float) -> str:
  """Return minutes and seconds, with hours where there are some."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02d}:{rest:02d}"
  return f"{minutes}:{rest:02d}"
