"""Metrics of a run: JSON lines, progress lines, optionally TensorBoard."""

import json
import logging
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from zsad_jax.runtime import distributed, files

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
  ) -> None:
    self._path = pathlib.Path(workdir) / "metrics.jsonl"
    self._total = total_steps
    self._last = (first_step, time.perf_counter())
    self._drop_after(first_step)
    self._primary = distributed.is_primary()
    board = tensorboard and self._primary
    self._board = _open_board(workdir) if board else None

  def _drop_after(self, step: int) -> None:
    """Remove the lines after a step."""
    if not self._path.exists():
      return
    lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    files.write_text(self._path, "".join(kept))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Append one line of named scalars, if there are any."""
    if not values or not self._primary:
      return
    record = {"step": step, **{k: float(v) for k, v in values.items()}}
    with self._path.open("a", encoding="utf-8") as file:
      file.write(json.dumps(record) + "\n")
    if self._board is not None:
      for name, value in values.items():
        self._board.add_scalar(name, float(value), step)

  def progress(self, step: int, loss: float, batch_size: int) -> float:
    """Log loss, speed and time left; return images per second."""
    last_step, last_time = self._last
    now = time.perf_counter()
    per_step = (now - last_time) / max(step - last_step, 1)
    left = round(per_step * (self._total - step))
    speed = batch_size / per_step
    _log.info(
      f"step {step}/{self._total}  loss {loss:.4f}  "
      f"{speed:.1f} images/s  {left // 60}:{left % 60:02d} left"
    )
    self._last = (step, now)
    return speed


def check_finite(measured: Mapping[int, Mapping[str, Any]]) -> None:
  """Check that all measurements are finite.

  Args:
    measured: named scalars by step: the loss before the step and the norm of
      its update, which overflows one step earlier than the loss.

  Raises:
    ValueError: a measurement is not finite; the message names the steps.
  """
  finite = lambda values: all(math.isfinite(float(v)) for v in values.values())
  bad = [step for step, values in measured.items() if not finite(values)]
  if bad:
    raise ValueError(
      f"The loss or its update is not finite in steps {bad[0]} to {bad[-1]} "
      f"(checked: steps {min(measured)} to {max(measured)}). The last "
      "checkpoint is from before; lower config.optax.learning_rate or "
      "change config.seed."
    )


def _open_board(workdir: str | pathlib.Path) -> Any:
  """Open a TensorBoard writer."""
  try:
    from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ValueError(
      "config.tensorboard needs tensorboardX: pip install tensorboardX."
    ) from error
  return SummaryWriter(str(workdir))
