"""Several processes train and evaluate as one does."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from tests.helpers import device_orders, launch, small_run

FLAGS = (
  "--config.batch_size=8",
  "--config.eval_batch_size=8",
  "--config.epochs=5",
)


def start(
  data,
  workdir,
  *arguments,
  processes,
  devices,
  module="small_run",
  extra_envs=None,
):
  """Start `processes` times the same command, of `devices` devices each."""
  command = [
    "-m",
    f"tests.helpers.{module}",
    f"--workdir={workdir}",
    f"--config=tests/helpers/small_run.py:anomalyclip,{data}",
    *(arguments or FLAGS),
  ]
  return launch.start_all(
    command, processes=processes, devices=devices, extra_envs=extra_envs
  )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "parts"
  small_run.write_mvtec(folder)
  return folder


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("one")
  status, _, errors = launch.finish(
    start(data, workdir, processes=1, devices=8)
  )
  assert status == [0], errors
  return workdir


@pytest.mark.slow
def test_two_processes_train_as_one_and_go_on_without_each_other(
  data, one, tmp_path, monkeypatch
):
  monkeypatch.setenv(device_orders.VARIABLE, "v5e:4x8")
  workdir = tmp_path / "run"
  processes = start(data, workdir, processes=2, devices=4)
  while not list(workdir.glob("checkpoints/[4-9]")):
    assert all(p.poll() is None for p in processes), launch.finish(processes)
    time.sleep(0.02)
  processes[1].send_signal(signal.SIGKILL)
  status, out, errors = launch.finish(processes)
  # JAX aborts where its own thread hears of it first.
  assert status[1] == -signal.SIGKILL and status[0] in (1, -signal.SIGABRT)
  assert errors[0].splitlines()[-1].startswith("error: another process of")
  assert "Start all of them again" in errors[0]
  assert "8 x cpu" in out[0]
  assert "loss" not in out[1]  # The first one speaks for all.
  found = small_run.losses(workdir)
  assert len(found) >= 3
  assert found == small_run.losses(one)[: len(found)]
  # One process goes on, on a number of devices that does not divide the batch.
  status, out, errors = launch.finish(
    start(data, workdir, processes=1, devices=3)
  )
  assert status == [0], errors
  assert "batch size is 8, on 3 devices: each step also" in out[0]
  np.testing.assert_allclose(
    small_run.losses(workdir), small_run.losses(one), rtol=1e-5
  )


@pytest.mark.slow
def test_two_processes_measure_what_one_does(data, one, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(one, workdir)
  shutil.rmtree(workdir / "evaluation")
  (workdir / "threshold.json").unlink()
  status, out, errors = launch.finish(
    start(data, workdir, processes=2, devices=4)
  )
  assert status == [0, 0], errors
  assert "image_auroc" in out[0] and "image_auroc" not in out[1]
  name = "evaluation/parts/results.json"
  rows = [json.loads((w / name).read_text())["rows"] for w in (one, workdir)]
  assert rows[0] == rows[1] and set(rows[0]) == {"bolt", "nut"}
  thresholds = [(w / "threshold.json").read_text() for w in (one, workdir)]
  assert thresholds[0] == thresholds[1]


@pytest.mark.slow
def test_steps_of_a_cached_epoch_are_launched_without_waiting(tmp_path):
  data = tmp_path / "data"
  small_run.write_images(data, number=40)
  processes = start(
    data,
    tmp_path / "run",
    "--config.batch_size=2",
    "--config.epochs=2",
    "--config.log_steps=1000",
    "--config.checkpoint_steps=1000",
    processes=2,
    devices=1,
    module="launches",
  )
  status, _, errors = launch.finish(processes)
  assert status == [0, 0], errors
  for i in range(2):
    path = tmp_path / f"run/launches_{i}.json"
    records = json.loads(path.read_text())
    assert len(records) == 79
    # The first step waits for its program; each epoch ends with the metrics.
    inner = records[1:39] + records[40:]
    assert [r["waits"] for r in inner] == [[]] * len(inner)
    # Exchanges in each step would leave none of them unfinished.
    assert np.mean([not r["ready"] for r in inner]) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["features", "steps"])
def test_a_signal_to_one_process_stores_the_same_step(number, when, tmp_path):
  data, workdir = tmp_path / "data", tmp_path / "run"
  small_run.write_images(data, number=400 if when == "features" else 8)
  arguments = ["--config.epochs=200", "--config.eval_batch_size=2"]
  processes = start(data, workdir, *arguments, processes=2, devices=1)
  if when == "steps":
    while not list(workdir.glob("checkpoints/[4-9]")):
      assert all(p.poll() is None for p in processes), launch.finish(processes)
      time.sleep(0.02)
  else:
    while "Features of" not in processes[0].stdout.readline():
      assert processes[0].poll() is None
  processes[1].send_signal(number)
  status, _, errors = launch.finish(processes)
  # The other process stops as by SIGTERM, or is told the reason of the first.
  assert status[1] == 128 + number, errors
  assert status[0] in (143, 128 + number), errors
  for error in errors:
    assert "Stopped by " in error.splitlines()[-1]
    assert error.splitlines()[-1].endswith(f"resumes the run in {workdir}.")
  saved = {p.name for p in workdir.glob("checkpoints/*")}
  assert len(saved) == (0 if when == "features" else 2)
  if when == "steps":
    steps = len((workdir / "metrics.jsonl").read_text().splitlines())
    assert max(map(int, saved)) == steps


@pytest.mark.slow
@pytest.mark.parametrize(
  "different, wanted",
  [
    ("run", "the new file in run is found in process 0 and missing in"),
    ("data", "the data set data is 12 files"),
  ],
)
def test_hosts_with_different_folders_are_an_error(
  different, wanted, tmp_path, monkeypatch
):
  """Paths are relative to the working directories of two hosts."""
  monkeypatch.setenv("PYTHONPATH", str(launch.ROOT))
  hosts = [tmp_path / name for name in "ab"]
  for i, host in enumerate(hosts):
    small_run.write_images(host / "data", number=4 + i * (different == "data"))
  shared = tmp_path / "run"
  config = launch.ROOT / "tests/helpers/small_run.py:anomalyclip,data"
  command = [
    "-m",
    "tests.helpers.small_run",
    f"--workdir={'run' if different == 'run' else shared}",
    f"--config={config}",
  ]
  processes = [
    launch.start(command, env, host)
    for env, host in zip(launch.environments(2), hosts)
  ]
  status, _, errors = launch.finish(processes)
  assert status == [1, 1], errors
  for error in errors:
    (line,) = [x for x in error.splitlines() if x.startswith("error")]
    assert wanted in line
  assert not [*tmp_path.rglob(".shared-*")]
  assert not [*tmp_path.rglob("checkpoints")]
