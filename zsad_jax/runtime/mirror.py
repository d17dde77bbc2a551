"""Remote folders of results: a local folder whose changes are uploaded.

Commands write to the local folder, as to any other. At the start it receives
what the remote folder holds. Changes are uploaded in the background whenever
training writes measurements, and at the end of the command, also at an error
or a signal. A checkpoint is uploaded file by file, while a file
`<step>.incomplete` next to it makes readers ignore it.

Several processes of one job share the local folder: its cache folder has to be
on a file system that all of them share.
"""

import concurrent.futures
import contextlib
import fcntl
import logging
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from zsad_jax.runtime import copies, distributed, environment, stopping, urls

_INTERVAL = 10.0  # Seconds between two uploads in the background.
_ROUNDS = 5  # Uploads at the end, until nothing changes any more.
_USERS = "users"  # File that each process that uses the folder locks.
_SETTLE = 2.0  # Seconds until a lock that was written is read again.
_TOKEN = "token"
# Flags of folders and files that commands write. A workdir is also read.
_WRITTEN = ("workdir", "output", "export", "json")
# Flags of what is only read; `copies.local` is called where they are used.
_READ = ("data", "data_root", "root", "references", "anomalous", "images")
_READ += ("anomalous_masks", "source", "checkpoint", "arguments")
_active: dict[pathlib.Path, "Mirror"] = {}
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def of_flags(options: Any) -> Iterator[None]:
  """Replace the URLs of folders to write by local folders.

  Args:
    options: absl flags; their values are replaced.

  Raises:
    ValueError: a URL is not supported, or not by this flag.
    OSError: a remote folder cannot be read or written.
  """
  found = {}
  for name in options:
    value = options[name].value
    if "." in name or not isinstance(value, (str, list)):
      continue  # Fields of a configuration are checked with the others.
    values = value if isinstance(value, list) else [value]
    for each in filter(urls.is_url, values):
      _check_flag(name, each)
      if name in _WRITTEN:
        found[name] = values
  with contextlib.ExitStack() as stack:
    for name, values in found.items():
      probe = name != "workdir"
      opened = [_open(v, stack, probe) if urls.is_url(v) else v for v in values]
      single = not isinstance(options[name].value, list)
      options[name].value = opened[0] if single else opened
    yield


def _check_flag(name, value):
  """Check a URL among the values of a flag."""
  if name not in (*_WRITTEN, *_READ):
    urls.refuse(value, f"--{name}")
  try:
    urls.check(value, write=name in _WRITTEN)
  except ValueError as error:
    label = "" if name == "arguments" else f"--{name}: "
    raise ValueError(f"{label}{error}") from error


def _open(url: str, stack: contextlib.ExitStack, probe: bool) -> str:
  """Open a mirror in the primary process; return its local path."""
  mirror = Mirror(url)
  if not distributed.is_primary():
    _share(mirror, "", "")
    return str(mirror.path)
  several = jax.distributed.is_initialized() and jax.process_count() > 1
  try:
    stack.enter_context(mirror.opened(probe=probe))
  except (ValueError, OSError) as error:
    if several:
      _share(mirror, str(error), "")
    raise
  if several:
    token = secrets.token_hex(8)
    (mirror.folder / _TOKEN).write_text(token)
    _share(mirror, "", token)
  return str(mirror.path)


def _share(mirror, error, token):
  """Check that all processes see the folder that the primary one opened."""
  found = distributed.all_gather_object([error, token])
  error, token = found[0]
  if error:
    raise OSError(error)
  path = mirror.folder / _TOKEN
  same = path.is_file() and path.read_text() == token
  if not all(distributed.all_gather_object(bool(same))):
    raise ValueError(
      f"{mirror.url}: with several hosts, the local copy of a folder that is "
      f"written has to be shared, but {mirror.folder} is not: set "
      f"{environment.CACHE} to a folder that all hosts share, or mount the "
      "bucket on all of them (gcsfuse) and give its local path."
    )


def of(path: str | os.PathLike[str]) -> "Mirror | None":
  """Return the mirror that a local path belongs to; None if to none."""
  found = pathlib.Path(path).absolute()
  for root, mirror in _active.items():
    if root == found or root in found.parents:
      return mirror
  return None


def request(path: str | os.PathLike[str]) -> None:
  """Upload the changes of a local path in the background, if it is a mirror.

  A failure is reported; it is an error only at the end of the command.
  """
  if found := of(path):
    found.request()


class Mirror(copies.Copy):
  """Local folder whose changes are uploaded; see the module."""

  def __init__(self, url: str | os.PathLike[str]) -> None:
    super().__init__(url, "mirror")
    copies.add_origin(self.path, self.url)
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._task: concurrent.futures.Future[int] | None = None
    self._last = time.monotonic()
    self._lock: str | None = None  # Content of the remote lock.

  @contextlib.contextmanager
  def opened(self, *, probe: bool = False) -> Iterator[None]:
    """Download what the remote folder holds; upload changes at the end.

    Args:
      probe: check at the start that files can be written.

    Raises:
      OSError: the remote folder cannot be read or written.
    """
    if probe:
      name = f"{self.url}.{secrets.token_hex(4)}.probe"
      urls.write_text(name, "")
      urls.remove(name)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
      with self.locked():
        if self._is_unused():
          self._receive()
        else:
          _log.info(f"{self.path} is in use here: its files are used as is.")
        users = stack.enter_context(open(self.folder / _USERS, "ab"))
        with contextlib.suppress(OSError):  # Not every file system has it.
          fcntl.flock(users, fcntl.LOCK_SH)
      _log.info(f"The local copy of {self.url} is {self.path}")
      _active[self.path] = self
      stack.callback(_active.pop, self.path)
      try:
        yield
      except BaseException as error:
        self._end(error)
        raise
      self._end(None)

  def _is_unused(self) -> bool:
    """Return whether no other process of this machine uses the folder."""
    with open(self.folder / _USERS, "ab") as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        return False
      except OSError:  # Not every file system has it.
        return True
      return True

  def _receive(self) -> None:
    """Download remote changes, unless only the local files changed."""
    for _ in range(3):
      with contextlib.suppress(FileNotFoundError):  # Removed since.
        self._merge(self.list_remote())
        return
    self._merge(self.list_remote())

  def _merge(self, listed: Mapping[str, urls.Stamp]) -> None:
    document, local = self.load_document(), self.list_local()
    index = document.get("files", {})
    own = {*document.get("pending", ())}  # Being uploaded when last killed.
    index = {n: e for n, e in index.items() if n in listed or n in local}
    remote = {n for n, s in listed.items() if index.get(n, [])[2:] != _list(s)}
    remote |= index.keys() - listed.keys()
    unsent = _changed(index, local) - {*document.get("incoming", ())}
    if not remote - own:
      if unsent:
        _log.info(f"{len(unsent)} files of {self.path} are still to upload.")
      return
    if unsent:
      stamp = time.strftime("%Y%m%d-%H%M%S")
      aside = self.path.with_name(f"{self.path.name}.unsent-{stamp}")
      os.rename(self.path, aside)
      _log.warning(
        f"{self.url} was changed elsewhere, and the files here were not all "
        f"uploaded: they are now in {aside}; the run goes on from {self.url}."
      )
    self.take(listed)

  def request(self) -> None:
    """Upload changes in the background, if the last upload is some time ago."""
    if self._task is not None:
      if not self._task.done():
        return
      self._report()
    if time.monotonic() - self._last >= _INTERVAL:
      self._task = self._pool.submit(self.send)

  def _report(self) -> None:
    """Report the failure of the upload in the background."""
    task, self._task = self._task, None
    self._last = time.monotonic()
    if task and (error := task.exception()):
      _log.warning(f"{error} It is tried again later.")

  def _end(self, error: BaseException | None) -> None:
    """Upload all changes; of another error, keep that one."""
    sent = 0
    try:
      with stopping.postponed():
        sent = self._send_all()
    except OSError as problem:
      text = (
        f"{problem} The results are in {self.path}: the same command uploads "
        "them at its start or end."
      )
      if error is None:
        raise OSError(text) from problem
      error.add_note(text)
    except stopping.Stopped:
      if not isinstance(error, stopping.Stopped):
        raise
    if sent:
      _log.info(f"{self.url} has all results.")

  def _send_all(self) -> int:
    """Upload until nothing changes any more; release the lock."""
    try:
      if self._task is not None:
        concurrent.futures.wait([self._task])
        self._report()
      sent = 0
      for _ in range(_ROUNDS):
        number = self.send()
        sent += number
        if not number:
          break
      return sent
    finally:
      self._release_lock()

  def send(self) -> int:
    """Upload the present changes; return the number of files.

    Raises:
      OSError: a file cannot be read or written.
    """
    with self.locked():
      index, local = self.load_index(), self.list_local()
      changed = _changed(index, local)
      stale = set()
      if self._lock:  # Parts of killed uploads.
        known = {copies.unit_of(name) for name in local}
        stale, self.incomplete = self.incomplete - known, set()
      if not (changed or stale):
        return 0
      self.save_index(index, pending=sorted(changed))
      units = {copies.unit_of(name) for name in changed} - {""}
      shrunk = {copies.unit_of(n) for n in changed - local.keys()} - {""}
      try:
        for unit in sorted(units - shrunk):
          self._send_unit(unit, changed, index)
        plain = {name for name in changed if not copies.unit_of(name)}
        self._send_files(plain & local.keys(), index)
        for name in plain - local.keys():
          urls.remove(self.url_of(name))
          del index[name]
        for unit in sorted(shrunk | stale):
          self._remove_unit(unit, index)
      except BaseException:
        self.save_index(index, pending=sorted(changed))
        raise
      self.save_index(index)
      return len(changed) + len(stale)

  def _send_unit(self, unit, changed, index):
    """Upload the changes of a checkpoint; readers ignore it meanwhile."""
    marker = self.url_of(unit + copies.INCOMPLETE)
    if not any(copies.unit_of(name) == unit for name in index):
      urls.remove_folder(self.url_of(unit))  # Part of a killed upload.
    urls.write_text(marker, "")
    names = {name for name in changed if copies.unit_of(name) == unit}
    sent: dict[str, list[int]] = {}
    self._send_files(names, sent)
    if len(sent) < len(names):  # It is being removed.
      self._remove_unit(unit, index)
      return
    urls.remove(marker)
    index.update(sent)

  def _remove_unit(self, unit, index):
    """Remove a remote checkpoint; readers ignore it meanwhile."""
    marker = self.url_of(unit + copies.INCOMPLETE)
    urls.write_text(marker, "")
    urls.remove_folder(self.url_of(unit))
    urls.remove(marker)
    for name in [n for n in index if copies.unit_of(n) == unit]:
      del index[name]

  def _send_files(self, names, index):
    """Upload files in parallel; record each one in the index."""

    def send(name):
      path = self.path_of(name)
      try:
        status = path.stat()  # Before it is read: later changes count.
        size, remote = urls.upload(path, self.url_of(name))
      except FileNotFoundError:
        return name, None  # Removed since.
      return name, [size, status.st_mtime_ns, remote.size, remote.mtime]

    with urls.threads() as pool:
      for name, entry in pool.map(send, sorted(names)):
        if entry:
          index[name] = entry

  def read_lock(self) -> str | None:
    """Return the content of the remote lock; None where there is none."""
    return urls.read_text(self.url_of(copies.LOCK))

  def hold_lock(self, text: str, check: Callable[[str], None]) -> None:
    """Hold the remote lock until all results are uploaded.

    Through epath no file can be created atomically. A process that writes the
    lock at the same time is noticed, if its requests take less than 2 s.

    Args:
      text: content of the lock, which names its holder.
      check: raises ValueError for the content of a lock that is held.
    """
    urls.check(self.url, write=True)
    if (found := self.read_lock()) is not None:
      check(found)
    urls.write_text(self.url_of(copies.LOCK), text)
    time.sleep(_SETTLE)
    if (found := self.read_lock()) != text:
      check(found or "")
    self._lock = text
    with self.locked():
      self._receive()  # Another machine may have uploaded since.

  def _release_lock(self) -> None:
    """Remove the remote lock, unless the user did, and another one holds it."""
    text, self._lock = self._lock, None
    with contextlib.suppress(OSError):
      if text and self.read_lock() == text:
        urls.remove(self.url_of(copies.LOCK))


def _changed(
  index: Mapping[str, list[int]], local: Mapping[str, tuple[int, int]]
) -> set[str]:
  """Return the files that are new, changed or removed since the last upload."""
  new = {n for n, stamp in local.items() if index.get(n, [])[:2] != [*stamp]}
  return new | (index.keys() - local.keys())


def _list(stamp: urls.Stamp) -> list[int]:
  return [stamp.size, stamp.mtime]
