"""Data parallelism over the processes of one or several hosts.

Every process is started by the same command. On a TPU slice and under Slurm
they discover one another, elsewhere three environment variables tell them, see
`start`. Each process reads its slice of a batch and measures its own maps;
measurements are gathered, so that all processes hold the same results. Process
0, the primary one, writes and prints them.

There is one order of rows, process order: those of process 0, then those of
process 1, and so on. `make_mesh` orders the devices in the same way, and
`row_sharding` refuses any other mesh, so that arrays on the devices and arrays
of the processes agree about which row is which.
"""

import atexit
import collections
import contextlib
import functools
import importlib.util
import os
import pathlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zsad_jax.runtime import packing

COORDINATOR = "JAX_COORDINATOR_ADDRESS"
NUM_PROCESSES = "ZSAD_JAX_NUM_PROCESSES"
PROCESS_ID = "ZSAD_JAX_PROCESS_ID"
_RECOVERY_HINT = (
  "error: another process of this run, or this one, ended unexpectedly. Start "
  "all of them again: the same command resumes from the last checkpoint."
)
_HEARTBEAT = 30  # Seconds after which a silent process counts as lost.


def start(environ: MutableMapping[str, str] = os.environ) -> None:
  """Connect to the other processes, if there are several.

  Simulated CPU devices give bit-identical numbers in any number of processes:
  a single process uses the same collectives library, with the same order of
  summation, and has as many threads as all devices together.

  Args:
    environ: JAX_COORDINATOR_ADDRESS (host:port of the first process),
      ZSAD_JAX_NUM_PROCESSES and ZSAD_JAX_PROCESS_ID (from 0). Without them, a
      Slurm step of several tasks, a TPU VM and simulated CPU devices
      (XLA_FLAGS) are detected.

  Raises:
    ValueError: a variable is missing or not a number.
    OSError: the machine's own name has no address.
  """
  options = _options(environ)
  if options is None:
    return
  _check_own_name()
  devices = _num_simulated(environ)
  if devices > 1:
    # XLA splits some sums by its threads: use one for each core and device.
    devices *= options.get("num_processes", 1)
    threads = max(devices, os.cpu_count() or 1)
    environ.setdefault("PJRT_NPROC", str(threads))
  if options.get("num_processes") != 1:
    _print_hint_on_abort()
  jax.distributed.initialize(**options, heartbeat_timeout_seconds=_HEARTBEAT)


@contextlib.contextmanager
def exit_on_peer_failure() -> Iterator[None]:
  """Exit with a clear message when a peer process fails.

  Exits without cleanup, which would wait for the lost process. Where JAX's own
  thread notices the failure first, that thread aborts the process instead.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    reason = " ".join(str(error).split())
    print(f"error: {reason[:300]}", file=sys.stderr, flush=True)
    os._exit(1)


def _print_hint_on_abort() -> None:
  """Start a shell that prints a recovery hint if this process aborts.

  JAX aborts the process when a peer is lost, and no code inside it runs after
  that. A normal exit of the interpreter silences the shell.
  """
  watcher = subprocess.Popen(
    ["sh", "-c", 'read -r ended || echo "$0" >&2', _RECOVERY_HINT],
    stdin=subprocess.PIPE,
    start_new_session=True,  # Ctrl-C is for this process.
  )
  # Registered before JAX's own handlers, so that it runs after them.
  atexit.register(watcher.communicate, b"ended\n")


def _options(environ: Mapping[str, str]) -> dict[str, Any] | None:
  """Return arguments of jax.distributed.initialize; None for one process."""
  if COORDINATOR in environ:
    try:
      count = int(environ[NUM_PROCESSES])
      process_id = int(environ[PROCESS_ID])
    except (KeyError, ValueError) as error:
      raise ValueError(
        f"{COORDINATOR} is set: {NUM_PROCESSES} and {PROCESS_ID} must be "
        f"whole numbers ({error})."
      ) from error
    if not 0 <= process_id < count:
      raise ValueError(
        f"{PROCESS_ID} is {process_id}, but must be at least 0 and less than "
        f"{NUM_PROCESSES}, {count}."
      )
    if not re.fullmatch(r".+:\d+", environ[COORDINATOR]):
      raise ValueError(
        f"{COORDINATOR} is {environ[COORDINATOR]!r}, expected HOST:PORT of the "
        "first process."
      )
    return dict(
      coordinator_address=environ[COORDINATOR],
      num_processes=count,
      process_id=process_id,
    )
  tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
  if not tasks.isdecimal():
    raise ValueError(
      f"SLURM_STEP_NUM_TASKS must be a whole number, found {tasks!r}."
    )
  if int(tasks) > 1 or _on_tpu():
    return {}
  if _num_simulated(environ) > 1:
    here = f"localhost:{_free_port()}"
    return dict(
      coordinator_address=here,
      coordinator_bind_address=here,  # Not open to other machines.
      num_processes=1,
      process_id=0,
    )
  return None


def _num_simulated(environ: Mapping[str, str]) -> int:
  """Return the number of CPU devices that XLA_FLAGS asks for, by default 1."""
  flag = r"--xla_force_host_platform_device_count=(\d+)"
  found = re.search(flag, environ.get("XLA_FLAGS", ""))
  return int(found[1]) if found else 1


def _free_port() -> int:
  """Return a port of this machine that is not in use."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def _check_own_name() -> None:
  """Check that the machine's own name has an address.

  XLA's CPU collectives use that address; without it they fail with no message.
  """
  name = socket.gethostname()
  try:
    socket.getaddrinfo(name, None)
  except OSError as error:
    raise OSError(
      f"This machine's own name, {name!r}, has no address, which its devices "
      "need to exchange sums: add it to /etc/hosts, with the address that "
      "the other machines know or, where there are none, with 127.0.0.1."
    ) from error


def _on_tpu() -> bool:
  """Return whether this is a TPU VM that has libtpu."""
  # Older VMs have the first, newer ones the second; GPUs may have it, too.
  devices = [*pathlib.Path("/dev").glob("accel[0-9]*")]
  devices += pathlib.Path("/dev/vfio").glob("[0-9]*")
  return bool(devices) and importlib.util.find_spec("libtpu") is not None


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
