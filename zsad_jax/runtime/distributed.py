"""Data parallelism over the processes of one or several hosts.

Every process is started by the same command, see `processes`. Each process
reads its slice of a batch and measures its own maps; measurements are gathered,
so that all processes hold the same results. Process 0, the primary one, writes
and prints them.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
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


def make_mesh() -> jax.sharding.Mesh:
  """Return a mesh of all devices along one axis, "data".

  Images are split along it, everything else is replicated.
  """
  return jax.make_mesh(
    (jax.device_count(),),
    ("data",),
    # The explicit mode rejects a ViT's concatenation of class and patches.
    axis_types=(jax.sharding.AxisType.Auto,),
  )


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
  """Concatenate arrays of all processes along their first axis.

  Args:
    tree: arrays on the devices, or each process's rows as NumPy arrays.

  Returns:
    The tree of complete NumPy arrays, in every process.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def local_rows(tree: Any) -> Any:
  """Return this process's rows of arrays that are split over all devices."""
  if jax.process_count() == 1:
    return jax.device_get(tree)

  def rows(x):
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
  gathered = multihost_utils.process_allgather(padded)
  return [packing.unpack(x[:n].tobytes()) for x, n in zip(gathered, sizes)]


def shard() -> dict[str, int]:
  """Return the arguments of a pipeline that reads this process's rows."""
  return dict(num_shards=jax.process_count(), shard=jax.process_index())


def local_slice(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Return this process's rows of a batch that all processes hold."""
  count, index = jax.process_count(), jax.process_index()
  return {k: np.array_split(v, count)[index] for k, v in batch.items()}


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
