"""Training: resuming, stopping, devices, errors."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

from tests.helpers import small_run
from zsad_jax import evaluate, train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.evaluation import protocol
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import stopping

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "parts"
  small_run.write_images(folder)
  return str(folder)


@pytest.fixture
def config(data, monkeypatch):
  monkeypatch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
  return small_run.get_config(data)


def lines(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def losses(workdir):
  return {line["step"]: line["loss"] for line in lines(workdir)}


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
  """The workdir of eight steps without interruption."""
  workdir = tmp_path_factory.mktemp("uninterrupted")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
    assert train.train(small_run.get_config(data).lock(), workdir)
  return workdir


def how(run):
  return protocol.Protocol.from_config(run.config, allow_trained=True)


def load(workdir):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
    return run_lib.load(workdir)


def test_a_run_records_every_step_and_lowers_the_loss(uninterrupted):
  values = losses(uninterrupted)
  assert list(values) == list(range(1, 9))
  assert values[8] < values[1]
  run = load(uninterrupted)
  assert run.step == 8
  params, _ = run.method.init(jax.random.key(0), run.backbone)
  untouched = run.params["static_text_prompts"]["0"]
  assert np.abs(np.asarray(untouched)).max() < 0.2  # N(0, 0.02), no decay.
  assert jax.tree.structure(params) == jax.tree.structure(run.params)


def test_stopped_and_resumed_is_the_same_run(
  config, uninterrupted, tmp_path, monkeypatch
):
  monkeypatch.setattr(stopping, "Deferred", lambda: small_run.StopAfter(3))
  assert not train.train(config.lock(), tmp_path)
  monkeypatch.setattr(stopping, "Deferred", small_run.StopAfter)
  assert train.train(config, tmp_path)
  equal(load(tmp_path).params, load(uninterrupted).params)
  assert losses(tmp_path) == losses(uninterrupted)
  # Again, when there is nothing left to do.
  assert train.train(config, tmp_path)
  assert losses(tmp_path) == losses(uninterrupted)


@pytest.mark.slow
def test_a_stop_between_two_lines_of_the_log_changes_neither(
  config, uninterrupted, tmp_path, monkeypatch
):
  config.log_steps, config.checkpoint_steps = 3, 100
  monkeypatch.setattr(stopping, "Deferred", lambda: small_run.StopAfter(2))
  assert not train.train(config.lock(), tmp_path)
  monkeypatch.setattr(stopping, "Deferred", small_run.StopAfter)
  assert train.train(config, tmp_path)
  single, expected = losses(uninterrupted), {}
  # Every three steps, and after each epoch of four.
  for first, last in ((1, 3), (4, 4), (5, 6), (7, 8)):
    values = [np.float32(single[i]) for i in range(first, last + 1)]
    expected[last] = float(np.mean(values))
  assert losses(tmp_path) == expected


@pytest.mark.slow
def test_lines_beyond_the_checkpoint_are_dropped(
  config, uninterrupted, tmp_path, monkeypatch
):
  config.checkpoint_steps = 100
  monkeypatch.setattr(stopping, "Deferred", lambda: small_run.StopAfter(3))
  train.train(config.lock(), tmp_path)
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "loss": 0.0}\n')  # Logged, then killed.
  monkeypatch.setattr(stopping, "Deferred", small_run.StopAfter)
  train.train(config, tmp_path)
  assert losses(tmp_path) == losses(uninterrupted)


def start(data, workdir, *flags, **env):
  return subprocess.Popen(
    [
      sys.executable,
      "-m",
      "tests.helpers.small_run",
      f"--config=tests/helpers/small_run.py:{data}",
      f"--workdir={workdir}",
      *flags,
    ],
    cwd=ROOT,
    env={**os.environ, **env},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.slow  # tests/interruption.py kills more often.
def test_sigkill_while_a_checkpoint_is_written(data, uninterrupted, tmp_path):
  process = start(data, tmp_path)
  folder = tmp_path / "checkpoints"
  deadline = time.monotonic() + 120
  while time.monotonic() < deadline and process.poll() is None:
    if list(folder.glob("*tmp*")) and len(list(folder.glob("[0-9]"))) > 1:
      break
    time.sleep(0.001)
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  # What a kill can leave: a folder that was not renamed yet.
  (folder / "8.orbax-checkpoint-tmp-0").mkdir()
  process = start(data, tmp_path)
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, out + err
  equal(load(tmp_path).params, load(uninterrupted).params)
  assert losses(tmp_path) == losses(uninterrupted)
  # The command went on to the threshold, the table and the figures.
  assert (tmp_path / "threshold.json").exists()
  assert list((tmp_path / "evaluation").rglob("*.png"))


def test_sigterm_stops_after_a_step_with_a_hint_to_resume(data, tmp_path):
  process = start(data, tmp_path, "--config.epochs=10000")
  for line in process.stdout:
    if line.startswith("step"):
      process.send_signal(signal.SIGTERM)
      break
  out, err = process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGTERM, err
  assert "Stopping after this step." in out
  assert err.splitlines()[-1] == (
    f"Stopped by SIGTERM. The same command resumes the run in {tmp_path}."
  )
  assert load(tmp_path).step >= 1


# Neither calibrates nor evaluates, which would have to be compiled, too.
_TRAIN_ALONE = """
import pathlib, sys
from tests.helpers import small_run
from zsad_jax import train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.runtime import console
console.configure()
clip_load.RANDOM_CONFIG = small_run.BACKBONE
config = small_run.get_anomalyclip_config(sys.argv[1])
config.batch_size = 4
config.epochs = 1
train.train(config.lock(), pathlib.Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_four_devices_give_the_losses_of_one(data, tmp_path):
  values = []
  for devices in (1, 4):
    workdir = tmp_path / str(devices)
    count = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
      [sys.executable, "-c", _TRAIN_ALONE, data, workdir],
      env=os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}"},
      capture_output=True,
      text=True,
      cwd=ROOT,
      timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Devices: {devices} x" in done.stdout
    values.append(losses(workdir))
  assert values[0].keys() == values[1].keys()
  np.testing.assert_allclose(
    list(values[0].values()), list(values[1].values()), rtol=1e-5
  )


def test_a_loss_that_is_not_finite_stops_the_run(config, tmp_path):
  config.optax.learning_rate = 1e30
  config.log_steps, config.checkpoint_steps = 4, 100
  with pytest.raises(ValueError, match=r"not finite in steps 1 to 4"):
    train.train(config.lock(), tmp_path)
  # Nothing of it is kept, nor when a checkpoint is due at once.
  with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
    load(tmp_path)


def test_another_configuration_is_refused(config, uninterrupted):
  config.seed = 5
  with pytest.raises(ValueError, match=r"different: seed"):
    train.train(config.lock(), uninterrupted)


MISTAKES = {
  "--config.optax.learning_rat=1": "learning_rat",
  "--config.epochs=many": "epochs",
  "--config=configs/adaklip.py": "adaklip.py",
  "--config=adaklip": "there are adaclip, adaptclip",
  "--config=configs/adaclip.py:papers": "papers",
  "--config.method.dice=columns": "config.method.dice is one of rows, image",
  "--config.method.cosine_scale=high": "cosine_scale",
  "--config.train_data=('nowhere',)": "nowhere",
  "--config.batch_size=3 --workdir=/dev/null/run": "run",
  "--config.backbone.name=ViT-B-32": "zsad convert",
  "--config.selection=best": "best",
  "surplus": "surplus",
}


@pytest.fixture(scope="module")
def mistakes(data, tmp_path_factory):
  """Exit status and stderr of each of `MISTAKES`."""
  folder = tmp_path_factory.mktemp("mistakes")
  lines = [
    [
      f"--config=tests/helpers/small_run.py:{data}",
      f"--workdir={folder}/{i}",
      *flags.split(),
    ]
    for i, flags in enumerate(MISTAKES)
  ]
  code = "from tests.helpers import small_run; "
  code += f"small_run.commands({str(folder)!r}, {lines!r})"
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  return {
    flags: (int(status), (folder / f"{i}.err").read_text())
    for i, (flags, status) in enumerate(zip(MISTAKES, done.stdout.split()))
  }


@pytest.mark.slow
@pytest.mark.parametrize("flags, message", MISTAKES.items())
def test_a_mistake_is_one_line(mistakes, flags, message):
  status, err = mistakes[flags]
  assert status == 1, err
  last = err.strip().splitlines()[-1]
  assert last.startswith("error:") and message in last
  assert "Traceback" not in err


@pytest.mark.slow
def test_official_selection_keeps_the_best_epoch(config, tmp_path):
  config.selection, config.selection_data = "official", config.train_data
  config.epochs = 3
  train.train(config.lock(), tmp_path)
  key = "selection/pixel_f1_max"
  values = {li["step"]: li[key] for li in lines(tmp_path) if key in li}
  assert list(values) == [4, 8, 12]
  run = run_lib.load(tmp_path)
  assert values[run.step] == max(values.values())


@pytest.mark.slow
def test_a_stopped_selection_is_repeated(config, tmp_path, monkeypatch):
  calls = []

  def select(step, params, stats):
    del params, stats
    calls.append(step)
    if len(calls) == 1:
      signal.raise_signal(signal.SIGTERM)
    return {"selection/value": float(step)}

  monkeypatch.setattr(train.selection, "make", lambda *_: select)
  config.checkpoint_steps = 100
  with pytest.raises(stopping.Stopped):
    train.train(config.lock(), tmp_path)
  assert train.train(config, tmp_path)
  assert calls == [4, 4, 8]
  found = [li["step"] for li in lines(tmp_path) if "selection/value" in li]
  assert found == [4, 8]
  steps = [li["step"] for li in lines(tmp_path) if "loss" in li]
  assert steps == list(range(1, 9))


def test_a_finished_run_is_not_evaluated_again(tmp_path, monkeypatch, capsys):
  run = types.SimpleNamespace(workdir=tmp_path, step=8, config=None)
  done = []

  def store(run):
    done.append("calibration")
    (tmp_path / "threshold.json").write_text('{"image_score": 0.5}')

  def evaluate_one(run, dataset, output, how, *, names):
    del run, output, how, names
    if dataset == stops:
      raise stopping.Stopped(signal.SIGTERM)
    done.append(dataset)
    path = tmp_path / "evaluation" / dataset / "results.json"
    path.parent.mkdir(parents=True)
    path.touch()

  monkeypatch.setattr(train.run_lib, "load", lambda workdir: run)
  monkeypatch.setattr(train.writer, "names", lambda config, output: {})
  monkeypatch.setattr(
    train.protocol.Protocol, "from_config", lambda *_, **__: 0
  )
  monkeypatch.setattr(train.calibration, "store", store)
  monkeypatch.setattr(train.writer, "evaluate", evaluate_one)
  (tmp_path / "threshold.json").write_text('{"image_score": 0.25}')
  config = types.SimpleNamespace(
    test_data=("a", "b"), allow_trained=False, decoded_cache=""
  )
  stops = "b"
  with pytest.raises(stopping.Stopped):
    train._finish(config, tmp_path)
  assert done == ["calibration", "a"]
  assert '"image_score": 0.25' in capsys.readouterr().out  # Replaced.
  stops = ""
  train._finish(config, tmp_path)  # The one that was stopped.
  assert done == ["calibration", "a", "b"]
  train._finish(config, tmp_path)
  assert done == ["calibration", "a", "b"]
  out = capsys.readouterr().out
  assert "a, b is not evaluated again" in out and "zsad_jax.evaluate" in out
  (tmp_path / "evaluation/a/results.json").unlink()
  with contextlib.suppress(FileExistsError):
    train._finish(config, tmp_path)
  assert done[3:] == ["a"]


def test_evaluation_of_a_run(uninterrupted, data, tmp_path, capsys):
  run = load(uninterrupted)
  (found,) = evaluate.evaluate_and_write(run, data, tmp_path, how(run))
  result = found.result
  assert result.rows["parts"]["pixel_auroc"] > 0.5
  written = json.loads((tmp_path / "parts/results.json").read_text())
  assert written["rows"]["parts"]["num_anomalous"] == 4
  assert written["step"] == 8 and written["versions"]["jax"] == jax.__version__
  out = capsys.readouterr().out
  assert "was trained on" in out and "random weights" in out


def test_without_masks_pixels_are_not_available(
  uninterrupted, tmp_path, capsys
):
  small_run.write_images(tmp_path / "plain", masks=False)
  folder = str(tmp_path / "plain")
  run = load(uninterrupted)
  (found,) = evaluate.evaluate_and_write(run, folder, tmp_path, how(run))
  rows = found.result.rows
  assert np.isnan(rows["plain"]["pixel_auroc"])
  assert 0 <= rows["plain"]["image_auroc"] <= 1
  assert "n/a" in capsys.readouterr().out
  written = json.loads((tmp_path / "plain/results.json").read_text())
  assert written["rows"]["plain"]["pixel_auroc"] is None


def test_a_corrupt_image_is_named_or_counted(uninterrupted, tmp_path, capsys):
  small_run.write_images(tmp_path / "some")
  run = load(uninterrupted)
  bad = tmp_path / "some/normal/1.png"
  bad.write_bytes(bad.read_bytes()[:300])
  with pytest.raises(ValueError, match=r"normal/1\.png"):
    evaluate.evaluate_and_write(run, str(tmp_path / "some"), tmp_path, how(run))
  (found,) = evaluate.evaluate_and_write(
    run, str(tmp_path / "some"), tmp_path, how(run), skip_corrupt=True
  )
  assert found.result.rows["some"]["num_normal"] == 3
  assert "they cannot be read (1)" in capsys.readouterr().out
