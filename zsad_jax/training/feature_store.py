"""Stores of rows of equal shapes, one row for each image.

A row is a tree of arrays. Rows are stored in memory, on disk or on the devices;
every `Store` returns the values that were written.
"""

import contextlib
import fcntl
import functools
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

from zsad_jax.runtime import distributed
from zsad_jax.training import tiles

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
  """Rows on the devices, each of them split over all devices.

  A row is kept as tiles, of which every device has the same number, see
  `tiles.Tiles`. A read or write exchanges the rows of one batch between the
  devices, by one all-to-all for each size of items, and copies no other row.
  The memory is taken by the first `write`.

  Args:
    row: see `Memory`.
    count: see `Memory`.
    mesh: devices along one axis, "data".
    batch_size: rows of a `write`, a multiple of the number of devices.

  Attributes:
    num_bytes: bytes of all rows on each device.
  """

  def __init__(
    self, row: Any, count: int, mesh: jax.sharding.Mesh, batch_size: int
  ) -> None:
    self._row, self._count, self._size = row, count, batch_size
    self._sharding = NamedSharding(mesh, P(None, "data"))
    self._batch_sharding = distributed.row_sharding(mesh)
    self._written, self._tiles = 0, None
    layout = tiles.Tiles(row, mesh.size)
    padded = -(-count // batch_size) * batch_size
    self._shapes = {
      dtype: jax.ShapeDtypeStruct(
        (padded, *shape), dtype, sharding=self._sharding
      )
      for dtype, shape in layout.shapes.items()
    }
    sizes = [x.size * x.dtype.itemsize for x in self._shapes.values()]
    self.num_bytes = sum(sizes) // mesh.size
    split, rows = P(None, "data"), P("data")
    self._write = jax.jit(
      jax.shard_map(
        functools.partial(_write, layout, mesh.size),
        mesh=mesh,
        in_specs=(split, rows, P()),
        out_specs=split,
      ),
      donate_argnums=0,
    )
    self._read = jax.jit(
      jax.shard_map(
        functools.partial(_read, layout, mesh.size),
        mesh=mesh,
        in_specs=(split, rows),
        out_specs=rows,
      )
    )

  def missing(self) -> list[int]:
    """Return the numbers of the rows that are not final yet."""
    return list(range(self._written, self._count))

  def write(self, numbers: Any, rows: Any, *, done: Any = True) -> None:
    """Write the next batch of rows, padded if it is the last one."""
    del numbers, done  # Batches come in order, and all rows are final.
    if self._tiles is None:
      zeros = lambda x: jnp.zeros(x.shape, x.dtype)
      make = jax.jit(
        lambda: jax.tree.map(zeros, self._shapes), out_shardings=self._sharding
      )
      self._tiles = make()
    self._tiles = self._write(self._tiles, rows, self._written)
    self._written += self._size

  def read(self, numbers: np.ndarray) -> Any:
    """Read the rows of this process's numbers (b, ...), split along b.

    Negative numbers count from the end, as in NumPy.
    """
    position = jax.make_array_from_process_local_data(
      self._batch_sharding, np.mod(numbers, self._count).astype(np.int32)
    )
    return self._read(self._tiles, position)

  def lower_write(self) -> jax.stages.Lowered:
    """Return the program of a `write`, to be compiled for the devices."""
    batch = jax.tree.map(
      lambda x: self._split((self._size, *x.shape), x.dtype), self._row
    )
    return self._write.lower(self._shapes, batch, 0)

  def lower_read(self, shape: tuple[int, ...]) -> jax.stages.Lowered:
    """Return the program of a `read`, to be compiled for the devices.

    Args:
      shape: of the numbers of all processes, (b, ...).
    """
    return self._read.lower(self._shapes, self._split(shape, jnp.int32))

  def needed_bytes(self, *reads: tuple[int, ...]) -> int:
    """Return the bytes that each device needs to write and read rows.

    The programs are compiled; `write` and `read` use them again.

    Args:
      reads: shapes of the numbers, see `lower_read`, whose rows are in memory
        together.
    """
    write = _memory(self.lower_write())
    found = [_memory(self.lower_read(shape)) for shape in reads]
    batch = write.argument_size_in_bytes - write.alias_size_in_bytes
    read = max(x.temp_size_in_bytes for x in found)
    read += sum(x.output_size_in_bytes for x in found)
    return self.num_bytes + max(batch + write.temp_size_in_bytes, read)

  def _split(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """Return an abstract array that is split along its first axis."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=self._batch_sharding)


def _memory(lowered: jax.stages.Lowered) -> Any:
  """Return the compiler's figures of a program's memory on each device."""
  return lowered.compile().memory_analysis()


def _write(
  layout: tiles.Tiles, devices: int, stored: Any, rows: Any, first: Any
) -> Any:
  """Write rows on one device, which has rows and is given parts of all."""

  def put(array, new):
    if devices > 1:
      new = jax.lax.all_to_all(new, "data", 1, 0, tiled=True)
    return jax.lax.dynamic_update_slice_in_dim(array, new, first, 0)

  return jax.tree.map(put, stored, layout.pack(rows))


def _read(layout: tiles.Tiles, devices: int, stored: Any, numbers: Any) -> Any:
  """Read the rows of one device, which has parts of all rows."""
  flat = numbers.reshape(-1)
  if devices > 1:
    flat = jax.lax.all_gather(flat, "data", tiled=True)

  def take(array):
    # Row by row: XLA's gather on TPU copies most of the operand first.
    found = jax.lax.map(
      lambda i: jax.lax.dynamic_index_in_dim(array, i, keepdims=False), flat
    )
    if devices == 1:
      return found
    return jax.lax.all_to_all(found, "data", 0, 1, tiled=True)

  rows = layout.unpack(jax.tree.map(take, stored))
  shape = lambda x: x.reshape(*numbers.shape, *x.shape[1:])
  return jax.tree.map(shape, rows)


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
