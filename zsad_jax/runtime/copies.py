"""Local copies of remote inputs: weights, data sets, images, runs.

A URL is copied once into the cache folder, `remote/<digest>/<bucket>/<path>`.
Each command compares the copy with the list of the remote files: what is new or
has another size or time is copied again, and what was removed is removed.
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from zsad_jax.runtime import environment, files, progress, urls

_INDEX = "index.json"
LOCK = "lock.json"  # Of a workdir, see `runs.lock`; never copied.
# A checkpoint whose files are being written or removed has this file next to
# its folder. It is no part of a copy.
INCOMPLETE = ".incomplete"
_UNITS = ("checkpoints", "best")  # Folders of checkpoints.
_HIDDEN = ".orbax-checkpoint-tmp"  # Of checkpoints that are being written.
_TRIES = 3  # Lists of files; those of a run in training change.
_origins: dict[str, str] = {}  # URL of each local path.
_fetched: set[str] = set()  # Local copies that this process compared.
_log = logging.getLogger(__name__)


def local(path: str | os.PathLike[str], *, fresh: bool = False) -> str:
  """Return the path of a file or folder on this machine.

  Args:
    path: a local path, which is returned unchanged, or a URL, which is copied.
    fresh: compare the copy with the remote files again; else that is done once
      in a process.

  Raises:
    ValueError: the URL is not supported.
    FileNotFoundError: it does not exist.
    OSError: it cannot be read, or the copy cannot be written.
  """
  if not urls.is_url(path):
    return os.fspath(path)
  found = location(path)
  if fresh or found not in _fetched:
    Copy(path).refresh()
    _fetched.add(found)
  return found


def location(path: str | os.PathLike[str]) -> str:
  """Return where `local` puts the copy of a URL; other paths unchanged."""
  if not urls.is_url(path):
    return os.fspath(path)
  copy = Copy(path)
  add_origin(copy.path, copy.url)
  return str(copy.path)


def add_origin(path: pathlib.Path, url: str) -> None:
  """Let `origin` return a URL for a local path and those below it."""
  _origins[str(path)] = url


def origin(path: str | os.PathLike[str]) -> str:
  """Return the URL of a path of a local copy; other paths unchanged."""
  text = os.path.abspath(path)
  for root, url in _origins.items():
    if text == root or text.startswith(root + os.sep):
      return url + text.removeprefix(root)
  return os.fspath(path)


class Copy:
  """Local copy of a remote file or folder.

  Attributes:
    url: the remote file or folder.
    path: the local one.

  Args:
    url: the remote file or folder.
    kind: copies of different kinds are independent.
  """

  def __init__(self, url: str | os.PathLike[str], kind: str = "") -> None:
    self.url = urls.check(url)
    digest = hashlib.sha256((kind + self.url).encode()).hexdigest()[:16]
    cache = environment.default_cache_dir()
    self.folder = pathlib.Path(cache, "remote", digest)
    self.path = self.folder / self.url.partition("://")[2]
    self.incomplete: set[str] = set()  # Checkpoints of the last list.

  def refresh(self) -> None:
    """Make the copy equal to the remote files.

    Raises:
      FileNotFoundError: there are none.
      OSError: a file cannot be read or written.
    """
    with self.locked():
      for i in range(_TRIES):
        listed = self.list_remote()
        if not listed:
          hint = " A URL is no pattern." if re.search(r"[*?]", self.url) else ""
          raise FileNotFoundError(
            f"{self.url} does not exist, or is empty.{hint}"
          )
        try:
          self.take(listed)
          return
        except FileNotFoundError:  # Removed since.
          if i == _TRIES - 1:
            raise

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Exclude other processes of this machine, and other threads."""
    self.folder.mkdir(parents=True, exist_ok=True)
    with _thread_lock(str(self.folder)), files.locked(self.folder):
      yield

  def list_remote(self) -> dict[str, urls.Stamp]:
    """Return the remote files without checkpoints that are incomplete."""
    listed = urls.list_files(self.url)
    self.incomplete = {
      name.removesuffix(INCOMPLETE)
      for name in listed
      if name.endswith(INCOMPLETE) and unit_of(name.removesuffix(INCOMPLETE))
    }
    skip = {unit + INCOMPLETE for unit in self.incomplete} | {LOCK}
    return {
      name: stamp
      for name, stamp in listed.items()
      if name not in skip
      and unit_of(name) not in self.incomplete
      and not any(map(_is_temporary, name.split("/")))
    }

  def list_local(self) -> dict[str, tuple[int, int]]:
    """Return size and time (ns) of the local files, without temporary ones."""
    if self.path.is_file():
      return {"": _local_stamp(self.path)}
    found = {}
    for folder, names, entries in os.walk(self.path):
      names[:] = [name for name in names if not _is_temporary(name)]
      for name in entries:
        path = pathlib.Path(folder, name)
        relative = path.relative_to(self.path).as_posix()
        if _is_temporary(name) or relative == LOCK:
          continue
        with contextlib.suppress(FileNotFoundError):  # Removed since.
          found[relative] = _local_stamp(path)
    return found

  def take(self, listed: Mapping[str, urls.Stamp]) -> None:
    """Make the copy equal to a list of the remote files; within `locked`."""
    index = self.load_index()
    for name, local in self.list_local().items():
      known = index.get(name)
      remote = listed.get(name)
      if known and remote and known == _entry(local, remote):
        continue
      self._remove(name)
      index.pop(name, None)
    for name in {*index} - {*self.list_local()}:
      del index[name]
    missing = {n: stamp for n, stamp in listed.items() if n not in index}
    if not missing:
      self.save_index(index)
      return
    # A killed process leaves files that the index does not have.
    self.save_index(index, incoming=sorted(missing))
    try:
      self._download(missing, index)
    finally:
      self.save_index(index)

  def _download(self, missing, index):
    """Copy files in parallel; record each one in the index."""
    size = sum(stamp.size for stamp in missing.values())
    plural = "s" * (len(missing) != 1)
    _log.info(
      f"Fetching {self.url}: {len(missing)} file{plural}, {in_bytes(size)}, to "
      f"{self.path}"
    )
    stop, done, logged = threading.Event(), 0, time.monotonic()

    def fetch(name):
      path, stamp = self.path_of(name), missing[name]
      urls.download(self.url_of(name), path, stamp, stop)
      index[name] = _entry(_local_stamp(path), stamp)
      return stamp.size

    with urls.threads() as pool:
      tasks = [pool.submit(fetch, name) for name in missing]
      try:
        for i, task in enumerate(concurrent.futures.as_completed(tasks), 1):
          done += task.result()
          if time.monotonic() - logged >= progress.SECONDS:
            logged = time.monotonic()
            self.save_index(index, incoming=sorted(missing))
            _log.info(f"  Fetch: {i}/{len(missing)} files, {in_bytes(done)}")
      finally:
        stop.set()
    for part in self.folder.rglob(".*.part"):  # Of former states.
      part.unlink()

  def url_of(self, name: str) -> str:
    """Return the URL of a file by its path below the folder."""
    return f"{self.url}/{name}" if name else self.url

  def path_of(self, name: str) -> pathlib.Path:
    """Return the local path of a file by its path below the folder."""
    return self.path / name if name else self.path

  def _remove(self, name):
    """Remove a local file, and folders that are empty then."""
    path = self.path_of(name)
    path.unlink(missing_ok=True)
    while name and path.parent != self.folder:
      path = path.parent
      try:
        path.rmdir()
      except OSError:
        break

  def load_index(self) -> dict[str, list[int]]:
    """Return size and time of each copied file, local and remote."""
    return self.load_document().get("files", {})

  def load_document(self) -> dict[str, Any]:
    """Return the content of the index; {} where it is missing or corrupt."""
    try:
      found = json.loads((self.folder / _INDEX).read_text(encoding="utf-8"))
      return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
      return {}

  def save_index(self, index: Mapping[str, list[int]], **others: Any) -> None:
    """Write the index; see `load_index`."""
    document = {"url": self.url, "files": dict(index), **others}
    data = json.dumps(document).encode("utf-8", "surrogatepass")
    files.write_local_bytes(self.folder / _INDEX, data)


@functools.cache
def _thread_lock(folder: str) -> threading.Lock:
  del folder
  return threading.Lock()


def unit_of(name: str) -> str:
  """Return the folder of the checkpoint that a file belongs to, "" if none.

  Args:
    name: path of a file, or of a checkpoint, below a run's folder.
  """
  parts = name.split("/")
  for i in range(1, len(parts)):
    if parts[i - 1] in _UNITS and parts[i].isdecimal():
      return "/".join(parts[: i + 1])
  return ""


def in_bytes(size: int) -> str:
  """Return a size as text, such as "12.3 MB"."""
  for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
    if size >= factor:
      return f"{size / factor:.1f} {unit}"
  return f"{size} bytes"


def _entry(local: tuple[int, int], remote: urls.Stamp) -> list[int]:
  return [*local, remote.size, remote.mtime]


def _local_stamp(path: pathlib.Path) -> tuple[int, int]:
  status = path.stat()
  return status.st_size, status.st_mtime_ns


def _is_temporary(name: str) -> bool:
  return name.startswith(".") or _HIDDEN in name
