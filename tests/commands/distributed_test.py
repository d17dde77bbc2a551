"""Several processes train and evaluate as one does."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import small_run
from zsad_jax.runtime import distributed

ROOT = pathlib.Path(__file__).parents[2]
MODULE = "tests.helpers.small_run"
FLAGS = (
  "--config.batch_size=8",
  "--config.eval_batch_size=8",
  "--config.epochs=5",
)


def launch(*arguments, processes, devices):
  """Starts `processes` times the same module, of `devices` devices each."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  command = [sys.executable, "-m", *arguments]
  flags = f"--xla_force_host_platform_device_count={devices}"
  flags += " --xla_backend_optimization_level=0"
  started = []
  for i in range(processes):
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    if processes > 1:
      env[distributed.COORDINATOR] = f"localhost:{port}"
      env |= {
        distributed.NUM_PROCESSES: str(processes),
        distributed.PROCESS_ID: str(i),
      }
    started.append(
      subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return started


def finish(processes):
  """Waits for all: exit statuses, what they printed, their errors."""
  said = [p.communicate(timeout=300) for p in processes]
  return [p.returncode for p in processes], *zip(*said)


def losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "parts"
  small_run.write_mvtec(folder)
  return folder


def training(data, workdir, kind="anomalyclip,", flags=FLAGS):
  """Return the arguments of `launch` for a training."""
  config = f"tests/helpers/small_run.py:{kind}{data}"
  return MODULE, f"--workdir={workdir}", f"--config={config}", *flags


def in_order(data, workdir, **options):
  """Return the arguments of `launch` for `device_orders.run`."""
  options |= {"data": data, "workdir": workdir}
  flags = [f"--{name}={value}" for name, value in options.items()]
  return "tests.helpers.device_orders", *flags


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
  """Return the folder of `device_orders.run` in one process."""
  workdir = tmp_path_factory.mktemp("one")
  started = launch(*in_order(data, workdir), processes=1, devices=8)
  status, _, errors = finish(started)
  assert status == [0], errors
  return workdir


def test_two_processes_train_as_one_and_go_on_without_each_other(
  data, one, tmp_path
):
  workdir = tmp_path / "run"
  processes = launch(*training(data, workdir), processes=2, devices=4)
  while not list(workdir.glob("checkpoints/[4-9]")):
    assert all(p.poll() is None for p in processes), finish(processes)
    time.sleep(0.02)
  processes[1].send_signal(signal.SIGKILL)
  status, out, errors = finish(processes)
  # JAX aborts where its own thread hears of it first.
  assert status[1] == -signal.SIGKILL and status[0] in (1, -signal.SIGABRT)
  assert errors[0].splitlines()[-1].startswith("error: another process of")
  assert "Start all of them again" in errors[0]
  assert "8 x cpu" in out[0]
  assert "loss" not in out[1]  # The first one speaks for all.
  found = losses(workdir)
  assert len(found) >= 3
  assert found == losses(one)[: len(found)]
  # One process goes on, on a number of devices that does not divide the batch.
  status, out, errors = finish(
    launch(*training(data, workdir), processes=1, devices=3)
  )
  assert status == [0], errors
  assert "batch size is 8, on 3 devices: each step also" in out[0]
  np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)


def check_order(data, one, workdir, **options):
  """Check that two processes in an order find what one process does."""
  arguments = in_order(data, workdir, **options)
  status, out, errors = finish(launch(*arguments, processes=2, devices=4))
  assert status == [0, 0], errors
  assert "loss" in out[0] and "loss" not in out[1]
  assert losses(workdir) == losses(one)
  for name in ("threshold.json", "threshold_few_shot.json"):
    assert (workdir / name).read_text() == (one / name).read_text()
  with np.load(one / "numbers.npz") as wanted:
    with np.load(workdir / "numbers.npz") as found:
      assert found.keys() == wanted.keys() and len(wanted) == 14
      for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], name)


@pytest.mark.parametrize(
  "order",
  [
    "v5e:4x8",
    pytest.param("v5p:2x2x2", marks=pytest.mark.slow),
    pytest.param("2 x v5p:2x2x1", marks=pytest.mark.slow),
  ],
)
def test_results_do_not_depend_on_the_order_of_the_devices(
  order, data, one, tmp_path
):
  check_order(data, one, tmp_path / "run", order=order)


@pytest.mark.slow
def test_order_of_devices_in_training_with_references(data, tmp_path):
  one = tmp_path / "one"
  arguments = in_order(data, one, method="adaptclip")
  status, _, errors = finish(launch(*arguments, processes=1, devices=8))
  assert status == [0], errors
  check_order(
    data, one, tmp_path / "run", method="adaptclip", order="v5p:2x2x2"
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "kind, batch_size, processes, devices",
  [("anomalyclip,", 8, 2, 32), ("", 1, 1, 8)],  # The second is AdaCLIP.
)
def test_published_batch_sizes_run_on_many_devices(
  kind, batch_size, processes, devices, data, tmp_path
):
  flags = [f"--config.batch_size={batch_size}", "--config.test_data="]
  flags += ["--config.epochs=1", "--config.mosaic_prob=0.3"]
  found = []
  for counts in ((1, 1), (processes, devices)):
    workdir = tmp_path / str(counts[1])
    arguments = training(data, workdir, kind, flags)
    status, out, errors = finish(
      launch(*arguments, processes=counts[0], devices=counts[1])
    )
    assert not any(status), errors
    found.append(losses(workdir))
  padding = -batch_size % (processes * devices)
  assert f"{padding} rows of padding" in out[0]
  np.testing.assert_allclose(*found, rtol=1e-5)
