"""Metrics of a run: JSON lines, a progress line, TensorBoard if asked."""

import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from zsad_jax.runtime import files


class Writer:
  """Appends measurements to `metrics.jsonl` and prints them.

  A resumed run first drops the lines beyond the step it resumes from, so that
  the file reads as if the run had never been stopped.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    first_step: int,
    total_steps: int,
    tensorboard: bool = False,
  ):
    self._path = pathlib.Path(workdir) / "metrics.jsonl"
    self._total = total_steps
    self._last = (first_step, time.perf_counter())
    self._drop_after(first_step)
    board = tensorboard and not files.quiet()
    self._board = _open_board(workdir) if board else None

  def _drop_after(self, step):
    if not self._path.exists():
      return
    lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= step]
    files.write_text(self._path, "".join(kept))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Appends one line of named scalars, if there are any."""
    if not values or files.quiet():
      return
    record = {"step": step, **{k: float(v) for k, v in values.items()}}
    with self._path.open("a", encoding="utf-8") as file:
      file.write(json.dumps(record) + "\n")
    if self._board is not None:
      for name, value in values.items():
        self._board.add_scalar(name, float(value), step)

  def progress(self, step: int, loss: float, batch_size: int) -> float:
    """Prints loss, speed and time left; returns images per second."""
    last_step, last_time = self._last
    now = time.perf_counter()
    per_step = (now - last_time) / max(step - last_step, 1)
    left = round(per_step * (self._total - step))
    speed = batch_size / per_step
    print(
      f"step {step}/{self._total}  loss {loss:.4f}  "
      f"{speed:.1f} images/s  {left // 60}:{left % 60:02d} left",
      flush=True,
    )
    self._last = (step, now)
    return speed


def check_finite(measured: Mapping[int, Mapping[str, Any]]) -> None:
  """Raises ValueError when a measurement is not finite, naming the steps.

  Args:
    measured: named scalars by step: the loss before the step and the norm of
      its update, whose overflow is seen a step earlier than the loss's.
  """
  finite = lambda values: all(math.isfinite(float(v)) for v in values.values())
  bad = [step for step, values in measured.items() if not finite(values)]
  if bad:
    raise ValueError(
      f"The loss or its update is not finite in steps {bad[0]} to {bad[-1]} "
      f"(looked at steps {min(measured)} to {max(measured)}). The last "
      "checkpoint is from before; lower config.optax.learning_rate or "
      "change config.seed."
    )


def _open_board(workdir):
  try:
    from tensorboardX import SummaryWriter
  except ImportError as error:
    raise ValueError(
      "config.tensorboard needs tensorboardX: pip install tensorboardX."
    ) from error
  return SummaryWriter(str(workdir))
