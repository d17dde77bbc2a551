"""The table of scores of `predict`, which grows with each image."""

import pathlib
from collections.abc import Sequence

from zsad_jax.reporting import growing_file, predictions, result_files
from zsad_jax.runtime import stopping, text_files

SCORES = result_files.SCORES
PARTIAL_SCORES = "scores.partial.csv"


class ScoreTable:
  """The table of scores, a context in which its rows are written.

  Rows are appended to scores.partial.csv. At the end, also at an error or a
  signal, the images without a row get one with the reason as status, and the
  file is renamed to scores.csv. Only a process that is killed leaves
  scores.partial.csv. Of several processes, only the primary one writes.

  Args:
    output: folder of the table; created if missing.
    images: all images that are to be scored, in order.
    columns: names of the columns, see `result_files.columns`.
  """

  def __init__(
    self, output: pathlib.Path, images: Sequence[str], columns: Sequence[str]
  ) -> None:
    self._output = output
    self._images = images
    self._columns = columns
    self._rows = 0
    self.scored = 0

  def __enter__(self) -> "ScoreTable":
    self._file = growing_file.GrowingFile(
      self._output / PARTIAL_SCORES, self._output / SCORES, mark=True
    )
    self._writer = text_files.CsvWriter(self._file.file)
    self._write(self._columns)
    self._rows = 0
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: object,
  ) -> None:
    missing = len(self._images) - self._rows
    try:
      while self._rows < len(self._images):
        self.skip(f"not scored: {_one_line(error)}")
      self._file.finish()
    except OSError:  # Such as a full disk, which is the error already.
      if error is None:
        raise
      return
    if error is not None and missing:
      error.add_note(
        f"{self._file.final} has the scores of {self.scored} of "
        f"{len(self._images)} images."
      )

  def add(self, row: result_files.ImageRow) -> None:
    """Write the row of the next image."""
    with stopping.postponed():
      self._write(row.cells())
      self.scored += 1

  def skip(self, status: str) -> None:
    """Write the row of the next image, which has no score."""
    image = predictions.absolute(self._images[self._rows])
    row = result_files.unscored(self._columns, image, status)
    with stopping.postponed():
      self._write(row.cells())

  def _write(self, row):
    self._writer.writerow(row)
    self._file.flush()
    self._rows += 1


def _one_line(error) -> str:
  """Return the first line of an error's text."""
  return (str(error).splitlines() or [type(error).__name__])[0]
