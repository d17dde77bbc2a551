"""Runs whose training data cannot set a threshold."""

import types
from typing import Any

import ml_collections
import pytest

from zsad_jax import train
from zsad_jax.datasets import index
from zsad_jax.evaluation import calibration
from zsad_jax.methods import anomalydino
from zsad_jax.runs import finished, threshold
from zsad_jax.runs import run as run_lib

METHOD = anomalydino.Method()


@pytest.fixture
def run(tmp_path, monkeypatch, small_clip):
  """A run of a method that needs references, on data without any."""
  sample = index.Sample("a.png", "", "bolt", "good", 0)
  data = types.SimpleNamespace(train=[], test=[sample], class_names=("bolt",))
  monkeypatch.setattr(
    calibration.run_lib, "open_dataset", lambda config, name: data
  )
  (tmp_path / "config.json").touch()
  config: Any = ml_collections.ConfigDict(
    {"method_name": "anomalydino", "train_data": ("own",)}
  )
  return run_lib.Run(tmp_path, config, small_clip, METHOD, {}, {}, 0, 0.0)


def test_the_run_is_finished_and_says_what_is_missing(run, capsys):
  stages = finished.Stages(run.workdir, 0)
  train._calibrate(run, stages)
  out = capsys.readouterr().out
  assert "has no threshold" in out and "--references" in out
  assert stages.is_done("calibration")  # It is not repeated.
  for few_shot in (False, True):
    with pytest.raises(FileNotFoundError, match="no threshold.*--references"):
      threshold.read(run.workdir, few_shot=few_shot)


@pytest.mark.parametrize(
  ("name", "use"),
  [
    (None, None),
    (threshold.FILE, "photos/"),
    (threshold.FEW_SHOT_FILE, "--references=few_good/ photos/"),
  ],
)
def test_what_a_run_can_be_used_for(tmp_path, capsys, name, use):
  if name:
    (tmp_path / name).touch()
  train._print_next(tmp_path)
  first, *others = capsys.readouterr().out.splitlines()
  assert first.endswith(str(tmp_path))
  assert [line.split(f"{tmp_path} ")[1] for line in others] == [use] * bool(use)
