"""Journal of the results of images, and the tables made from it.

`results.jsonl` has one line for each image, which is appended and forced to the
disk after the files of the image are written. It decides which images are done.
The CSV tables are appended next. A killed process leaves an incomplete last
line, or tables that lack rows: both are mended at the next start.
"""

import contextlib
import dataclasses
import errno
import filecmp
import hashlib
import io
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from zsad_jax.runtime import file_names, files, text_files
from zsad_jax.watch.arrivals import Identity

FILE = "results.jsonl"
_SOURCE = "source"  # Field of a line: identity of the image, name of its files.
_DIGEST = 12  # Bytes; a journal may have millions of images.
_log = logging.getLogger(__name__)

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
  """A CSV table with rows for each line of the journal.

  Attributes:
    name: of the file.
    columns: its first row.
    rows: returns the rows of a line.
  """

  name: str
  columns: Sequence[str]
  rows: Callable[[Record], Sequence[Sequence[Any]]]

  def text(self, rows: Sequence[Sequence[Any]]) -> bytes:
    """Return rows as they are in the file."""
    text = io.StringIO()
    writer = text_files.CsvWriter(text)
    for row in rows:
      writer.writerow(row)
    return text.getvalue().encode("utf-8", "backslashreplace")

  @property
  def head(self) -> bytes:
    """The first row, after a byte order mark: without it Excel assumes ANSI."""
    return b"\xef\xbb\xbf" + self.text([self.columns])


class Journal:
  """The journal of a folder of results, a context in which it is open.

  Only one process at a time may use it, see `runs.lock`.

  Args:
    output: the folder, which exists.
    tables: the tables.
  """

  def __init__(self, output: pathlib.Path, tables: Sequence[Table]) -> None:
    self._output, self._path = output, output / FILE
    self._tables = tables
    self._done: set[bytes] = set()
    self._names: set[bytes] = set()
    self._sizes: dict[str, int] = {}
    self._failed = ""  # The last error of a table.
    self.count = 0

  def __enter__(self) -> "Journal":
    for left in self._output.glob(".*.tmp"):  # By killed processes.
      left.unlink(missing_ok=True)
    with files.explained(self._path):
      flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
      self._descriptor = os.open(self._path, flags, 0o644)
    try:
      complete = 0
      for record, end in self._lines(mend=True):
        self._note(record)
        complete = end
      os.ftruncate(self._descriptor, complete)
      for table in self._tables:
        self._make(table)
    except BaseException:
      os.close(self._descriptor)
      raise
    return self

  def __exit__(self, *error: object) -> None:
    self._mend_tables()
    os.close(self._descriptor)

  def is_done(self, image: Identity) -> bool:
    """Return whether an image has a line."""
    return _digest(*image) in self._done

  def name(self, image: Identity, root: pathlib.Path) -> str:
    """Return a name for the files of an image, which no other one has.

    Args:
      image: the image.
      root: folder of all images.
    """
    relative = os.path.relpath(image.path, root).replace(os.sep, "_")
    name = file_names.safe_name(os.path.splitext(relative)[0])
    if _digest(file_names.folded(name)) in self._names:
      key = f"{image.path}\0{image.size}\0{image.mtime_ns}"
      name = file_names.with_digest(name, key)
    return name

  def add(self, image: Identity, name: str, values: Record) -> None:
    """Append the line of an image and its rows.

    Args:
      image: the image.
      name: of its files, see `name`.
      values: the fields of the line.

    Raises:
      OSError: the line cannot be written; the journal is as before.
      ValueError: the journal was removed or replaced by another program.
    """
    source = {"path": image.path, "size": image.size, "name": name}
    record = {**values, _SOURCE: {**source, "mtime_ns": image.mtime_ns}}
    data = json.dumps(record, allow_nan=False).encode() + b"\n"
    self._check_unchanged()
    with files.explained(self._path):
      _append(self._descriptor, data, force=True)
    self._note(record)
    if self._mend_tables():
      for table in self._tables:
        self._extend(table, record)

  def _note(self, record):
    """Mark the image of a line as done."""
    source = record[_SOURCE]
    self._done.add(_digest(source["path"], source["size"], source["mtime_ns"]))
    self._names.add(_digest(file_names.folded(source["name"])))
    self.count += 1

  def _check_unchanged(self):
    """Refuse to write to a file that has no name any more."""
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(self._descriptor), os.stat(self._path)):
        return
    if not self._output.is_dir():
      raise FileNotFoundError(f"{self._output} does not exist.")
    raise ValueError(
      f"{self._path} was removed or replaced by another program; start the "
      "command again."
    )

  def _lines(self, *, mend: bool = False) -> Iterator[tuple[Record, int]]:
    """Yield the content of each line, and its end in bytes.

    Args:
      mend: end before a last line that is incomplete; else all are complete.
    """
    end = number = 0
    with open(self._path, "rb") as file:
      size = os.fstat(file.fileno()).st_size
      for line in file:
        number += 1
        try:
          record = _parsed(line)
        except ValueError as error:
          if mend and end + len(line) == size:
            return
          raise ValueError(
            f"{self._path}, line {number}, is corrupt ({error}). Restore the "
            "file, or choose another --output."
          ) from error
        end += len(line)
        yield record, end

  def _make(self, table):
    """Write a table anew, unless it has the rows of all lines."""
    path = self._output / table.name
    temporary = files.temporary_name(path)
    with files.explained(path):
      try:
        with open(temporary, "wb") as file:
          file.write(table.head)
          for record, _ in self._lines():
            file.write(table.text(table.rows(record)))
          size = file.tell()
        if not (path.is_file() and filecmp.cmp(path, temporary, shallow=False)):
          os.replace(temporary, path)
      finally:
        temporary.unlink(missing_ok=True)
    self._sizes[table.name] = size

  def _extend(self, table, record):
    """Append the rows of a line; a table that fails is mended later."""
    path = self._output / table.name
    data = table.text(table.rows(record))
    try:
      with open(path, "ab", buffering=0) as file:
        if file.tell() == self._sizes[table.name]:
          if data:
            _append(file.fileno(), data)
          self._sizes[table.name] += len(data)
          return
      self._make(table)  # Another program has changed it.
    except OSError as error:
      self._failed = f"{path}: {error.strerror or error}"
      _log.warning(f"warning: {self._failed}; it is written again later.")

  def _mend_tables(self) -> bool:
    """Write all tables anew after a failure; return whether there was none."""
    if not self._failed:
      return True
    try:
      for table in self._tables:
        self._make(table)
      self._failed = ""
    except OSError:
      pass
    return False


def _parsed(line: bytes) -> Record:
  """Return the content of a line.

  Raises:
    ValueError: it is incomplete or no line of a journal.
  """
  if not line.endswith(b"\n"):
    raise ValueError("it has no end")
  found = json.loads(line)
  try:
    source = found[_SOURCE]
    kinds = {"path": str, "size": int, "mtime_ns": int, "name": str}
    valid = all(isinstance(source[key], kind) for key, kind in kinds.items())
  except (TypeError, KeyError):
    valid = False
  if not valid:
    raise ValueError("it describes no image")
  return found


def _append(descriptor: int, data: bytes, *, force: bool = False) -> None:
  """Append to a file by one call; leave it unchanged at an error.

  Args:
    descriptor: of the file.
    data: the bytes.
    force: wait until they are on the disk.
  """
  start = os.fstat(descriptor).st_size
  try:
    if os.write(descriptor, data) != len(data):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if force:
      os.fsync(descriptor)
  except OSError:
    with contextlib.suppress(OSError):
      os.ftruncate(descriptor, start)
    raise


def _digest(*parts: object) -> bytes:
  text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
  return hashlib.blake2b(text, digest_size=_DIGEST).digest()
