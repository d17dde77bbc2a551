"""Start and end of the processes of a run."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.helpers import launch
from zsad_jax.runtime import cluster, distributed, processes

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  "end, explained",
  [
    ("", False),
    ("os.abort()", True),
    # An error has its own message.
    pytest.param("raise ValueError", False, marks=pytest.mark.slow),
    pytest.param("os.kill(os.getpid(), 9)", True, marks=pytest.mark.slow),
  ],
)
def test_an_aborted_process_prints_a_recovery_hint(end, explained):
  code = "import os\nfrom zsad_jax.runtime import processes\n"
  code += "processes._start_hint()\n"
  command = [sys.executable, "-c", code + end]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (done.returncode == 0) == (not end)
  assert explained == ("Start all of them again" in done.stderr)


def test_simulated_devices_have_the_same_threads_in_any_process(
  monkeypatch,
):
  started = []
  record = lambda **options: started.append(options)
  monkeypatch.setattr(processes.jax.distributed, "initialize", record)
  monkeypatch.setattr(processes, "_start_hint", lambda: None)
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
    processes.start(environ)
    assert environ.get("PJRT_NPROC") == threads
  assert [options["num_processes"] for options in started] == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("slice_, chosen", [(True, 1), (False, 0)])
def test_one_host_of_a_tpu_slice_uses_its_cpu_alone(
  slice_, chosen, monkeypatch
):
  names = "a,b" if slice_ else "a"
  updates = []
  monkeypatch.setattr(cluster, "_on_tpu", lambda: True)
  monkeypatch.setattr(
    processes.jax.config, "update", lambda *change: updates.append(change)
  )
  processes.start({"TPU_WORKER_HOSTNAMES": names}, alone=True)
  assert updates == [("jax_platforms", "cpu")] * chosen
  given = {"TPU_WORKER_HOSTNAMES": names, "JAX_PLATFORMS": "tpu"}
  processes.start(given, alone=True)
  assert len(updates) == chosen


def test_a_host_name_without_address_is_an_error(monkeypatch):
  monkeypatch.setattr(socket, "gethostname", lambda: "nowhere.invalid")
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  with pytest.raises(OSError, match="'nowhere.invalid'.*add it to /etc/hosts"):
    processes.start(flags)


def test_the_time_to_start_is_a_number_of_seconds():
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  for bad in ("0", "-1", "1m", ""):
    with pytest.raises(ValueError, match="ZSAD_JAX_START_TIMEOUT must be"):
      processes.start(flags | {cluster.START_TIMEOUT: bad})


@pytest.mark.parametrize(
  "options, wanted",
  [
    ({}, "Not all processes of this run have started within 9 seconds"),
    (dict(process_id=0, num_processes=4), "Process 0 waits for 3 others"),
    (dict(process_id=2, num_processes=4), "Process 0 of this run, at localho"),
  ],
)
def test_a_late_process_is_named(options, wanted):
  with socket.socket() as s:
    s.bind(("localhost", 0))  # Nothing listens there.
    address = f"localhost:{s.getsockname()[1]}"
    options = options and options | {"coordinator_address": address}
    line = processes._late(options, 9)
    assert wanted in line and "ZSAD_JAX_START_TIMEOUT" in line
    s.listen()
    if options.get("process_id") == 2:
      assert "Process 2 waits for 3 others" in processes._late(options, 9)


def run(action, number=2, **variables):
  """Start the processes of tests.helpers.peers."""
  return [
    launch.start(["-m", "tests.helpers.peers", *action.split()], env)
    for env in launch.environments(number, **variables)
  ]


def error_lines(text):
  return [line for line in text.splitlines() if "error" in line.lower()]


def test_one_process_started_alone_ends_with_a_line():
  env = launch.environments(2, ZSAD_JAX_START_TIMEOUT="2")[0]
  process = launch.start(["-m", "tests.helpers.peers", "wait"], env)
  status, _, (error,) = launch.finish([process], 60)
  assert status == [1]
  assert error.startswith("error: Process 0 waits for 1 others")
  assert error.count("\n") == 1


def test_a_command_that_needs_no_peers_does_not_wait():
  env = launch.environments(2, ZSAD_JAX_START_TIMEOUT="1000")[1]
  process = launch.start(["-m", "zsad_jax.data", "list"], env)
  status, (out,), errors = launch.finish([process], 100)
  assert status == [0], errors
  assert "mvtec" in out


def test_an_error_of_one_process_ends_the_others():
  both = run("fail")
  status, _, errors = launch.finish(both, 100)
  assert status == [1, 1], errors
  text = "This image cannot be read."
  assert error_lines(errors[1]) == [f"error: {text}"]
  assert error_lines(errors[0]) == [
    f"error: process 1 of this run has ended: {text}"
  ]
  assert "cleaned" in errors[0].splitlines()  # Such as the lock of a workdir.


@pytest.mark.slow
def test_different_flags_are_an_error_at_the_start():
  envs = launch.environments(2)
  both = [
    launch.start(["-m", "tests.helpers.peers", "wait", f"--setting={i}"], env)
    for i, env in enumerate(envs)
  ]
  status, _, errors = launch.finish(both, 100)
  assert status == [1, 1], errors
  for error in errors:
    (line,) = error_lines(error)
    assert "--setting is 0 in process 0 and 1 in process 1." in line
    assert line.endswith("Start the same command on every host.")


def stopped(number):
  """Send a signal to the second of two looping processes; both end."""
  both = run("loop")
  lines = []
  while not (lines and lines[-1].startswith("time")):
    lines.append(both[1].stderr.readline())
    assert lines[-1], lines
  both[1].send_signal(number)
  status, _, errors = launch.finish(both, 100)
  errors = [errors[0], "".join(lines) + errors[1]]
  words = [dict(line.split(" ", 1) for line in e.splitlines()) for e in errors]
  return status, words, errors


def test_a_signal_to_one_process_stops_both_at_the_same_step():
  """The first process does not wait for the second one before its steps."""
  status, words, errors = stopped(signal.SIGTERM)
  assert status == [143, 143], errors
  assert words[0]["steps"] == words[1]["steps"]
  assert float(words[0]["time"]) < float(words[1]["time"]) - 1
  assert all(e.endswith("Stopped by SIGTERM.\n") for e in errors)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_any_signal_to_one_process_stops_both(number):
  status, words, errors = stopped(number)
  assert status == [143, 128 + number], errors
  assert words[0]["steps"] == words[1]["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_the_others_within_a_minute(number, lost):
  both = run("wait")
  for process in both:
    while "waits" not in process.stderr.readline():
      assert process.poll() is None
  start = time.monotonic()
  both[lost].send_signal(number)
  other = both[1 - lost]
  error = other.communicate(timeout=100)[1]
  both[lost].kill()
  both[lost].communicate()
  assert other.returncode != 0
  assert time.monotonic() - start < 60
  assert error.splitlines()[-1].startswith("error: another process of this run")
