"""Text files that grow while a command runs, under a name for partial ones."""

import os
import pathlib

from zsad_jax.runtime import distributed


class GrowingFile:
  r"""A text file that gets its final name when it is complete.

  It is UTF-8; bytes of file names that are not UTF-8 are escaped: "\udcdf" is
  0xdf. Of several processes, only the primary one writes.

  Args:
    partial: the file until it is complete; an old one is replaced.
    final: the file when it is complete.
    mark: begin with a byte order mark, by which spreadsheets recognize UTF-8.
  """

  def __init__(
    self, partial: pathlib.Path, final: pathlib.Path, *, mark: bool
  ) -> None:
    self._primary = distributed.is_primary()
    self._partial, self.final = partial, final
    if self._primary:
      partial.parent.mkdir(parents=True, exist_ok=True)
    self.file = open(
      partial if self._primary else os.devnull,
      "w",
      encoding="utf-8-sig" if mark else "utf-8",
      errors="backslashreplace",
      newline="",
    )

  def flush(self) -> None:
    """Write what is buffered."""
    self.file.flush()

  def finish(self) -> None:
    """Close the file and give it its final name.

    Raises:
      OSError: it cannot be written; it keeps its first name.
    """
    self.file.close()
    if self._primary:
      os.replace(self._partial, self.final)
