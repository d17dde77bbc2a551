"""Runs of version 0.1.0 load, evaluate and resume to the same numbers.

See tests/goldens/README.md for how they were made.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.helpers import small_run
from zsad_jax import evaluate, train
from zsad_jax.evaluation import protocol as protocol_lib
from zsad_jax.runs import run as run_lib

OLD_RUNS = pathlib.Path(__file__).parents[1] / "goldens" / "old_runs"
RTOL = 1e-4  # Other processors and XLA flags round differently.


@pytest.fixture
def old_run(request, tmp_path, monkeypatch):
  """A copy of a run in a folder with its data; and the stored numbers."""
  monkeypatch.chdir(tmp_path)
  small_run.write_mvtec(tmp_path / "data")
  shutil.copytree(OLD_RUNS / request.param, tmp_path / "run")
  expected = (OLD_RUNS / request.param / "expected.json").read_text()
  return tmp_path / "run", json.loads(expected)


def rows(workdir):
  """Metrics of the run, zero-shot and with one reference per class."""
  run = run_lib.load(workdir)
  protocol = protocol_lib.Protocol.from_config(
    run.config, shots=(0, 1), seeds=(10,), allow_trained=True
  )
  found = evaluate.evaluate_and_write(
    run,
    "data",
    workdir / "evaluation",
    protocol,
    choose=evaluate.chooser([1], [10], None),
  )
  return {f"{r.result.shots}-shot": r.result.rows for r in found}


def check_rows(found, expected):
  assert found.keys() == expected.keys()
  for shots, categories in expected.items():
    for category, row in categories.items():
      assert found[shots][category].keys() == row.keys()
      for name, value in row.items():
        np.testing.assert_allclose(
          found[shots][category][name],
          value,
          rtol=RTOL,
          atol=1e-5,
          err_msg=f"{shots} {category} {name}",
        )


@pytest.mark.parametrize(
  "old_run",
  [
    pytest.param("adaptclip", marks=pytest.mark.slow),
    "anomalyclip",
    "clip",
    pytest.param("adaclip", marks=pytest.mark.slow),
    pytest.param("faprompt", marks=pytest.mark.slow),
  ],
  indirect=True,
)
def test_evaluates_to_the_same_numbers(old_run):
  workdir, expected = old_run
  check_rows(rows(workdir), expected["interrupted"])


@pytest.mark.slow
@pytest.mark.parametrize(
  "old_run", ["anomalyclip", "adaptclip", "adaclip", "faprompt"], indirect=True
)
def test_resumes_to_the_same_numbers(old_run):
  workdir, expected = old_run
  name = run_lib.read_config(workdir).method_name
  assert train.train(run_lib.read_config(workdir).lock(), workdir)
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  found = [json.loads(line) for line in lines]
  assert len(found) == len(expected["losses"])
  for ours, theirs in zip(found, expected["losses"]):
    for name in theirs.keys() - {"images_per_second"}:
      np.testing.assert_allclose(
        ours[name], theirs[name], rtol=RTOL, atol=1e-6, err_msg=name
      )
  if name == "anomalyclip":  # Evaluation takes as long as training.
    check_rows(rows(workdir), expected["finished"])
