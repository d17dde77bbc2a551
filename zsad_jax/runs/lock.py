"""Lock of a workdir: one process at a time trains a run.

The file `lock.json` names the host and the process that hold it. It appears
with its whole content at once, as a hard link to a temporary file, which is
atomic on shared file systems as well. The holder also keeps a kernel lock
(flock) on the file, which ends with the process, however it ends: a file that
is left by a killed process of the same machine is recognised and replaced. The
state of another machine's processes is unknown here; such a file is never
replaced. Reading a run needs no lock.

Of a remote workdir, the local copy has this lock, and the remote folder a file
with the same content, see `runtime.mirror`.
"""

import contextlib
import errno
import fcntl
import functools
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from zsad_jax.runtime import distributed, files, mirror, stopping, urls

FILE = "lock.json"
_PROC = pathlib.Path("/proc")
_held: set[pathlib.Path] = set()  # By this process.


@contextlib.contextmanager
def hold(
  workdir: str | os.PathLike[str], flag: str = "--workdir"
) -> Iterator[None]:
  """Hold the lock of a workdir, which is created if missing.

  Of the processes of one job, only the primary one locks. Within a process,
  the lock may be held several times.

  Args:
    workdir: the folder.
    flag: the flag that names it, for messages.

  Raises:
    ValueError: another process holds it, or held it on another host.
    OSError: the folder or the file cannot be written.
  """
  urls.refuse(workdir, "workdir")
  path = pathlib.Path(workdir).absolute() / FILE
  if path in _held or not distributed.is_primary():
    yield
    return
  if remote := mirror.of(path):
    check_remote = functools.partial(_check_remote, remote.url, path)
    remote.hold_lock(_content(), check_remote)
  created = not path.parent.exists()
  path.parent.mkdir(parents=True, exist_ok=True)
  with files.explained(path):
    descriptor = _acquire(path, flag)
  _held.add(path)
  try:
    with stopping.at_end(lambda: _remove(path, descriptor)):
      yield
  finally:
    _held.discard(path)
    _remove(path, descriptor)
    os.close(descriptor)
    if created:
      with contextlib.suppress(OSError):  # It is not empty.
        path.parent.rmdir()


def check(workdir: str | os.PathLike[str]) -> None:
  """Check that no other process trains in a workdir; write nothing.

  Raises:
    ValueError: see `hold`.
  """
  path = pathlib.Path(workdir).absolute() / FILE
  if path in _held:
    return
  if (holder := _read(path)) is not None:
    if not _is_stale(path, holder):
      raise ValueError(_refusal(path, holder))
  if (remote := mirror.of(path)) and (text := remote.read_lock()) is not None:
    _check_remote(remote.url, path, text)


def _check_remote(url: str, path: pathlib.Path, text: str) -> None:
  """Refuse the remote lock of another process, unless that has ended."""
  holder = _parse(text)
  if not (holder and _is_stale(path, holder)):
    raise ValueError(_refusal(f"{url}/{FILE}", holder))


def _remove(path: pathlib.Path, descriptor: int) -> None:
  """Remove the file, unless the user did and another process locked again."""
  with contextlib.suppress(FileNotFoundError):
    if os.path.samestat(os.fstat(descriptor), path.stat()):
      path.unlink()


def _acquire(path: pathlib.Path, flag: str) -> int:
  """Create the file; return its descriptor, which has the kernel lock."""
  # Processes of this machine must not replace one stale file twice.
  with files.locked(path.parent):
    for _ in range(100):
      descriptor = _create(path)
      if descriptor is not None:
        return descriptor
      holder = _read(path)
      if holder is None:
        continue  # Released since.
      if not _is_stale(path, holder):
        raise ValueError(_refusal(path, holder, flag))
      path.unlink(missing_ok=True)
  raise ValueError(f"{path} is created and removed by other processes.")


def _create(path: pathlib.Path) -> int | None:
  """Create and lock the file; None if it exists."""
  temporary = files.temporary_name(path)
  flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
  descriptor = os.open(temporary, flags, 0o644)
  try:
    os.write(descriptor, _content().encode())
    with contextlib.suppress(OSError):  # Not every file system has it.
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
      os.link(temporary, path)
      return descriptor
    except FileExistsError:
      os.close(descriptor)
      return None
    except OSError as error:
      if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
        raise
    # No hard links, as on FAT.
    try:
      os.close(os.open(path, flags, 0o644))
    except FileExistsError:
      os.close(descriptor)
      return None
    os.replace(temporary, path)
    return descriptor
  finally:
    temporary.unlink(missing_ok=True)


def _content() -> str:
  """Return the content of the file."""
  return json.dumps(_identity(), indent=1) + "\n"


def _identity() -> dict[str, Any]:
  """Return the host and this process."""
  return {
    "host": socket.gethostname(),
    "machine": _text("/etc/machine-id"),
    "boot": _text("/proc/sys/kernel/random/boot_id"),
    "namespace": _namespace(),
    "pid": os.getpid(),
    "started": _started(os.getpid()),
    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
  }


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Return the holder; None without a file, {} where it is not readable."""
  try:
    return _parse(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return None
  except ValueError:
    return {}


def _parse(text: str) -> dict[str, Any]:
  """Return the holder of a lock; {} where its content is corrupt."""
  try:
    found = json.loads(text)
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _is_stale(path: pathlib.Path, holder: dict[str, Any]) -> bool:
  """Return whether the holder is known to have ended."""
  here = _identity()
  same = lambda *keys: all(holder.get(k) == here[k] for k in keys)
  if not same("host", "machine"):
    # Containers of a machine have names of their own, but the same kernel.
    return bool(here["boot"]) and same("boot") and files.is_free(path) is True
  if not same("boot"):
    return True  # The machine was started again.
  free = files.is_free(path)
  if free is False or not same("namespace"):
    return free is True
  return _started(holder.get("pid", 0)) != holder.get("started")


def _refusal(path, holder, flag="--workdir") -> str:
  """Return the message for a workdir that is in use.

  Args:
    path: the file, or its URL.
    holder: its content.
    flag: the flag that names the folder.
  """
  workdir = str(path).removesuffix(f"/{FILE}")
  if not holder:
    return (
      f"{path} names no process: it is corrupt. If no other process uses "
      "the folder, remove the file."
    )
  process = f"process {holder.get('pid')} on {holder.get('host')}"
  since = f"since {holder.get('since', 'an unknown time')}"
  if holder.get("host") == socket.gethostname():
    return (
      f"{workdir} is in use by {process}, {since}; choose another "
      f"{flag}, or wait until it ends ({path})."
    )
  return (
    f"{workdir} is in use by {process}, {since}. Its state is not known "
    f"on this host: if it has ended, remove {path}."
  )


def _started(pid: int) -> int | None:
  """Return the start time of a process in ticks; None if there is none.

  A number may be given to a new process; the start time tells them apart.
  """
  try:
    text = (_PROC / str(pid) / "stat").read_text()
    return int(text.rpartition(")")[2].split()[19])
  except (OSError, ValueError, IndexError):
    pass
  if _PROC.is_dir():
    return None
  try:
    os.kill(int(pid), 0)
  except (OSError, OverflowError):
    return None
  return 0


def _namespace() -> str:
  """Return the namespace of process numbers, such as that of a container."""
  try:
    return os.readlink("/proc/self/ns/pid")
  except OSError:
    return ""


def _text(path: str) -> str:
  """Return the content of a system file; "" if it is missing."""
  try:
    return pathlib.Path(path).read_text().strip()
  except OSError:
    return ""
