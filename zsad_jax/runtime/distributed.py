"""Several processes, on one host or on many, that work as one.

Each is started by the same command. They find one another on a TPU slice and
under Slurm by themselves, elsewhere by three variables, see `start`. Each reads
its share of a batch and measures its own maps; what they found is exchanged, so
that all know the same; the first one writes and prints.
"""

import atexit
import contextlib
import importlib.util
import os
import pathlib
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zsad_jax.runtime import files

COORDINATOR = "JAX_COORDINATOR_ADDRESS"
NUMBER, MINE = "ZSAD_JAX_NUM_PROCESSES", "ZSAD_JAX_PROCESS_ID"
_LAST_WORDS = (
  "error: another process of this run, or this one, has ended before its "
  "time. Start all of them again: the same command goes on from the last "
  "checkpoint."
)
_HEARTBEAT = 30  # Seconds without a sign of life, then a process is lost.


def start(environ: MutableMapping[str, str] = os.environ) -> None:
  """Joins the other processes, if this is one of several.

  A CPU that pretends to be several devices gives the same numbers to the last
  bit whatever processes these belong to: a single one joins itself, so that
  one library adds up in one order, and each has threads for all devices.

  Args:
    environ: JAX_COORDINATOR_ADDRESS (host:port of the first process),
      ZSAD_JAX_NUM_PROCESSES and ZSAD_JAX_PROCESS_ID (from 0). Without them, a
      Slurm step of several tasks, a TPU VM and a CPU that pretends to be
      several devices (XLA_FLAGS) are recognised.

  Raises:
    ValueError: a variable is missing or no number.
    OSError: the machine does not know its own name.
  """
  options = _options(environ)
  if options is None:
    return
  _check_own_name()
  devices = _simulated(environ)
  if devices > 1:
    # XLA splits some sums by its threads: as many as cores, or as devices.
    threads = max(devices * options.get("num_processes", 1), os.cpu_count())
    environ.setdefault("PJRT_NPROC", str(threads))
  if options.get("num_processes") != 1:
    _leave_last_words()
  jax.distributed.initialize(**options, heartbeat_timeout_seconds=_HEARTBEAT)
  if jax.process_index():
    files.keep_quiet()
    # The others would say the same; errors of each are shown.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Ends this process with the reason when another one was lost inside.

  At once: what else would have to be closed waits for the others. Where JAX's
  own thread hears of it first, that one ends the process, with a long dump.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if jax.process_count() == 1:
      raise
    reason = " ".join(str(error).split())
    print(f"error: {reason[:300]}", file=sys.stderr, flush=True)
    os._exit(1)


def _leave_last_words():
  """Starts a shell that outlives this process and says what to do.

  Unless Python comes to its end: JAX aborts where it loses the others, and
  nothing that runs inside could speak after that.
  """
  watcher = subprocess.Popen(
    ["sh", "-c", 'read -r ended || echo "$0" >&2', _LAST_WORDS],
    stdin=subprocess.PIPE,
    start_new_session=True,  # Ctrl-C is for this process.
  )
  # Registered before JAX's own, so that it comes after that.
  atexit.register(watcher.communicate, b"ended\n")


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
  if int(tasks) > 1 or _on_tpu():
    return {}
  if _simulated(environ) > 1:
    here = f"localhost:{_free_port()}"
    return dict(
      coordinator_address=here,
      coordinator_bind_address=here,  # Not open to other machines.
      num_processes=1,
      process_id=0,
    )
  return None


def _simulated(environ):
  """Devices that this process's CPU pretends to be; 1 where it is itself."""
  flag = r"--xla_force_host_platform_device_count=(\d+)"
  found = re.search(flag, environ.get("XLA_FLAGS", ""))
  return int(found[1]) if found else 1


def _free_port():
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def _check_own_name():
  """A CPU's sums go to the address of this name; XLA ends without saying so."""
  name = socket.gethostname()
  try:
    socket.getaddrinfo(name, None)
  except OSError as error:
    raise OSError(
      f"This machine's own name, {name!r}, has no address, which its devices "
      "need to exchange sums: add it to /etc/hosts, with the address that "
      "the other machines know or, where there are none, with 127.0.0.1."
    ) from error


def _on_tpu():
  """Whether this is a TPU VM with the software for it."""
  # Older VMs have the first, newer ones the second; GPUs may have it, too.
  devices = [*pathlib.Path("/dev").glob("accel[0-9]*")]
  devices += pathlib.Path("/dev/vfio").glob("[0-9]*")
  return bool(devices) and importlib.util.find_spec("libtpu") is not None


def is_primary() -> bool:
  """Whether this process writes the results; others compute the same."""
  return jax.process_index() == 0


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


def all_gather(tree):
  """Arrays of all processes, joined along their first axis, on every host.

  Args:
    tree: arrays on the devices, or each process's part as NumPy arrays.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def local_rows(tree):
  """This process's rows of arrays that are split over all devices."""
  if jax.process_count() == 1:
    return jax.device_get(tree)

  def rows(x):
    shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
    return np.concatenate([np.asarray(s.data) for s in shards])

  return jax.tree.map(rows, tree)


def all_gather_object(value: Any) -> list[Any]:
  """What each process gives, in their order, on every host."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(pickle.dumps(value), np.uint8)
  # Whole numbers go over as 32 bits; no process gives 4 GB at once.
  sizes = all_gather(np.array([len(data)], np.uint32))
  padded = np.pad(data, (0, int(sizes.max()) - len(data)))
  given = multihost_utils.process_allgather(padded)
  return [pickle.loads(x[:n].tobytes()) for x, n in zip(given, sizes)]


def shard() -> dict[str, int]:
  """The arguments of a pipeline that reads this process's part."""
  return dict(num_shards=jax.process_count(), shard=jax.process_index())


def local_slice(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
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
  return bool(all_gather(np.array([flag])).any())
