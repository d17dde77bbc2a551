"""Checkpoints: atomic, asynchronous, by Orbax.

A checkpoint has a checksum of each of its trees. One that cannot be read, or
whose checksum differs, is corrupt: the one before it is used instead.
"""

import contextlib
import errno
import glob
import json
import logging
import os
import pathlib
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from zsad_jax.runs import orbax_manager
from zsad_jax.runtime import distributed
from zsad_jax.types import Params

KEEP = 2  # The last one and, in case it is corrupt, the one before.
DAMAGED = ".damaged"  # Suffix of the folder for corrupt checkpoints.
_CHECKSUMS = "checksums"  # Entry of the metadata, by name of the tree.
# Metadata of version 0.1.0, which had no checksums.
_WITHOUT_CHECKSUMS = frozenset(("step", "epoch", "seconds", "value", "metric"))
_MAX_REASON = 160  # Characters of an error of Orbax.
_log = logging.getLogger(__name__)


class _DamagedError(ValueError):
  """A checkpoint cannot be read."""


class _OtherError(ValueError):
  """A checkpoint holds other trees."""


class Checkpoints:
  """Numbered checkpoints of named trees in a folder.

  A checkpoint is written in the background into a temporary folder that is
  renamed when complete: every listed checkpoint is complete, even if the
  process is killed.

  Args:
    folder: of the checkpoints; created if missing, unless `read_only`.
    keep: number of checkpoints to keep.
    read_only: create, remove and rename nothing, so that a run can be read
      while it is trained.

  Raises:
    OSError: the folder cannot be written.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    *,
    keep: int = KEEP,
    read_only: bool = False,
  ) -> None:
    self._folder = pathlib.Path(folder).absolute()
    self._stack = contextlib.ExitStack()
    self._manager: ocp.CheckpointManager | None = None
    self._failed = False
    if not read_only:
      with self._explained():
        self._folder.mkdir(parents=True, exist_ok=True)
    self._path = self._without_magic()
    if not read_only:
      options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True
      )
      with self._explained():
        self._manager = orbax_manager.Manager(self._path, options=options)

  def _without_magic(self) -> pathlib.Path:
    """Return a path of the folder without the characters *, ? and [.

    Orbax puts the path into a glob pattern: with such characters it finds no
    arrays and writes checkpoints without them. The path is a symbolic link.
    """
    if not glob.has_magic(str(self._folder)):
      return self._folder
    temporary = self._stack.enter_context(
      tempfile.TemporaryDirectory(prefix="zsad_jax_")
    )
    if glob.has_magic(temporary):
      raise ValueError(
        f"The folder for temporary files, {temporary}, has one of *?[ in its "
        "name; set TMPDIR to another folder."
      )
    link = pathlib.Path(temporary) / "checkpoints"
    link.symlink_to(self._folder, target_is_directory=True)
    return link

  @property
  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint; None where there is none."""
    return max(self._steps(), default=None)

  def save(self, step: int, meta: Mapping[str, Any], **trees: Params) -> None:
    """Start to write named trees; return once the arrays are copied.

    Args:
      step: number of the checkpoint.
      meta: JSON values to store with it.
      **trees: trees of arrays by name.

    Raises:
      OSError: this or an earlier checkpoint cannot be written.
    """
    if step == self.latest_step:
      return  # The run was stopped right after it had saved.
    stored = {**meta, _CHECKSUMS: _checksums(meta, trees)}
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    args = ocp.args.Composite(meta=ocp.args.JsonSave(stored), **items)
    with self._explained():
      self._writer.save(step, args=args)

  def restore(self, **like: Params) -> tuple[dict[str, Params], dict[str, Any]]:
    """Read the named trees of the newest checkpoint, and its metadata.

    A corrupt checkpoint is reported, and the one before it is read. Unless
    `read_only`, the corrupt one is moved to the folder
    `<name of the folder>.damaged`, so that its step can be written again.

    Args:
      **like: for each name a tree of arrays with the structure, shapes, types
        and shardings of the result.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: all are corrupt, or hold other trees, of another method or
        other settings.
    """
    errors: dict[int, ValueError] = {}
    while steps := self._steps() - errors.keys():
      step = max(steps)
      try:
        found = self._read(step, like)
      except (_DamagedError, _OtherError) as error:
        # A run that is being trained removes a checkpoint for newer ones.
        if max(self._steps() - errors.keys(), default=step) <= step:
          errors[step] = error
        continue
      for other, error in sorted(errors.items()):
        self._report(other, step, error)
      return found
    raise self._unreadable(errors)

  def meta(self) -> dict[str, Any]:
    """Read the metadata of the newest checkpoint.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: it is corrupt.
    """
    step = self.latest_step
    if step is None:
      raise self._unreadable({})
    try:
      return self._read(step, {})[1]
    except _DamagedError as error:
      raise self._unreadable({step: error}) from error

  def wait(self) -> None:
    """Wait until everything is written.

    Raises:
      OSError: a checkpoint cannot be written.
    """
    with self._explained():
      self._writer.wait_until_finished()

  def close(self) -> None:
    """Wait, and stop the background threads."""
    try:
      if self._manager is None:
        return
      if self._failed:  # The error was raised already.
        with contextlib.suppress(Exception):
          self._manager.close()
        return
      with self._explained():
        self._manager.close()
    finally:
      self._stack.close()

  @property
  def _writer(self) -> ocp.CheckpointManager:
    if self._manager is None:
      raise ValueError(f"{self._folder} was opened to be read only.")
    return self._manager

  def _steps(self) -> set[int]:
    """Return the steps of all complete checkpoints."""
    if self._manager is not None:
      return set(self._manager.all_steps())
    if not self._path.is_dir():
      return set()
    names = [p.name for p in self._path.iterdir() if p.is_dir()]
    return {int(name) for name in names if name.isascii() and name.isdecimal()}

  def _read(self, step, like):
    """Return the trees and the metadata of one checkpoint.

    Raises:
      _OtherError: it holds other trees.
      _DamagedError: it cannot be read.
      OSError: a file must not be read.
    """
    path = self._path / str(step)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    items = {name: ocp.args.StandardRestore(a) for name, a in abstract.items()}
    args = ocp.args.Composite(meta=ocp.args.JsonRestore(), **items)
    try:
      stored = {name: _stored_arrays(path / name) for name in like}
      wanted = {name: _arrays(tree) for name, tree in abstract.items()}
      if problem := _difference(wanted, stored):
        raise _OtherError(problem)
      with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(path, args=args)
      trees, meta = {name: found[name] for name in like}, found["meta"]
      return trees, _checked(step, meta, trees, stored)
    except (_OtherError, _DamagedError, PermissionError):
      raise
    except (jax.errors.JaxRuntimeError, MemoryError):
      raise  # The device has too little memory.
    except Exception as error:  # Corrupt bytes can make Orbax raise anything.
      if "PERMISSION_DENIED" in str(error):
        raise PermissionError(errno.EACCES, _short(error), str(path)) from error
      reason = _short(error).replace(str(self._path), str(self._folder))
      raise _DamagedError(reason) from error

  def _report(self, damaged, used, error):
    """Report a corrupt checkpoint; unless read-only, move it aside."""
    path = self._folder / str(damaged)
    text = f"{path} is damaged ({error}); the one before it, {used}, is used."
    if self._manager is None:
      _log.warning("%s", text)
      return
    folder = self._folder.with_name(self._folder.name + DAMAGED)
    if distributed.is_primary():
      folder.mkdir(exist_ok=True)
      target = folder / str(damaged)
      for number in range(2, 1000):
        if not target.exists():
          break
        target = folder / f"{damaged}_{number}"
      os.rename(path, target)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"damaged checkpoint {damaged}")
    self._manager.reload()
    _log.warning("%s It was moved to %s.", text, folder)

  def _unreadable(self, errors):
    """Return the error for checkpoints of which none can be used."""
    if not errors:
      return FileNotFoundError(f"{self._folder} holds no complete checkpoint.")
    newest = max(errors)
    path = self._folder / str(newest)
    other = [e for e in errors.values() if isinstance(e, _OtherError)]
    if other:
      return ValueError(
        f"{path} does not fit this configuration; use another --workdir, or "
        f"the settings it was made with. ({other[0]})"
      )
    rest = ", ".join(str(step) for step in sorted(errors)[:-1])
    also = f", and so is {rest} before it" if rest else ""
    return ValueError(
      f"{path} is damaged ({errors[newest]}){also}; there is no other "
      f"checkpoint. Copy {self._folder} from a backup, or remove "
      f"{self._folder.parent} and train again."
    )

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """Turn errors of writing into one line that names the folder."""
    try:
      yield
    except (OSError, ValueError) as error:
      self._failed = True
      reason = _reason_of_system(error)
      if not reason:
        raise
      number, text = reason
      explained = OSError(f"{text.format(folder=self._folder)}")
      explained.errno = number
      raise explained from error


_NO_SPACE = (
  "There is no space left in {folder}: free some, then the same command goes "
  "on from the last checkpoint."
)
_NOT_WRITABLE = "{folder} cannot be written (%s): choose another --workdir."
# Number and text of a system's error, also as TensorStore words it.
_REASONS = {
  errno.ENOSPC: ("No space left on device", _NO_SPACE),
  errno.EDQUOT: ("Disk quota exceeded", _NO_SPACE),
  errno.EROFS: ("Read-only file system", _NOT_WRITABLE),
  errno.EACCES: ("Permission denied", _NOT_WRITABLE),
  errno.ENOTDIR: ("Not a directory", _NOT_WRITABLE),
  errno.EEXIST: ("File exists", _NOT_WRITABLE),
  errno.ENAMETOOLONG: ("File name too long", _NOT_WRITABLE),
}


def _reason_of_system(error: BaseException) -> tuple[int, str] | None:
  """Return the number and the explanation of an error of the system."""
  for number, (text, explanation) in _REASONS.items():
    same = isinstance(error, OSError) and error.errno == number
    if same or text in str(error):
      return number, explanation.replace("%s", text.lower())
  return None


def _short(error: BaseException) -> str:
  """Return the beginning of an error's message in one line."""
  text = " ".join(str(error).split())
  cut = text[:_MAX_REASON] + "..." * (len(text) > _MAX_REASON)
  return f"{type(error).__name__}: {cut}"


def _arrays(tree: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
  """Return shape and data type of every array of a tree by its path."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return {name(path): (tuple(x.shape), x.dtype) for path, x in leaves}


def _stored_arrays(path: pathlib.Path) -> dict[str, tuple[Any, Any]]:
  """Return shape and data type of every array of a stored tree."""
  if not path.is_dir():
    raise FileNotFoundError(f"{path.name} is missing")
  handler: Any = ocp.StandardCheckpointHandler()
  found = handler.metadata(path)
  return _arrays(found.tree)


def _difference(wanted, stored) -> str:
  """Return the first difference of named trees of shapes, "" if none."""
  for tree, arrays in wanted.items():
    for name, (shape, _) in arrays.items():
      if name not in stored[tree]:
        return f"{tree}/{name} is missing"
      if stored[tree][name][0] != shape:
        found = stored[tree][name][0]
        return f"{tree}/{name} has shape {found}, expected {shape}"
    if unknown := sorted(stored[tree].keys() - arrays.keys()):
      return f"{tree}/{unknown[0]} is unknown"
  return ""


def _checksums(meta, trees) -> dict[str, int]:
  """Return CRC-32 of the metadata and of each tree of arrays."""
  text = json.dumps(dict(meta), sort_keys=True)
  result = {"meta": zlib.crc32(text.encode())}
  for name, tree in trees.items():
    value = 0
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
      value = zlib.crc32(jax.tree_util.keystr(path).encode(), value)
      value = zlib.crc32(np.asarray(x, order="C").tobytes(), value)
    result[name] = value
  return result


def _checked(step, meta, trees, stored) -> dict[str, Any]:
  """Return the metadata of a checkpoint without its checksums.

  Checkpoints of older versions have none.

  Raises:
    _DamagedError: a checksum differs, or an entry is missing.
  """
  if not isinstance(meta, dict) or meta.get("step") != step:
    raise _DamagedError(f"meta is no metadata of step {step}")
  if _CHECKSUMS not in meta and meta.keys() - _WITHOUT_CHECKSUMS:
    raise _DamagedError("the checksums are missing")
  expected = meta.pop(_CHECKSUMS, {})
  found = _checksums(meta, trees)
  for name, tree in trees.items():
    # A value that was converted to another type has another checksum.
    types = {path: dtype for path, (_, dtype) in _arrays(tree).items()}
    if types != {path: dtype for path, (_, dtype) in stored[name].items()}:
      del found[name]
  for name, value in found.items():
    if expected and expected.get(name, value) != value:
      raise _DamagedError(f"the checksum of {name} is wrong")
  return meta
