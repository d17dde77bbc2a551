"""Text, JSON and CSV files of users, of any common encoding.

Every error names the file.
"""

import codecs
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PathLike = str | os.PathLike[str]

# Longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
  (codecs.BOM_UTF8, "utf-8-sig"),
  (codecs.BOM_UTF32_LE, "utf-32"),
  (codecs.BOM_UTF32_BE, "utf-32"),
  (codecs.BOM_UTF16_LE, "utf-16"),
  (codecs.BOM_UTF16_BE, "utf-16"),
)


def read(path: PathLike, *, errors: str = "strict") -> str:
  """Return the text of a file: UTF-8, or UTF-16 or UTF-32 with a BOM.

  Args:
    path: the file.
    errors: handler of bytes that are not UTF-8, such as "surrogateescape" for
      lists of file names.

  Raises:
    OSError: the file cannot be read.
    ValueError: it has another encoding.
  """
  data = Path(path).read_bytes()
  encoding = next((e for mark, e in _MARKS if data.startswith(mark)), "utf-8")
  try:
    text = data.decode(encoding, errors if encoding == "utf-8" else "strict")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path}: byte 0x{data[error.start]:02x} at {error.start} is not "
      f"{encoding.upper()}; save the file as UTF-8."
    ) from error
  if "\0" in text:
    raise ValueError(
      f"{path}: contains NUL characters, as UTF-16 without a byte order mark; "
      "save the file as UTF-8."
    )
  return text


def load_json(path: PathLike) -> Any:
  """Return the content of a JSON file.

  Args:
    path: the file.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is not JSON, or an object has a key twice.
  """

  def unique(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
      names = [key for key, _ in pairs]
      twice = next(key for key in names if names.count(key) > 1)
      raise ValueError(
        f'the key "{twice}" is listed twice in one object; merge the entries'
      )
    return found

  try:
    return json.loads(read(path), object_pairs_hook=unique)
  except RecursionError as error:
    raise ValueError(f"{path}: not valid JSON (nested too deeply).") from error
  except ValueError as error:
    if str(error).startswith(f"{path}: "):
      raise
    raise ValueError(f"{path}: not valid JSON ({error}).") from error


def csv_rows(path: PathLike, **options: Any) -> Iterator[tuple[int, list[str]]]:
  """Yield the number of each line that is not empty, and its cells.

  Args:
    path: the file.
    **options: of `csv.reader`.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is not text, or not CSV.
  """
  reader = csv.reader(io.StringIO(read(path), newline=""), **options)
  try:
    yield from ((reader.line_num, row) for row in reader if row)
  except csv.Error as error:
    raise ValueError(
      f"{path}, line {reader.line_num}: not valid CSV ({error})."
    ) from error


def csv_records(
  path: PathLike, columns: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, str]]]:
  """Yield the number of each row and its cells by column.

  Args:
    path: the file; its first line names the columns.
    columns: columns that are needed.

  Raises:
    OSError: the file cannot be read.
    ValueError: a column is missing, or a row has other cells.
  """
  rows = csv_rows(path)
  _, header = next(rows, (1, []))
  header = [name.strip() for name in header]
  if missing := [name for name in columns if header.count(name) != 1]:
    raise ValueError(
      f"{path}: expected one column {missing[0]!r} in the first line; found "
      f"{', '.join(header) or 'nothing'}."
    )
  for line, row in rows:
    if len(row) != len(header):
      raise ValueError(
        f"{path}, line {line}: expected {len(header)} cells, found {row}."
      )
    yield line, dict(zip(header, row))


class CsvWriter:
  """Writer of CSV tables, whose fields may contain any line ends.

  Python's writer leaves a carriage return unquoted, at which readers end the
  row; names of files may contain one.

  Args:
    file: receives the rows, opened with newline="".
  """

  def __init__(self, file: io.TextIOBase) -> None:
    self._plain = csv.writer(file, lineterminator="\n")
    self._quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)

  def writerow(self, row: Iterable[Any]) -> None:
    """Write a row."""
    row = list(row)
    quoted = any("\r" in str(cell) for cell in row)
    (self._quoted if quoted else self._plain).writerow(row)
