"""Files and folders that appear complete or not at all."""

import contextlib
import fcntl
import glob
import os
import pathlib
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

from zsad_jax.runtime import text_files

_DRAFT_LENGTH = 40  # Characters of the target's name.


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
  temporary = temporary_name(path)
  with explained(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      temporary.write_bytes(data)
      os.replace(temporary, path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


def temporary_name(path: pathlib.Path) -> pathlib.Path:
  """Return a hidden name next to a file that no other writer uses.

  Threads share the number of their process, and hosts may share a folder.
  """
  name = f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
  return path.with_name(name)


@contextlib.contextmanager
def explained(path: str | os.PathLike[str]) -> Iterator[None]:
  """Name the file in errors of writing it.

  The original error may name a temporary file, or none (a full disk).

  Raises:
    OSError: its `filename` is `path`.
  """
  try:
    yield
  except OSError as error:
    if error.errno is None:  # Not of the system: there is only a message.
      raise OSError(f"Cannot write the file {path}: {error}") from error
    reason = f"Cannot write the file: {error.strerror}"
    raise OSError(error.errno, reason, os.fspath(path)) from error


@contextlib.contextmanager
def draft(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Make an empty folder to rename to a target once it is complete.

  At the end the folder is removed, if it still exists. Drafts of the same
  target that were left by killed processes of this host are removed at the
  start: a process has a kernel lock (flock) on its draft, as long as it lives.

  Args:
    target: its parent folder is created if missing.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  prefix = draft_prefix(target)
  with contextlib.ExitStack() as stack:
    with locked(target.parent):
      for old in target.parent.glob(glob.escape(prefix) + "*"):
        if is_free(old):
          shutil.rmtree(old, ignore_errors=True)
      folder = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
      stack.enter_context(locked(folder))
    try:
      folder.chmod(0o755)  # `mkdtemp` hides it from other users.
      yield folder
    finally:
      shutil.rmtree(folder, ignore_errors=True)


def draft_prefix(target: pathlib.Path) -> str:
  """Return how the names of a target's drafts begin.

  Other targets may have the same: names have at most 255 bytes.
  """
  return f".{target.name[:_DRAFT_LENGTH]}-{socket.gethostname()}-"


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Hold the kernel lock of a folder, where the file system has one."""
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):  # NFS locks no folders.
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)


def is_free(path: pathlib.Path) -> bool | None:
  """Return whether no process has the kernel lock; None if not known."""
  try:
    descriptor = os.open(path, os.O_RDONLY)
  except OSError:
    return None
  try:
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return True
  except BlockingIOError:
    return False
  except OSError:
    return None
  finally:
    os.close(descriptor)


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
