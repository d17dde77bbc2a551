"""Rows of equal shapes, one for each image: in memory, on disk, on devices.

Rows are trees of arrays. Each kind of store has `missing`, `write` and `read`;
they give the same values.
"""

import contextlib
import fcntl
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

_DONE, _CHECKS = "done.npy", "crc32.npy"


class Memory:
  """Rows in the host's memory.

  Args:
    row: tree of jax.ShapeDtypeStruct, one row.
    count: number of rows.
  """

  def __init__(self, row, count: int):
    self._leaves, self._tree = jax.tree.flatten(row)
    self._done = np.zeros(count, bool)
    self._arrays = self._allocate(count)

  def _allocate(self, count):
    return [np.empty((count, *x.shape), x.dtype) for x in self._leaves]

  def missing(self) -> list[int]:
    """Numbers of the rows that were not written yet."""
    return np.flatnonzero(~self._done).tolist()

  def write(self, numbers: Any, rows, *, done: Any = True) -> None:
    """Writes rows, a tree of arrays (n, ...).

    Args:
      numbers: (n,) of the rows.
      rows: their values.
      done: whether they are final, for all or for each; one that is not stays
        among the missing.
    """
    for array, new in zip(self._arrays, jax.tree.leaves(rows)):
      array[numbers] = np.asarray(new)
    self._done[numbers] = done

  def read(self, numbers):
    """Rows of numbers of any shape: a tree of arrays (*numbers.shape, ...)."""
    found = [array[numbers] for array in self._arrays]
    return jax.tree.unflatten(self._tree, found)


class Disk(Memory):
  """Rows in memory-mapped files; those of an earlier run are used.

  A row carries a checksum, which is compared when it is first read.

  Args:
    row, count: see `Memory`.
    folder: of these rows alone; made if missing.

  Raises:
    OSError: the disk has not the room, which is reserved at once.
  """

  def __init__(self, row, count: int, folder: str | os.PathLike[str]):
    self.folder = pathlib.Path(folder)
    self.folder.mkdir(parents=True, exist_ok=True)
    super().__init__(row, count)
    self._trusted = np.zeros(count, bool)

  def _allocate(self, count):
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

  def _path(self, leaf):
    return self.folder / f"{leaf}.npy"

  def write(self, numbers, rows, *, done=True):
    for leaf, new in enumerate(jax.tree.leaves(rows)):
      new = np.asarray(new)
      self._arrays[leaf][numbers] = new
      self._checks[numbers, leaf] = [_crc(row) for row in new]
      self._mapped[leaf].flush()
    self._checks.flush()
    self._done[numbers] = done  # Last: what is marked is whole.
    self._done.flush()

  def read(self, numbers):
    for number in np.unique(numbers[~self._trusted[numbers]]):
      for leaf, array in enumerate(self._arrays):
        if _crc(array[number]) != self._checks[number, leaf]:
          raise ValueError(
            f"{self._path(leaf)}: row {number} is damaged. Remove the folder "
            f"{self.folder}; its features are computed again."
          )
      self._trusted[number] = True
    return super().read(numbers)


class Device:
  """Rows on the devices, whole batches of them, each split like a batch.

  Args:
    row, count: see `Memory`.
    mesh: devices; they take equal parts.
    batch_size: rows of a `write`, a multiple of the number of devices.
  """

  def __init__(self, row, count: int, mesh, batch_size: int):
    self._count, self._size = count, batch_size
    batches = -(-count // batch_size)
    split, self._of_batch = (
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
    self._take = jax.jit(take, out_shardings=self._of_batch)

  def missing(self) -> list[int]:
    """Numbers of the rows that were not written yet."""
    return list(range(self._written, self._count))

  def write(self, numbers: Any, rows) -> None:
    """Writes the next batch of rows, padded if it is the last one."""
    del numbers  # One batch after the other, from the first.
    self._rows = self._put(self._rows, rows, self._written // self._size)
    self._written += self._size

  def read(self, numbers):
    """Rows of this process's part of the numbers (b, ...), split along b."""
    place = (
      jax.make_array_from_process_local_data(self._of_batch, part)
      for part in divmod(numbers, self._size)
    )
    return self._take(self._rows, *place)


def _reserve(path, shape, dtype):
  """Makes a file of zeros whose blocks exist: writing to it cannot fail.

  A mapped file without them kills the process when the disk is full.
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


def _crc(row):
  return zlib.crc32(np.ascontiguousarray(row).view(np.uint8))


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
  """Only one process at a time is inside; others wait for it."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / "lock", "a") as f:
    fcntl.flock(f, fcntl.LOCK_EX)
    yield
