"""Several processes, on one host or on many, that work as one.

Each is started by the same command. They find one another on a TPU slice and
under Slurm by themselves, elsewhere by three variables, see `start`. Each reads
its share of a batch and measures its own maps; what they found is exchanged, so
that all know the same; the first one writes and prints.
"""

import contextlib
import importlib.util
import os
import pathlib
import pickle
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zsad_jax import files

COORDINATOR = "JAX_COORDINATOR_ADDRESS"
NUMBER, MINE = "ZSAD_JAX_NUM_PROCESSES", "ZSAD_JAX_PROCESS_ID"
_HEARTBEAT = 30  # Seconds without a sign of life, then a process is lost.


def start(environ: Mapping[str, str] = os.environ) -> None:
  """Joins the other processes, if this is one of several.

  Args:
    environ: JAX_COORDINATOR_ADDRESS (host:port of the first process),
      ZSAD_JAX_NUM_PROCESSES and ZSAD_JAX_PROCESS_ID (from 0). Without them, a
      Slurm step of several tasks and a TPU VM are recognised.

  Raises:
    ValueError: a variable is missing or no number.
  """
  options = _options(environ)
  if options is None:
    return
  jax.distributed.initialize(**options, heartbeat_timeout_seconds=_HEARTBEAT)
  if jax.process_index():
    files.keep_quiet()
    # The others would say the same; errors of each are shown.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Ends this process with a message when another one was lost inside.

  At once: what else would have to be closed waits for the others.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    reason = " ".join(str(error).split())
    print(
        f"error: another process of this run has ended ({reason[:200]}). "
        "Start all of them again: the same command goes on from the last "
        "checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _options(environ):
  """Arguments of jax.distributed.initialize; None for a single process."""
  if COORDINATOR in environ:
    try:
      number, mine = int(environ[NUMBER]), int(environ[MINE])
    except (KeyError, ValueError) as error:
      raise ValueError(
          f"{COORDINATOR} is set: {NUMBER} and {MINE} must be whole numbers "
          f"({error})."
      ) from error
    return dict(
        coordinator_address=environ[COORDINATOR],
        num_processes=number,
        process_id=mine,
    )
  tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
  if not tasks.isdecimal():
    raise ValueError(
        f"SLURM_STEP_NUM_TASKS must be a whole number, found {tasks!r}."
    )
  return {} if int(tasks) > 1 or _on_tpu() else None


def _on_tpu():
  """Whether this is a TPU VM with the software for it."""
  # Older VMs have the first, newer ones the second; GPUs may have it, too.
  devices = [*pathlib.Path("/dev").glob("accel[0-9]*")]
  devices += pathlib.Path("/dev/vfio").glob("[0-9]*")
  return bool(devices) and importlib.util.find_spec("libtpu") is not None


def make_mesh() -> jax.sharding.Mesh:
  """All devices along one axis, "data": images are split, all else copied."""
  return jax.make_mesh(
      (jax.device_count(),),
      ("data",),
      # The explicit mode rejects a ViT's concatenation of class and patches.
      axis_types=(jax.sharding.AxisType.Auto,),
  )


def replicate(tree, mesh: jax.sharding.Mesh):
  """Puts a tree that all processes hold alike on all devices."""
  everywhere = NamedSharding(mesh, P())
  if jax.process_count() == 1:
    return jax.device_put(tree, everywhere)

  def put(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return x  # It is there already.
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, everywhere, x.__getitem__)

  return jax.tree.map(put, tree)


def whole(tree):
  """Arrays of all processes, joined along their first axis, on every host.

  Args:
    tree: arrays on the devices, or each process's part as NumPy arrays.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def mine(tree):
  """This process's rows of arrays that are split over all devices."""
  if jax.process_count() == 1:
    return jax.device_get(tree)

  def rows(x):
    shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
    return np.concatenate([np.asarray(s.data) for s in shards])

  return jax.tree.map(rows, tree)


def exchange(value: Any) -> list[Any]:
  """What each process gives, in their order, on every host."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(pickle.dumps(value), np.uint8)
  # Whole numbers go over as 32 bits; no process gives 4 GB at once.
  sizes = whole(np.array([len(data)], np.uint32))
  padded = np.pad(data, (0, int(sizes.max()) - len(data)))
  given = multihost_utils.process_allgather(padded)
  return [pickle.loads(x[:n].tobytes()) for x, n in zip(given, sizes)]


def shard() -> dict[str, int]:
  """The arguments of a pipeline that reads this process's part."""
  return dict(num_shards=jax.process_count(), shard=jax.process_index())


def share(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """This process's rows of a batch that all processes hold."""
  count, mine = jax.process_count(), jax.process_index()
  return {k: np.array_split(v, count)[mine] for k, v in batch.items()}


def free_memory() -> int:
  """Bytes of memory that a process of this host can still get."""
  for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
    if line.startswith("MemAvailable:"):
      return 1024 * int(line.split()[1])
  raise ValueError("/proc/meminfo does not say what is free; choose a place.")


def any_of(flag: bool) -> bool:
  """Whether a flag is set in any process; all have to ask."""
  if jax.process_count() == 1:
    return flag
  return bool(whole(np.array([flag])).any())
