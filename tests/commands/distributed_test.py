"""Several processes train and evaluate as one does."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import device_orders, small_run
from zsad_jax.runtime import distributed

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = (
  "--config.batch_size=8",
  "--config.eval_batch_size=8",
  "--config.epochs=5",
)


def launch(data, workdir, *, processes, devices, envs=None):
  """Starts `processes` times the same command, of `devices` devices each."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  command = [
    sys.executable,
    "-m",
    "tests.helpers.small_run",
    f"--workdir={workdir}",
    f"--config=tests/helpers/small_run.py:anomalyclip,{data}",
    *FLAGS,
  ]
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
    env |= envs[i] if envs else {}
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


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("one")
  status, _, errors = finish(launch(data, workdir, processes=1, devices=8))
  assert status == [0], errors
  return workdir


def test_two_processes_train_as_one_and_go_on_without_each_other(
  data, one, tmp_path, monkeypatch
):
  monkeypatch.setenv(device_orders.VARIABLE, "v5e:4x8")
  workdir = tmp_path / "run"
  processes = launch(data, workdir, processes=2, devices=4)
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
  status, out, errors = finish(launch(data, workdir, processes=1, devices=3))
  assert status == [0], errors
  assert "batch size is 8, on 3 devices: each step also" in out[0]
  np.testing.assert_allclose(losses(workdir), losses(one), rtol=1e-5)


@pytest.mark.slow
def test_two_processes_measure_what_one_does(data, one, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(one, workdir)
  shutil.rmtree(workdir / "evaluation")
  (workdir / "threshold.json").unlink()
  status, out, errors = finish(launch(data, workdir, processes=2, devices=4))
  assert status == [0, 0], errors
  assert "image_auroc" in out[0] and "image_auroc" not in out[1]
  name = "evaluation/parts/results.json"
  rows = [json.loads((w / name).read_text())["rows"] for w in (one, workdir)]
  assert rows[0] == rows[1] and set(rows[0]) == {"bolt", "nut"}
  thresholds = [(w / "threshold.json").read_text() for w in (one, workdir)]
  assert thresholds[0] == thresholds[1]
