"""Detection of the processes of a run.

Three environment variables connect any processes. Without them, a Slurm step of
several tasks and a TPU slice of several hosts are detected.
"""

import http.client
import importlib.util
import pathlib
import re
import socket
import urllib.request
from collections.abc import Mapping
from typing import Any

from zsad_jax.runtime import environment
from zsad_jax.runtime.distributed import COORDINATOR, NUM_PROCESSES, PROCESS_ID

START_TIMEOUT = "ZSAD_JAX_START_TIMEOUT"
_START_TIMEOUT = 50  # Seconds for all processes to start.
_METADATA_TIMEOUT = 2.0  # Seconds; the server is on the same machine.


def options(
  environ: Mapping[str, str], *, alone: bool = False
) -> dict[str, Any] | None:
  """Return arguments of jax.distributed.initialize; None for one process.

  Args:
    environ: see `processes.start`.
    alone: connect to no other process.

  Raises:
    ValueError: a variable is missing or not a number.
  """
  if not alone:
    if COORDINATOR in environ:
      return _given(environ)
    if (found := _slurm(environ)) is not None:
      return found
    if _on_tpu_slice(environ):
      return {}
  if num_simulated(environ) > 1:
    here = f"localhost:{_free_port()}"
    return dict(
      coordinator_address=here,
      coordinator_bind_address=here,  # Not open to other machines.
      num_processes=1,
      process_id=0,
      cluster_detection_method="deactivate",
    )
  return None


def _given(environ: Mapping[str, str]) -> dict[str, Any]:
  """Return the arguments that three variables give."""
  try:
    number = int(environ[NUM_PROCESSES])
    process_id = int(environ[PROCESS_ID])
  except (KeyError, ValueError) as error:
    raise ValueError(
      f"{COORDINATOR} is set: {NUM_PROCESSES} and {PROCESS_ID} must be "
      f"whole numbers ({error})."
    ) from error
  if not 0 <= process_id < number:
    raise ValueError(
      f"{PROCESS_ID} is {process_id}, but must be at least 0 and less than "
      f"{NUM_PROCESSES}, {number}."
    )
  if not re.fullmatch(r".+:\d+", environ[COORDINATOR]):
    raise ValueError(
      f"{COORDINATOR} is {environ[COORDINATOR]!r}, expected HOST:PORT of the "
      "first process."
    )
  return dict(
    coordinator_address=environ[COORDINATOR],
    num_processes=number,
    process_id=process_id,
    # Within a Slurm job, JAX would give each process one GPU.
    cluster_detection_method="deactivate",
  )


def _slurm(environ: Mapping[str, str]) -> dict[str, Any] | None:
  """Return the arguments of a Slurm step of several tasks, else None."""
  tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
  if not tasks.isdecimal():
    raise ValueError(
      f"SLURM_STEP_NUM_TASKS must be a whole number, found {tasks!r}."
    )
  if int(tasks) == 1:
    return None
  # JAX gives task i of a node its i-th GPU. A task that is alone on its node
  # has all of them (no restriction), and so has one that sees its own only.
  alone = tasks == environ.get("SLURM_STEP_NUM_NODES")
  bound = environ.get("CUDA_VISIBLE_DEVICES", "").count(",") == 0
  if alone or (bound and environ.get("CUDA_VISIBLE_DEVICES")):
    return dict(local_device_ids=[])
  return {}


def start_timeout(environ: Mapping[str, str]) -> int:
  """Return the seconds that all processes have to start.

  Raises:
    ValueError: the variable is no number of seconds.
  """
  text = environ.get(START_TIMEOUT, str(_START_TIMEOUT))
  if not (text.isascii() and text.isdecimal() and int(text) > 0):
    raise ValueError(
      f"{START_TIMEOUT} must be a whole number of seconds above 0, found "
      f"{text!r}."
    )
  return int(text)


def needs_other_hosts(environ: Mapping[str, str]) -> bool:
  """Return whether the TPU chips of this host would wait for other hosts.

  A platform that JAX's variable names is the user's choice.
  """
  return not environ.get(environment.PLATFORMS) and _on_tpu_slice(environ)


def _on_tpu_slice(environ: Mapping[str, str]) -> bool:
  """Return whether this is one of several hosts of a TPU slice, or slices."""
  return _on_tpu() and _has_several_hosts(environ)


def _has_several_hosts(environ: Mapping[str, str]) -> bool:
  """Return whether a TPU host is one of several.

  The variables are those of GKE and of libtpu; other Google Cloud VMs ask the
  metadata server. Without any answer, as on Colab, the host is a single one.
  """
  for name in ("TPU_PROCESS_BOUNDS", "TPU_HOST_BOUNDS"):
    if environ.get(name) == "1,1,1":
      return False  # The user has restricted the program to this host.
  if environ.get("MEGASCALE_COORDINATOR_ADDRESS"):
    return True
  for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
    if environ.get(name):
      return "," in environ[name]
  if "TPU_SKIP_MDS_QUERY" in environ:
    return False
  host = environ.get("GCE_METADATA_IP", "metadata.google.internal")
  if "," in _metadata(host, "worker-network-endpoints"):
    return True
  return "MEGASCALE_COORDINATOR_ADDRESS" in _metadata(host, "tpu-env")


def _metadata(host: str, key: str) -> str:
  """Return an attribute of this Google Cloud VM; "" where there is none."""
  request = urllib.request.Request(
    f"http://{host}/computeMetadata/v1/instance/attributes/{key}",
    headers={"Metadata-Flavor": "Google"},
  )
  direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    with direct.open(request, timeout=_METADATA_TIMEOUT) as answer:
      return answer.read().decode("utf-8", "replace")
  except (OSError, http.client.HTTPException):
    return ""


def _on_tpu() -> bool:
  """Return whether this is a TPU VM that has libtpu."""
  # Older VMs have the first, newer ones the second; GPUs may have it, too.
  devices = [*pathlib.Path("/dev").glob("accel[0-9]*")]
  devices += pathlib.Path("/dev/vfio").glob("[0-9]*")
  return bool(devices) and importlib.util.find_spec("libtpu") is not None


def num_simulated(environ: Mapping[str, str]) -> int:
  """Return the number of CPU devices that XLA_FLAGS asks for, by default 1."""
  flag = r"--xla_force_host_platform_device_count=(\d+)"
  found = re.search(flag, environ.get("XLA_FLAGS", ""))
  return int(found[1]) if found else 1


def _free_port() -> int:
  """Return a port of this machine that is not in use."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]
