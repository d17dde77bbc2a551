"""Writing files that appear complete or not at all.

Of several processes that work as one, the first one writes.
"""

import os
import pathlib

_quiet = False


def keep_quiet() -> None:
  """From here on this process writes no results; another one does."""
  global _quiet
  _quiet = True


def quiet() -> bool:
  """Whether another process writes the results."""
  return _quiet


def write_bytes(
  path: str | os.PathLike[str], data: bytes, *, cache: bool = False
) -> None:
  """Writes beside the target under another name, then renames.

  Args:
    path: the target; folders are made, a file there is replaced.
    data: the whole content.
    cache: not a result; every process writes it, for its own host.

  Raises:
    OSError: the file cannot be written; what was there before stays.
  """
  if _quiet and not cache:
    return
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
    # The original names the temporary file, which nobody asked for.
    reason = f"Cannot write the file: {error.strerror}"
    raise OSError(error.errno, reason, str(path)) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes UTF-8 with the line ends of `text`; see `write_bytes`."""
  write_bytes(path, text.encode("utf-8"))
