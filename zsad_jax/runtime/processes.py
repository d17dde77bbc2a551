"""Start and end of the processes of a run.

Every process is started by the same command; `cluster` detects how many there
are. A command that needs no other process is `alone`.

A process that ends with an error tells the others, through the coordination
service of JAX: they print its message and end, too, also while they wait for
it in a computation. A process that is lost without a message is noticed by its
missing heartbeats, and JAX aborts the others.
"""

import atexit
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, NoReturn

import jax
from jax._src import distributed as jax_distributed  # Its key-value store.
from jax.experimental import multihost_utils

from zsad_jax.runtime import cluster, distributed, stopping

_HEARTBEAT = 30  # Seconds after which a silent process counts as lost.
_POLL = 1.0  # Seconds between two looks for the error of another process.
_FAILURE = "zsad_jax/failure"  # Key of that error.
_RECOVERY_HINT = (
  "error: another process of this run, or this one, ended unexpectedly. Start "
  "all of them again: the same command resumes from the last checkpoint."
)


class _State:
  """This process, once it is connected to others.

  Attributes:
    ending: whether it ends and has its own message.
    silence: ends the shell that would print a hint; see `_start_hint`.
  """

  ending = False
  silence: Callable[[], object] = staticmethod(lambda: None)


_state = _State()


def start(
  environ: MutableMapping[str, str] = os.environ, *, alone: bool = False
) -> None:
  """Connect to the other processes, if there are several.

  Simulated CPU devices give bit-identical numbers in any number of processes:
  a single process uses the same collectives library, with the same order of
  summation, and has as many threads as all devices together.

  Args:
    environ: JAX_COORDINATOR_ADDRESS (host:port of the first process),
      ZSAD_JAX_NUM_PROCESSES and ZSAD_JAX_PROCESS_ID (from 0). Without them, a
      Slurm step of several tasks, a TPU slice of several hosts and simulated
      CPU devices (XLA_FLAGS) are detected. ZSAD_JAX_START_TIMEOUT: seconds for
      all processes to start.
    alone: connect to no other process; on a TPU slice of several hosts, use
      the CPU unless JAX's variable names a platform.

  Raises:
    ValueError: a variable is missing or not a number.
    OSError: the machine's own name has no address.
  """
  if alone and cluster.needs_other_hosts(environ):
    jax.config.update("jax_platforms", "cpu")
  options = cluster.options(environ, alone=alone)
  if options is None:
    return
  limit = cluster.start_timeout(environ)
  _check_own_name()
  devices = cluster.num_simulated(environ)
  if devices > 1:
    # XLA splits some sums by its threads: use one for each core and device.
    devices *= options.get("num_processes", 1)
    threads = max(devices, os.cpu_count() or 1)
    environ.setdefault("PJRT_NPROC", str(threads))
  options["heartbeat_timeout_seconds"] = _HEARTBEAT
  if options.get("num_processes") == 1:
    jax.distributed.initialize(**options)
    return
  _start_hint()
  own = _signal_handler()
  jax.config.update("jax_enable_preemption_service", True)
  with _deadline(options, limit):
    # JAX aborts the process at its own deadline, with a stack trace.
    jax.distributed.initialize(**options, initialization_timeout=limit + 60)
  if count() > 1:
    stop_together(own)
    threading.Thread(target=_end_with_others, daemon=True).start()


def count() -> int:
  """Return the number of connected processes; no device is initialized."""
  return jax_distributed.global_state.num_processes or 1


def index() -> int:
  """Return the number of this process; no device is initialized."""
  return jax_distributed.global_state.process_id or 0


def client() -> Any:
  """Return the client of the coordination service, which connects processes.

  Its calls have time limits and need no devices, unlike collectives, which wait
  for ever where processes run different programs.
  """
  return jax_distributed.global_state.client


# ---- End.


@contextlib.contextmanager
def exit_on_peer_failure() -> Iterator[None]:
  """Exit with a clear message when a peer process fails.

  Exits without cleanup, which would wait for the lost process. Where JAX's own
  thread notices the failure first, that thread aborts the process instead.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    reason = " ".join(str(error).split())
    if count() == 1 or "RESOURCE_EXHAUSTED" in reason:
      raise
    time.sleep(3 * _POLL)  # The other process may have left its message.
    _end(f"{_RECOVERY_HINT} ({reason[:300]})")


def report(text: str, status: int = 1) -> None:
  """Tell the other processes that this one ends, so that they end, too.

  Args:
    text: reason, one line.
    status: their exit status.
  """
  if count() == 1 or _state.ending:
    return
  _state.ending = True
  message = json.dumps({"process": index(), "text": text, "status": status})
  with contextlib.suppress(Exception):  # The first message counts.
    client().key_value_set(_FAILURE, message)
  if index() == 0:
    time.sleep(3 * _POLL)  # The service ends with this process.
  _state.silence()


def disconnect() -> None:
  """Leave the run together with all other processes, which call it, too.

  The service ends with the first process: the others would take an earlier end
  for a failure.
  """
  if count() == 1 or _state.ending:
    return
  _state.ending = True
  with contextlib.suppress(Exception):
    client().wait_at_barrier("zsad_jax/end", 1000 * _HEARTBEAT)
    jax.distributed.shutdown()
  _state.silence()


def _end(line: str, status: int = 1) -> NoReturn:
  """Print a line and end the process, without waiting for any other."""
  _state.ending = True
  _state.silence()
  print(line, file=sys.stderr, flush=True)
  stopping.clean_up()
  os._exit(status)


def _end_with_others() -> None:
  """Wait for the message of a process that ends; end with it."""
  service = client()
  while not _state.ending:
    time.sleep(_POLL)
    try:
      found = json.loads(service.key_value_try_get(_FAILURE))
    except jax.errors.JaxRuntimeError as error:
      if "NOT_FOUND" in str(error):
        continue
      return  # The service has ended.
    if not _state.ending:
      _end(
        f"error: process {found['process']} of this run has ended: "
        f"{found['text']}",
        found["status"],
      )


def _start_hint() -> None:
  """Start a shell that prints a recovery hint if this process aborts.

  JAX aborts the process when a peer is lost, and no code inside it runs after
  that. A normal exit of the interpreter silences the shell.
  """
  watcher = subprocess.Popen(
    ["sh", "-c", 'read -r ended || echo "$0" >&2', _RECOVERY_HINT],
    stdin=subprocess.PIPE,
    start_new_session=True,  # Ctrl-C is for this process.
  )

  def silence():
    with contextlib.suppress(OSError, ValueError):
      watcher.communicate(b"ended\n")

  _state.silence = silence
  # Registered before JAX's own handlers, so that it runs after them.
  atexit.register(silence)


# ---- Signals.


def _signal_handler() -> int:
  """Return the address of the C function that handles SIGTERM, 0 for none."""
  action = ctypes.create_string_buffer(1024)
  # The handler is the first member of `struct sigaction`.
  ctypes.CDLL(None).sigaction(int(signal.SIGTERM), None, action)
  return ctypes.c_void_p.from_buffer(action).value or 0


def stop_together(own: int | None = None) -> None:
  """Let a signal to one process stop all of them at the same step.

  JAX handles SIGTERM in C: it tells all processes, which agree about a sync
  point. The handlers of `stopping` replace that function; they call it where a
  signal is deferred.

  Where another program has connected the processes, JAX's function is not known
  here: they exchange a flag at each sync point.

  Args:
    own: address of the handler before JAX set its own; None: not known.
  """
  if count() == 1 or stopping.stops_together():
    return
  address = _signal_handler()
  if own is None or not address or address == own:
    stopping.stop_together(
      lambda: None, lambda point: distributed.any_of(stopping.requested())
    )
    return
  tell = ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
  stopping.stop_together(
    lambda: tell(signal.SIGTERM), multihost_utils.reached_preemption_sync_point
  )


# ---- Waiting for all processes.


@contextlib.contextmanager
def _deadline(options: Mapping[str, Any], limit: int) -> Iterator[None]:
  """End the process if the others do not start within `limit` seconds."""
  timer = threading.Timer(limit, lambda: _end(_late(options, limit)))
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _late(options: Mapping[str, Any], limit: int) -> str:
  """Return the line for a run whose processes have not all started."""
  address, number = (
    options.get(name) for name in ("coordinator_address", "process_id")
  )
  if address is None or number is None:
    who = "Not all processes of this run have"
  elif number and not _answers(address):
    who = f"Process 0 of this run, at {address}, has not"
  else:
    others = options["num_processes"] - 1
    who = f"Process {number} waits for {others} others, which have not all"
  return (
    f"error: {who} started within {limit} seconds. Start the same command on "
    f"all hosts at the same time; {cluster.START_TIMEOUT} sets another time."
  )


def _answers(address: str) -> bool:
  """Return whether something accepts connections at HOST:PORT."""
  host, _, port = address.rpartition(":")
  try:
    socket.create_connection((host, int(port)), timeout=2).close()
    return True
  except OSError:
    return False


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
