"""Metrics of a run: JSON lines, progress lines, optionally TensorBoard."""

import json
import logging
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from zsad_jax.runtime import distributed, files, mirror, progress

_log = logging.getLogger(__name__)


class Writer:
  """Appends measurements to `metrics.jsonl` and logs the progress.

  A resumed run first drops the lines after the step it resumes from, so that
  the file is the same as without the interruption. Only the primary process
  writes.

  Args:
    workdir: folder of the run.
    first_step: step that the run starts or resumes from.
    total_steps: of the whole run.
    tensorboard: write TensorBoard files, too.
    drop_extra: drop the lines of `first_step` that have no loss as well: the
      evaluation after that step is repeated.

  Raises:
    ValueError: TensorBoard is asked for, but not installed.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    first_step: int,
    total_steps: int,
    tensorboard: bool = False,
    drop_extra: bool = False,
  ) -> None:
    self._path = pathlib.Path(workdir) / "metrics.jsonl"
    self._total = total_steps
    self._last = (first_step, time.perf_counter())
    self._reports = 0
    self._drop_after(first_step, drop_extra)
    self._primary = distributed.is_primary()
    board = tensorboard and self._primary
    self._board = _open_board(workdir, first_step) if board else None

  def _drop_after(self, step: int, drop_extra: bool) -> None:
    """Remove the lines after a step."""
    if not self._path.exists():
      return
    lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
      lines.pop()  # The process was killed, or the disk full.
    kept = []
    for line in lines:
      record = self._parse(line)
      repeated = drop_extra and "loss" not in record
      if record["step"] < step + (not repeated):
        kept.append(line)
    files.write_text(self._path, "".join(kept))

  def _parse(self, line: str) -> dict[str, Any]:
    """Return the measurements of a line."""
    try:
      record = json.loads(line)
      int(record["step"])
      return record
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(
        f"{self._path} has a line that is no measurement: {line[:80]!r}. "
        "Remove that line, or the file: training goes on without it."
      ) from error

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Append one line of named scalars, if there are any.

    Raises:
      OSError: the file cannot be written.
    """
    if not values or not self._primary:
      return
    record = {"step": step, **{k: float(v) for k, v in values.items()}}
    with files.explained(self._path):
      with self._path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    if self._board is not None:
      for name, value in values.items():
        self._board.add_scalar(name, float(value), step)
    mirror.request(self._path)

  def progress(self, step: int, loss: float, batch_size: int) -> float:
    """Log loss, speed and time left; return images per second."""
    last_step, last_time = self._last
    now = time.perf_counter()
    per_step = (now - last_time) / max(step - last_step, 1)
    left = per_step * (self._total - step)
    speed = batch_size / per_step
    text = f"step {step}/{self._total}  loss {loss:.4f}  {speed:.1f} images/s"
    if self._reports:  # The time up to the first report has compilation.
      text += f"  {progress.duration(left)} left"
    _log.info(text)
    self._last = (step, now)
    self._reports += 1
    return speed

  def close(self) -> None:
    """Write what TensorBoard's writer still holds."""
    if self._board is not None:
      self._board.close()


def means(measured: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
  """Return the mean of each measurement of the last step over all steps.

  Args:
    measured: named scalars by step, see `fetch`; at least one step.

  Raises:
    ValueError: a measurement is not finite; the message names the steps.
  """
  fetched = fetch(measured)
  mean = lambda key: float(np.mean([m[key] for m in fetched.values()]))
  return {key: mean(key) for key in fetched[max(fetched)]}


def to_meta(measured: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
  """Return measurements as JSON values, for the metadata of a checkpoint.

  A run that was stopped between two lines of its log continues with them, so
  that its lines are those of a run without interruption.

  Raises:
    ValueError: a measurement is not finite; the message names the steps.
  """
  return {
    str(step): {name: np.asarray(value).item() for name, value in each.items()}
    for step, each in fetch(measured).items()
  }


def from_meta(stored: Mapping[str, Mapping[str, Any]]) -> dict[int, Any]:
  """Return the measurements that `to_meta` has stored."""
  as_before = lambda x: np.float32(x) if isinstance(x, float) else x
  return {
    int(step): {name: as_before(value) for name, value in each.items()}
    for step, each in stored.items()
  }


def fetch(measured: Mapping[int, Mapping[str, Any]]) -> dict[int, Any]:
  """Return measurements as NumPy arrays and check that they are finite.

  Args:
    measured: named scalars by step: the loss before the step and the norm of
      its update, which overflows one step earlier than the loss.

  Raises:
    ValueError: a measurement is not finite; the message names the steps.
  """
  fetched: dict[int, Any] = jax.device_get(dict(measured))
  finite = lambda values: all(math.isfinite(float(v)) for v in values.values())
  bad = [step for step, values in fetched.items() if not finite(values)]
  if bad:
    raise ValueError(
      f"The loss or its update is not finite in steps {bad[0]} to {bad[-1]} "
      f"(checked: steps {min(fetched)} to {max(fetched)}). The last "
      "checkpoint is from before; lower config.optax.learning_rate or "
      "change config.seed."
    )
  return fetched


def _open_board(workdir: str | pathlib.Path, step: int) -> Any:
  """Open a TensorBoard writer that replaces values after `step`."""
  try:
    from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ValueError(
      "config.tensorboard needs tensorboardX: pip install tensorboardX."
    ) from error
  return SummaryWriter(str(workdir), purge_step=step + 1)
