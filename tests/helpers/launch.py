"""Start of several processes of a run, as a launcher does it."""

import os
import pathlib
import socket
import subprocess
import sys

from zsad_jax.runtime import distributed

ROOT = pathlib.Path(__file__).parents[2]


def environments(processes, **variables):
  """Return the environment of each process of a run on this machine.

  Args:
    processes: number of processes.
    **variables: further variables, of all of them.
  """
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  common = os.environ | {"JAX_PLATFORMS": "cpu"} | variables
  if processes == 1:
    return [common]
  common |= {
    distributed.COORDINATOR: f"localhost:{port}",
    distributed.NUM_PROCESSES: str(processes),
  }
  return [common | {distributed.PROCESS_ID: str(i)} for i in range(processes)]


def start(arguments, env, cwd=ROOT):
  """Start `python ARGUMENTS`, by default in the root of the project."""
  return subprocess.Popen(
    [sys.executable, *arguments],
    cwd=cwd,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def start_all(arguments, *, processes, devices, extra_envs=None):
  """Start a command several times, each with simulated CPU devices.

  Args:
    arguments: of Python.
    processes: number of processes.
    devices: number of devices of each one.
    extra_envs: further variables of each process.
  """
  flags = f"--xla_force_host_platform_device_count={devices}"
  flags += " --xla_backend_optimization_level=0"
  envs = environments(processes, XLA_FLAGS=flags)
  extra_envs = extra_envs or [{}] * processes
  return [start(arguments, a | b) for a, b in zip(envs, extra_envs)]


def finish(processes, timeout=300):
  """Wait for all: exit statuses, what they printed, their errors."""
  try:
    said = [p.communicate(timeout=timeout) for p in processes]
  finally:
    for process in processes:
      process.kill()
  return [p.returncode for p in processes], *zip(*said)
