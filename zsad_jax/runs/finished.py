"""Stages after training that a run has completed, in `finished.json`.

A finished run is neither calibrated nor evaluated again by the same command.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from zsad_jax.runtime import files

FILE = "finished.json"


class Stages:
  """Completed stages of the run in a workdir.

  Args:
    workdir: folder of the run.
    step: last step; stages of other steps do not count. None: the step of the
      file, to read it only.
  """

  def __init__(self, workdir: pathlib.Path, step: int | None = None) -> None:
    self._workdir = workdir
    self._document: dict[str, Any] = {"step": step, "stages": {}}
    try:
      found = json.loads((workdir / FILE).read_text(encoding="utf-8"))
      same = step is None or found["step"] == step
      if same and isinstance(found["stages"], dict):
        self._document = found
    except (OSError, ValueError, KeyError, TypeError):
      pass  # Computed again.

  def is_done(self, stage: str) -> bool:
    """Return whether a stage was completed and all its files still exist."""
    written = self._document["stages"].get(stage)
    return bool(written) and all(
      (self._workdir / name).is_file() for name in written
    )

  def files(self, stage: str) -> list[pathlib.Path]:
    """Return the files that a completed stage wrote."""
    return [self._workdir / name for name in self._document["stages"][stage]]

  def mark(self, stage: str, paths: Sequence[pathlib.Path]) -> None:
    """Record a completed stage and the files in the workdir that it wrote."""
    names = [str(path.relative_to(self._workdir)) for path in paths]
    self._document["stages"][stage] = names
    text = json.dumps(self._document, indent=1) + "\n"
    files.write_text(self._workdir / FILE, text)


def reset(workdir: pathlib.Path) -> None:
  """Forget all stages: training goes on."""
  (workdir / FILE).unlink(missing_ok=True)
