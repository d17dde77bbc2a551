"""Start of distributed runs."""

import dataclasses
import os
import pathlib
import random
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.helpers import device_orders
from zsad_jax.runtime import distributed

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  "end, explained",
  [
    ("", False),
    ("raise ValueError", False),  # Has its own error message.
    ("os.abort()", True),
    ("os.kill(os.getpid(), 9)", True),
  ],
)
def test_an_aborted_process_prints_a_recovery_hint(end, explained):
  code = "import os\nfrom zsad_jax.runtime import distributed\n"
  code += "distributed._print_hint_on_abort()\n"
  command = [sys.executable, "-c", code + end]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode == 0) == (not end)
  assert explained == ("Start all of them again" in done.stderr)


@pytest.mark.parametrize(
  "environ, wanted",
  [
    ({}, None),
    ({"SLURM_STEP_NUM_TASKS": "1"}, None),
    ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
    ({"SLURM_STEP_NUM_TASKS": "16"}, {}),
    (
      {
        distributed.COORDINATOR: "a:1",
        distributed.NUM_PROCESSES: "3",
        distributed.PROCESS_ID: "2",
      },
      dict(coordinator_address="a:1", num_processes=3, process_id=2),
    ),
  ],
)
def test_processes_of_a_launcher_are_detected(environ, wanted):
  assert distributed._options(environ) == wanted


def test_a_single_process_of_simulated_devices_connects_to_itself():
  flags = "--xla_a=1 --xla_force_host_platform_device_count=4 --xla_b=2"
  options = distributed._options({"XLA_FLAGS": flags})
  assert re.fullmatch(r"localhost:\d+", options["coordinator_address"])
  assert options == dict(
    coordinator_address=options["coordinator_address"],
    coordinator_bind_address=options["coordinator_address"],
    num_processes=1,
    process_id=0,
  )


def test_simulated_devices_have_the_same_threads_in_any_process(
  monkeypatch,
):
  started = []
  record = lambda **options: started.append(options)
  monkeypatch.setattr(distributed.jax.distributed, "initialize", record)
  monkeypatch.setattr(distributed, "_print_hint_on_abort", lambda: None)
  monkeypatch.setattr(os, "cpu_count", lambda: 6)
  flag = "--xla_force_host_platform_device_count="
  two = {
    distributed.COORDINATOR: "a:1",
    distributed.NUM_PROCESSES: "2",
    distributed.PROCESS_ID: "0",
  }
  for environ, threads in (
    ({"XLA_FLAGS": flag + "8"}, "8"),
    ({"XLA_FLAGS": flag + "4", **two}, "8"),
    ({"XLA_FLAGS": flag + "2", **two}, "6"),
    ({"XLA_FLAGS": flag + "2", **two, "PJRT_NPROC": "3"}, "3"),
    (two, None),
  ):
    distributed.start(environ)
    assert environ.get("PJRT_NPROC") == threads
  assert [options["num_processes"] for options in started] == [1, 2, 2, 2, 2]


def test_a_host_name_without_address_is_an_error(monkeypatch):
  monkeypatch.setattr(socket, "gethostname", lambda: "nowhere.invalid")
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  with pytest.raises(OSError, match="'nowhere.invalid'.*add it to /etc/hosts"):
    distributed.start(flags)


def test_a_missing_variable_is_named():
  with pytest.raises(ValueError, match="ZSAD_JAX_PROCESS_ID must be whole"):
    distributed._options(
      {distributed.COORDINATOR: "a:1", distributed.NUM_PROCESSES: "3"}
    )
  with pytest.raises(ValueError, match="SLURM_STEP_NUM_TASKS.*'four'"):
    distributed._options({"SLURM_STEP_NUM_TASKS": "four"})


@dataclasses.dataclass(frozen=True)
class Device:
  """Device of a process."""

  id: int
  process_index: int


@pytest.mark.parametrize("name", device_orders.read())
def test_the_mesh_is_in_process_order_on_every_slice(name):
  stored = device_orders.read()[name]
  devices = [Device(*pair) for pair in stored["devices"]]
  shuffled = random.Random(0).sample(devices, len(devices))
  mesh = distributed.make_mesh(shuffled)
  processes = [d.process_index for d in mesh.devices]
  assert processes == [i for i in range(max(processes) + 1) for _ in range(4)]
  for i in set(processes):  # Ids ascend within a process.
    ids = [d.id for d in mesh.devices if d.process_index == i]
    assert ids == sorted(ids)
  assert set(mesh.devices) == set(devices)
  assert distributed.row_sharding(mesh).mesh == mesh


@pytest.mark.parametrize(
  "name", ["v5e:4x4", "v5e:4x8", "v5e:8x8", "v6e:4x8", "v5p:2x2x2", "v5p:2x2x4"]
)
def test_another_order_is_refused(name):
  stored = device_orders.read()[name]
  devices = [Device(*stored["devices"][i]) for i in stored["make_mesh"]]
  mesh = jax.sharding.Mesh(np.array(devices), ("data",))
  with pytest.raises(ValueError, match="processes 0, .*: rows would be mixed"):
    distributed.row_sharding(mesh)


def test_processes_with_different_numbers_of_devices_are_refused():
  devices = [Device(0, 0), Device(1, 1), Device(2, 1)]
  with pytest.raises(ValueError, match=r"\(process 0: 1, process 1: 2\)"):
    distributed.make_mesh(devices)
