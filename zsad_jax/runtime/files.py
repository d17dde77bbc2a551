"""Files that appear complete or not at all."""

import os
import pathlib
from typing import Any

from zsad_jax.runtime import text_files


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
  """Write a result; of several processes, only the primary one writes.

  Args:
    path: the target; folders are created, an existing file is replaced.
    data: the whole content.

  Raises:
    OSError: the file cannot be written; an existing file stays as it was.
  """
  # Not at the top: the metrics import this module without JAX.
  from zsad_jax.runtime import distributed

  if distributed.is_primary():
    write_local_bytes(path, data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  r"""Write a result as UTF-8, line ends unchanged; see `write_bytes`.

  Bytes of file names that are not UTF-8 are escaped: "\\udcdf" is 0xdf.
  """
  write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_local_bytes(path: str | os.PathLike[str], data: bytes) -> None:
  """Write a file in every process, such as a cache of its host.

  The content goes to a temporary file in the same folder, which is renamed.

  Args:
    path: the target; folders are created, an existing file is replaced.
    data: the whole content.

  Raises:
    OSError: the file cannot be written; an existing file stays as it was.
  """
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      temporary.write_bytes(data)
      os.replace(temporary, path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise
  except OSError as error:
    # The original error names the temporary file.
    reason = f"Cannot write the file: {error.strerror}"
    raise OSError(error.errno, reason, str(path)) from error


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Read a JSON object that a run has stored.

  Args:
    path: the file.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: it is empty, cut off, no JSON, or another value than an object;
      the message has the path.
  """
  if not pathlib.Path(path).read_bytes().strip(b"\0 \t\r\n"):
    raise ValueError(f"{path} is corrupt: it is empty.")
  found = text_files.load_json(path)
  if not isinstance(found, dict):
    raise ValueError(
      f"{path} is corrupt: it holds a {type(found).__name__}, expected a JSON "
      "object."
    )
  return found


def other_kind(path: str | os.PathLike[str]) -> str:
  """Return a remark about a file that is no file of weights.

  Args:
    path: a file that could not be read.

  Returns:
    The remark, "" where the first bytes are of no known kind.
  """
  with open(path, "rb") as file:
    start = file.read(256).lstrip().lower()
  if not start:
    return "It is empty: fetch it again."
  if start.startswith(b"version https://git-lfs"):
    return (
      "It is a pointer of git-lfs, not the file itself: run `git lfs pull` "
      "where it comes from."
    )
  if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
    return (
      "It is a web page, such as a message about an error: fetch the file "
      "again."
    )
  if start.startswith(b"{"):
    return "It is a JSON text."
  if start.startswith(b"\x89hdf"):
    return "It is an HDF5 file, as TensorFlow writes: use PyTorch's."
  return ""
