"""Data parallelism over the processes of one or several hosts.

Every process is started by the same command, see `processes`. Each process
reads its slice of a batch and measures its own maps; measurements are gathered,
so that all processes hold the same results. Process 0, the primary one, writes
and prints them.

There is one order of rows, process order: those of process 0, then those of
process 1, and so on. `make_mesh` orders the devices in the same way, and
`row_sharding` refuses any other mesh, so that arrays on the devices and arrays
of the processes agree about which row is which.
"""

import collections
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zsad_jax.runtime import packing

COORDINATOR = "JAX_COORDINATOR_ADDRESS"
NUM_PROCESSES = "ZSAD_JAX_NUM_PROCESSES"
PROCESS_ID = "ZSAD_JAX_PROCESS_ID"


def is_primary() -> bool:
  """Return whether this process writes the results; all compute the same."""
  # A single process need not initialize its devices to write a file.
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def in_process_order(devices: Iterable[Any]) -> list[Any]:
  """Return devices in the order of their processes, then of their ids.

  Ids alone do not tell: in a v5e slice of 4x8 chips, the first process has the
  devices 0, 1, 4 and 5.
  """
  return sorted(devices, key=lambda d: (d.process_index, d.id))


def make_mesh(devices: Iterable[Any] | None = None) -> jax.sharding.Mesh:
  """Return a mesh along one axis, "data", in process order.

  Images are split along it, everything else is replicated. `jax.make_mesh`
  would follow the torus of a TPU slice, where the processes alternate (v5e:4x8:
  0, 0, 2, 2, 4, 4, ...), and rejects several slices.

  Args:
    devices: all devices by default.

  Raises:
    ValueError: the processes have different numbers of devices.
  """
  ordered = in_process_order(jax.devices() if devices is None else devices)
  counts = collections.Counter(d.process_index for d in ordered)
  if len(set(counts.values())) > 1:
    found = ", ".join(f"process {i}: {n}" for i, n in sorted(counts.items()))
    raise ValueError(
      f"The processes have different numbers of devices ({found}), but each "
      "reads an equal part of a batch: give every process the same number."
    )
  return jax.sharding.Mesh(
    np.array(ordered),
    ("data",),
    # The explicit mode rejects a ViT's concatenation of class and patches.
    axis_types=(jax.sharding.AxisType.Auto,),
  )


@functools.lru_cache(maxsize=8)
def row_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Return the sharding that splits rows over the devices of a mesh.

  Raises:
    ValueError: the mesh is not in process order.
  """
  processes = [d.process_index for d in mesh.devices.flat]
  if processes != sorted(processes):
    first = ", ".join(map(str, processes[:8]))
    raise ValueError(
      f"The devices of the mesh belong to the processes {first} ..., which is "
      "not their order: rows would be mixed up. Use distributed.make_mesh."
    )
  return NamedSharding(mesh, P("data"))


def replicate(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Replicate a tree, equal in all processes, on all devices."""
  everywhere = NamedSharding(mesh, P())
  if jax.process_count() == 1:
    return jax.device_put(tree, everywhere)

  def put(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return x  # Replicated already.
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, everywhere, x.__getitem__)

  return jax.tree.map(put, tree)


def all_gather(tree: Any) -> Any:
  """Concatenate rows of all processes, in process order.

  Args:
    tree: arrays split by `row_sharding`, or each process's rows as NumPy arrays
      of the same shape in every process.

  Returns:
    The tree of complete NumPy arrays, in every process.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return jax.tree.map(_all_gather, tree)


def _all_gather(x):
  """Concatenate the rows of an array; the devices exchange them."""
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    assert isinstance(x.sharding, NamedSharding)
    mesh = x.sharding.mesh
    row_sharding(mesh)  # Raises an error for another order.
  else:
    # One shard for each process, on all its devices. JAX's process_allgather
    # relies on the order of jax.devices().
    devices = make_mesh().devices.reshape(jax.process_count(), -1)
    mesh = jax.sharding.Mesh(devices, ("process", "device"))
    rows = NamedSharding(mesh, P("process"))
    x = jax.make_array_from_process_local_data(rows, np.asarray(x))
  everywhere = NamedSharding(mesh, P())
  gathered = jax.jit(_identity, out_shardings=everywhere)(x)
  return np.asarray(gathered.addressable_data(0))


def _identity(x):
  return x


def local_rows(tree: Any) -> Any:
  """Return this process's rows of arrays that are split by `row_sharding`."""
  if jax.process_count() == 1:
    return jax.device_get(tree)

  def rows(x):
    row_sharding(x.sharding.mesh)  # Raises an error for another order.
    shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
    return np.concatenate([np.asarray(s.data) for s in shards])

  return jax.tree.map(rows, tree)


def all_gather_object(value: Any) -> list[Any]:
  """Gather a value of each process, in order of the processes.

  Args:
    value: of JSON types and arrays of numbers, see `packing.pack`. Nothing that
      another process sends is run as code.

  Returns:
    The values; tuples of several processes are lists.

  Raises:
    TypeError: a part of the value is of another type.
  """
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(packing.pack(value), np.uint8)
  # Integers are gathered as 32 bits; no object has 4 GB.
  sizes = all_gather(np.array([len(data)], np.uint32))
  padded = np.pad(data, (0, int(sizes.max()) - len(data)))
  gathered = all_gather(padded[None])
  return [packing.unpack(x[:n].tobytes()) for x, n in zip(gathered, sizes)]


def shard() -> dict[str, int]:
  """Return the arguments of a pipeline that reads this process's rows."""
  return dict(num_shards=jax.process_count(), shard=jax.process_index())


def local_slice(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Return this process's rows of a batch that all processes hold.

  The number of rows is a multiple of the number of processes.
  """
  count, index = jax.process_count(), jax.process_index()
  return {k: np.split(v, count)[index] for k, v in batch.items()}


def free_memory() -> int:
  """Return the bytes of memory that are available on this host.

  Raises:
    ValueError: the system does not report it.
  """
  for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
    if line.startswith("MemAvailable:"):
      return 1024 * int(line.split()[1])
  raise ValueError(
    "/proc/meminfo has no line MemAvailable: set config.features.storage to "
    'another value than "auto".'
  )


def any_of(flag: bool) -> bool:
  """Return whether a flag is set in any process; all have to call it."""
  if jax.process_count() == 1:
    return flag
  return bool(all_gather(np.array([flag])).any())
