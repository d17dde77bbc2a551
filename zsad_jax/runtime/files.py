"""Files that appear complete or not at all."""

import os
import pathlib


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
