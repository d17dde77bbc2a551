"""Stores of rows of equal shapes, one row for each image.

A row is a tree of arrays. Rows are stored in memory, on disk or on the devices;
every `Store` returns the values that were written.
"""

import contextlib
import fcntl
import logging
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

_log = logging.getLogger(__name__)
_DONE, _CHECKS = "done.npy", "crc32.npy"


@runtime_checkable
class Store(Protocol):
  """Storage of a fixed number of rows."""

  def missing(self) -> list[int]:
    """Return the numbers of the rows that are not final yet."""
    ...

  def write(self, numbers: Any, rows: Any, *, done: Any = True) -> None:
    """Write rows.

    Args:
      numbers: (n,) numbers of the rows.
      rows: tree of arrays (n, ...), their values.
      done: whether they are final, one bool for all or (n,); a row that is not
        stays among the missing.
    """
    ...

  def read(self, numbers: np.ndarray) -> Any:
    """Read rows.

    Args:
      numbers: of the rows, of any shape.

    Returns:
      Tree of arrays (*numbers.shape, ...).
    """
    ...


class Memory(Store):
  """Rows in the host's memory.

  Args:
    row: tree of jax.ShapeDtypeStruct, one row.
    count: number of rows.
  """

  def __init__(self, row: Any, count: int) -> None:
    self._leaves, self._tree = jax.tree.flatten(row)
    self._done = np.zeros(count, bool)
    self._arrays = self._allocate(count)

  def _allocate(self, count: int) -> list[np.ndarray]:
    """Return an array (count, ...) for each leaf of a row."""
    return [np.empty((count, *x.shape), x.dtype) for x in self._leaves]

  def missing(self) -> list[int]:
    """Return the numbers of the rows that are not final yet."""
    return np.flatnonzero(~self._done).tolist()

  def write(self, numbers: Any, rows: Any, *, done: Any = True) -> None:
    """Write rows; see `Store`."""
    for array, new in zip(self._arrays, jax.tree.leaves(rows)):
      array[numbers] = np.asarray(new)
    self._done[numbers] = done

  def read(self, numbers: np.ndarray) -> Any:
    """Read rows; see `Store`."""
    found = [array[numbers] for array in self._arrays]
    return jax.tree.unflatten(self._tree, found)


class Disk(Memory):
  """Rows in memory-mapped files; those of an earlier run are reused.

  The checksum of a row is verified when the row is first read.

  Args:
    row: see `Memory`.
    count: see `Memory`.
    folder: of these rows alone; created if missing.

  Raises:
    OSError: the disk has no room; all of it is reserved at once.
  """

  def __init__(
    self, row: Any, count: int, folder: str | os.PathLike[str]
  ) -> None:
    self.folder = pathlib.Path(folder)
    self.folder.mkdir(parents=True, exist_ok=True)
    super().__init__(row, count)
    self._verified = np.zeros(count, bool)

  def _allocate(self, count: int) -> list[np.ndarray]:
    shapes = [((count, *x.shape), x.dtype) for x in self._leaves]
    if not (self.folder / _DONE).is_file():
      for i, (shape, dtype) in enumerate(shapes):
        _reserve(self._path(i), shape, dtype)
      _reserve(self.folder / _CHECKS, (count, len(shapes)), np.uint32)
      _reserve(self.folder / _DONE, (count,), bool)
    self._done = np.lib.format.open_memmap(self.folder / _DONE, "r+")
    self._checks = np.lib.format.open_memmap(self.folder / _CHECKS, "r+")
    self._mapped = [
      np.lib.format.open_memmap(self._path(i), "r+") for i in range(len(shapes))
    ]
    # NumPy's format has no name for bfloat16: it is stored as its bytes.
    return [x.view(dtype) for x, (_, dtype) in zip(self._mapped, shapes)]

  def _path(self, leaf: int) -> pathlib.Path:
    """Return the file of a leaf."""
    return self.folder / f"{leaf}.npy"

  def write(self, numbers: Any, rows: Any, *, done: Any = True) -> None:
    """Write rows; see `Store`."""
    for leaf, new in enumerate(jax.tree.leaves(rows)):
      new = np.asarray(new)
      self._arrays[leaf][numbers] = new
      self._checks[numbers, leaf] = [_crc(row) for row in new]
      self._mapped[leaf].flush()
    self._checks.flush()
    self._done[numbers] = done  # Last: marked rows are complete.
    self._done.flush()

  def read(self, numbers: np.ndarray) -> Any:
    """Read rows, and verify the checksums of those read first."""
    for number in np.unique(numbers[~self._verified[numbers]]):
      for leaf, array in enumerate(self._arrays):
        if _crc(array[number]) != self._checks[number, leaf]:
          raise ValueError(
            f"{self._path(leaf)}: row {number} is corrupt. Remove the folder "
            f"{self.folder}; its features are computed again."
          )
      self._verified[number] = True
    return super().read(numbers)


class Device(Store):
  """Rows on the devices, in batches that are split over the devices.

  Args:
    row: see `Memory`.
    count: see `Memory`.
    mesh: devices, each of which stores the same number of rows.
    batch_size: rows of a `write`, a multiple of the number of devices.
  """

  def __init__(
    self, row: Any, count: int, mesh: jax.sharding.Mesh, batch_size: int
  ) -> None:
    self._count, self._size = count, batch_size
    batches = -(-count // batch_size)
    split, self._batch_sharding = (
      NamedSharding(mesh, p) for p in (P(None, "data"), P("data"))
    )
    zeros = lambda x: jnp.zeros((batches, batch_size, *x.shape), x.dtype)
    make = jax.jit(lambda: jax.tree.map(zeros, row), out_shardings=split)
    self._rows, self._written = make(), 0
    put = lambda rows, new, i: jax.tree.map(
      lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, i, 0), rows, new
    )
    self._put = jax.jit(put, donate_argnums=0)
    take = lambda rows, i, j: jax.tree.map(lambda a: a[i, j], rows)
    self._take = jax.jit(take, out_shardings=self._batch_sharding)

  def missing(self) -> list[int]:
    """Return the numbers of the rows that are not final yet."""
    return list(range(self._written, self._count))

  def write(self, numbers: Any, rows: Any, *, done: Any = True) -> None:
    """Write the next batch of rows, padded if it is the last one."""
    del numbers, done  # Batches come in order, and all rows are final.
    self._rows = self._put(self._rows, rows, self._written // self._size)
    self._written += self._size

  def read(self, numbers: np.ndarray) -> Any:
    """Read the rows of this process's numbers (b, ...), split along b."""
    position = (
      jax.make_array_from_process_local_data(self._batch_sharding, part)
      for part in divmod(numbers, self._size)
    )
    return self._take(self._rows, *position)


def _reserve(path: pathlib.Path, shape: tuple[int, ...], dtype: Any) -> None:
  """Create an array file with all its disk blocks allocated.

  Writing to a mapped file without blocks kills the process when the disk is
  full.
  """
  dtype = np.dtype(dtype)
  portable = dtype if dtype.isbuiltin == 1 else np.dtype(f"V{dtype.itemsize}")
  try:
    mapped = np.lib.format.open_memmap(path, "w+", portable, shape)
    size = path.stat().st_size
    del mapped
    with open(path, "r+b") as f:
      os.posix_fallocate(f.fileno(), 0, size)
  except OSError as error:
    path.unlink(missing_ok=True)
    reason = f"No room for features: {error.strerror}"
    raise OSError(error.errno, reason, str(path)) from error


def _crc(row: Any) -> int:
  """Return the CRC-32 of a row's bytes."""
  return zlib.crc32(np.ascontiguousarray(row).view(np.uint8).data)


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
  """Hold a lock on a folder; other processes wait for it."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / "lock", "a") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      _log.info("Waiting for another process that writes %s.", folder)
      fcntl.flock(f, fcntl.LOCK_EX)
    yield
