"""Files in object stores, such as gs://bucket/folder, through etils' epath.

No other module opens a URL. Each function takes a URL of `check`.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from zsad_jax.runtime import environment, files

_T = TypeVar("_T")
# Package of each scheme. TensorFlow reads gs:// without another package.
_PACKAGES = {
  "gs": "gcsfs",
  "s3": "s3fs",
  "az": "adlfs",
  "hf": "huggingface_hub",
}
_READ_ONLY = ("hf",)  # Each written file would be a commit.
SUPPORTED = "local paths and gs://, s3://, az:// and hf:// (to read)"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_OWN = "tfds"  # Not a scheme: paths of records, see `datasets.index`.
_COLLAPSED = re.compile(rf"({'|'.join(_PACKAGES)}):/(?!/)")
_THREADS = 16  # Requests at a time.
_CHUNK = 1 << 22  # Bytes.
_TRIES, _PAUSE = 3, 1.0  # Of a request; seconds, doubled each time.


@dataclasses.dataclass(frozen=True)
class Stamp:
  """State of a remote file.

  Attributes:
    size: in bytes.
    mtime: time of the last change in seconds; 0 where the store gives none.
  """

  size: int
  mtime: int


class Cancelled(Exception):
  """A transfer ended because another one failed, or a signal arrived."""


def is_url(path: Any) -> bool:
  """Return whether a path is a URL, of any scheme."""
  if not isinstance(path, (str, os.PathLike)):
    return False
  text = os.fsdecode(path)
  found = _URL.match(text)
  return bool(found and found[1] != _OWN or _COLLAPSED.match(text))


def check(path: str | os.PathLike[str], *, write: bool = False) -> str:
  """Check a URL, without a connection.

  Args:
    path: a URL.
    write: whether files are to be written there.

  Returns:
    The URL without superfluous slashes.

  Raises:
    ValueError: its scheme is not supported, or needs a package that is not
      installed; or it names no bucket.
  """
  text = os.fsdecode(path)
  if found := _COLLAPSED.match(text):
    raise ValueError(
      f"{text}: a URL has two slashes, {found[1]}://BUCKET/PATH; "
      "pathlib.Path removes one: give it as text."
    )
  scheme, _, rest = text.partition("://")
  scheme = scheme.lower()
  if scheme not in _PACKAGES:
    raise ValueError(
      f"{text}: {scheme}:// is not supported; supported are {SUPPORTED}."
    )
  if write and scheme in _READ_ONLY:
    raise ValueError(f"{text}: {scheme}:// is only read; write to gs://.")
  parts = [part for part in rest.split("/") if part]
  if not parts or {".", ".."} & {*parts}:
    raise ValueError(f"{text}: expected {scheme}://BUCKET/PATH, without '..'.")
  _choose_backend(scheme, text)
  return f"{scheme}://{'/'.join(parts)}"


def refuse(path: Any, name: str) -> None:
  """Refuse a URL where a local path is needed.

  Args:
    path: the path.
    name: of the flag or field in the message.

  Raises:
    ValueError: it is a URL.
  """
  if is_url(path):
    raise ValueError(f"{name}: {path} is a URL, but must be a local path.")


def _choose_backend(scheme: str, url: str) -> None:
  """Let epath use a package that reads the scheme."""
  package = _PACKAGES[scheme]
  if importlib.util.find_spec(package) and importlib.util.find_spec("fsspec"):
    environment.read_without_tensorflow()  # It reads gs:// alone.
    return
  has_tf = importlib.util.find_spec("tensorflow")
  if scheme == "gs" and has_tf and environment.reads_with_tensorflow():
    return
  raise ValueError(f"{url}: {scheme}:// needs {package}: pip install {package}")


def join(root: str | os.PathLike[str], name: str) -> str:
  """Return the path of a name below a folder, which may be a URL."""
  if not is_url(root):
    return os.path.join(root, name)
  return f"{check(root)}/{name}"


def parent(url: str) -> str:
  """Return the URL of the folder of a file."""
  return url.rpartition("/")[0]


def is_dir(url: str) -> bool:
  """Return whether a remote folder exists."""
  found = _status(_path(url), url)
  return found is not None and found.is_directory


def exists(url: str) -> bool:
  """Return whether a remote file or folder exists."""
  return _status(_path(url), url) is not None


@contextlib.contextmanager
def threads() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
  """Provide threads for requests; at an error, start no others."""
  pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


def list_files(url: str) -> dict[str, Stamp]:
  """Return the files of a remote folder and its subfolders.

  Args:
    url: a folder, or a file.

  Returns:
    State of each file by its path below the folder; "" for a file. Empty where
    nothing exists.
  """
  top = _status(_path(url), url)
  if top is None:
    return {}
  if not top.is_directory:
    return {"": _stamp(top)}
  found: dict[str, Stamp] = {}
  with threads() as pool:
    folders = [""]
    while folders:
      names = sum(pool.map(lambda f: _names(url, f), folders), [])
      status = pool.map(lambda n: _status(_path(f"{url}/{n}"), url), names)
      folders = []
      for name, each in zip(names, status):
        if each is None:
          continue  # Removed since.
        if each.is_directory:
          folders.append(name)
        else:
          found[name] = _stamp(each)
  return found


def _names(url: str, folder: str) -> list[str]:
  """Return the paths below `url` of what a folder directly contains."""
  path = _path(f"{url}/{folder}" if folder else url)
  try:
    entries = _request(url, "read", lambda: [*path.iterdir()])
  except FileNotFoundError:
    return []  # Removed since.
  # Some stores list the folder itself.
  names = sorted({e.name for e in entries if e != path})
  return [f"{folder}/{name}" if folder else name for name in names]


def _stamp(status: Any) -> Stamp:
  return Stamp(int(status.length or 0), int(status.mtime or 0))


def stamp(url: str) -> Stamp:
  """Return the state of a remote file.

  Raises:
    FileNotFoundError: it does not exist.
  """
  found = _status(_path(url), url)
  if found is None:
    raise FileNotFoundError(f"{url} does not exist.")
  return _stamp(found)


def download(
  url: str, target: pathlib.Path, expected: Stamp, stop: threading.Event
) -> None:
  """Copy a remote file to a local one, which appears when it is complete.

  An interrupted copy is continued.

  Args:
    url: the file.
    target: the local file; its folder is created, an old file is replaced.
    expected: state of the file.
    stop: ends the copy.

  Raises:
    Cancelled: `stop` was set.
    FileNotFoundError: the remote file does not exist.
    OSError: a file cannot be read or written, or has another size.
  """
  key = hashlib.sha256(target.name.encode("utf-8", "surrogateescape"))
  name = f".{key.hexdigest()[:16]}.{expected.size}-{expected.mtime}.part"
  part = target.with_name(name)
  with files.explained(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    done = part.stat().st_size if part.is_file() else 0
    output = part.open("ab")
  with output, _opened(url, "rb") as source:
    if done:
      _request(url, "read", lambda: source.seek(done))
    read = lambda: source.read(_CHUNK)
    while chunk := _request(url, "read", read, tries=1):
      if stop.is_set():
        raise Cancelled
      with files.explained(target):
        output.write(chunk)
  found = part.stat().st_size
  if found != expected.size:
    part.unlink()
    raise OSError(
      f"{url} has {expected.size} bytes, but {found} were read: it was "
      "changed meanwhile; start again."
    )
  if expected.mtime:
    os.utime(part, (expected.mtime, expected.mtime))
  with files.explained(target):
    os.replace(part, target)


def upload(path: pathlib.Path, url: str) -> tuple[int, Stamp]:
  """Copy a local file to a remote one.

  Returns:
    The size that was read, and the state of the remote file.

  Raises:
    OSError: a file cannot be read or written.
  """
  with path.open("rb") as source:
    size = _request(url, "write", lambda: _copy(source, url))
  found = stamp(url)
  if found.size != size:
    raise OSError(f"{url} has {found.size} bytes; {size} were written.")
  return size, found


def _copy(source: IO[bytes], url: str) -> int:
  """Write a file from its beginning; return its size."""
  source.seek(0)
  with _writing(url) as target:
    while chunk := source.read(_CHUNK):
      target.write(chunk)
  return source.tell()


def read_text(url: str) -> str | None:
  """Return the content of a remote file; None where it does not exist."""

  def read():
    with _path(url).open("rb") as file:
      return file.read()

  try:
    return _request(url, "read", read).decode("utf-8", "replace")
  except FileNotFoundError:
    return None


def write_text(url: str, text: str) -> None:
  """Write a small remote file."""

  def write():
    with _writing(url) as file:
      file.write(text.encode())

  _request(url, "write", write)


def remove(url: str) -> None:
  """Remove a remote file, if it exists."""
  _request(url, "remove", lambda: _path(url).unlink(missing_ok=True))


def remove_folder(url: str) -> None:
  """Remove a remote folder with its files, if it exists."""
  if exists(url):
    _request(url, "remove", lambda: _path(url).rmtree(missing_ok=True))


def _path(url: str) -> Any:
  # Not at the top: local files need no epath.
  from etils import epath

  return epath.Path(url)


@contextlib.contextmanager
def _opened(url: str, mode: str) -> Iterator[Any]:
  with contextlib.ExitStack() as stack:
    yield _request(
      url, "read", lambda: stack.enter_context(_path(url).open(mode))
    )


@contextlib.contextmanager
def _writing(url: str) -> Iterator[Any]:
  """Open a remote file for writing; folders are created if needed."""
  path = _path(url)
  with contextlib.ExitStack() as stack:
    try:
      file = stack.enter_context(path.open("wb"))
    except FileNotFoundError:
      path.parent.mkdir(parents=True, exist_ok=True)
      file = stack.enter_context(path.open("wb"))
    yield file


def _status(path: Any, url: str) -> Any:
  """Return epath's state of a file or folder; None where it does not exist."""
  try:
    return _request(url, "read", path.stat)
  except FileNotFoundError:
    return None


def _request(
  url: str, verb: str, call: Callable[[], _T], *, tries: int = _TRIES
) -> _T:
  """Send a request, again after an error that may be temporary.

  Raises:
    FileNotFoundError: the file does not exist.
    OSError: any other error; the message has the URL.
  """
  for i in range(tries):
    try:
      return call()
    except FileNotFoundError as error:
      raise FileNotFoundError(f"{url} does not exist.") from error
    except Exception as error:  # Each package has errors of its own.
      lasting = isinstance(error, (PermissionError, ImportError, ValueError))
      if lasting or i == tries - 1:
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise OSError(f"Cannot {verb} {url} ({text}).") from error
    time.sleep(_PAUSE * 2**i)
  raise AssertionError(tries)
