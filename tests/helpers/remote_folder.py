"""An object store for tests: gs:// is a local folder, through etils' epath.

Set `$ZSAD_TEST_STORE` for the commands of `small_run`.
"""

import collections
import contextlib
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator

from etils import epath
from etils.epath import gpath, stat_utils

STORE = "ZSAD_TEST_STORE"


class Store:
  """State of the store.

  Attributes:
    root: gs://bucket/a is the file bucket/a of this folder.
    before: called with the name and the URL's path before each request; may
      raise.
    requests: number of requests by name.
  """

  root = pathlib.Path()
  before: Callable[[str, str], None] | None = None
  requests: collections.Counter[str] = collections.Counter()
  lock = threading.Lock()


class FolderPath(epath.Path):
  """A path of the store; a file exists once it was written and closed."""

  def _local(self, name: str) -> pathlib.Path:
    path = "/".join(self.parts[1:])
    with Store.lock:
      Store.requests[name] += 1
      if Store.before:
        Store.before(name, path)
    return Store.root / path

  def stat(self):
    path = self._local("stat")
    found = path.stat()
    if path.is_dir() and not any(p.is_file() for p in path.rglob("*")):
      raise FileNotFoundError(path)  # A store has no empty folders.
    return stat_utils.StatResult(
      is_directory=path.is_dir(),
      length=found.st_size,
      mtime=int(found.st_mtime),
    )

  def iterdir(self):
    names = sorted(p.name for p in self._local("list").iterdir())
    # Some stores list the folder itself.
    yield self
    yield from (self / name for name in names)

  def open(self, mode="r", **_):
    path = self._local("write" if "w" in mode else "read")
    if "w" in mode:
      return _writing(path)
    return path.open(mode)

  def unlink(self, missing_ok=False):
    self._local("remove").unlink(missing_ok=missing_ok)

  def rmtree(self, missing_ok=False):
    shutil.rmtree(self._local("remove folder"), ignore_errors=missing_ok)


@contextlib.contextmanager
def _writing(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  draft = path.with_name(f".{path.name}.draft")
  with draft.open("wb") as file:
    yield file
  os.replace(draft, path)


def register(root: str | os.PathLike[str]) -> None:
  """Let gs:// be a folder in this process."""
  Store.root, Store.before = pathlib.Path(root), None
  Store.requests = collections.Counter()
  epath.register_path_cls("gs://")(FolderPath)


@contextlib.contextmanager
def registered(root: pathlib.Path) -> Iterator[type[Store]]:
  """Let gs:// be a folder for a while."""
  register(root)
  try:
    yield Store
  finally:
    epath.register_path_cls("gs://")(gpath.PosixGPath)


def files(folder: pathlib.Path) -> dict[str, bytes]:
  """Return the content of all files below a folder that are not hidden."""
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
    and not any(p.startswith(".") for p in path.relative_to(folder).parts)
  }
