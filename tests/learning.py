"""Methods learn as before: a short run of each on a smaller benchmark.

python -m pytest -q -n 2 tests/learning.py

It takes minutes, so its file name keeps it out of the default test run; the
continuous integration runs it afterwards.

`goldens/learning.json` holds the recorded mean image AUROC of each method over
unseen categories. To add a method, or after a change that is meant to move the
numbers, record again and give the reason in the commit:

python -m tests.learning
"""

import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import filelock
import pytest

from zsad_jax import methods, train
from zsad_jax.datasets import registry
from zsad_jax.datasets.synthetic import benchmark
from zsad_jax.evaluation import evaluator
from zsad_jax.reporting import tables
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import distributed

ROOT = pathlib.Path(__file__).parent.parent
RECORDED = ROOT / "tests" / "goldens" / "learning.json"
METHODS = sorted(json.loads(RECORDED.read_text(encoding="utf-8")))
MAX_DROP = 0.03  # Of the mean image AUROC.
SMALLER = {
  "auxiliary": dict(
    categories=benchmark.TRAIN_CATEGORIES, references=2, normal=4, anomalous=8
  ),
  "benchmark": dict(
    categories=benchmark.TEST_CATEGORIES, references=0, normal=8, anomalous=8
  ),
}


def draw(folder):
  """Draw a smaller benchmark into a folder, once for all workers."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(benchmark, "DATASETS", SMALLER)
    with filelock.FileLock(folder / "lock"):
      return benchmark.write(folder / "drawn")


def learn(name, data, workdir):
  """Train for at most an epoch; return the mean image AUROC."""
  config = importlib.import_module(f"configs.{name}").get_config()
  config.epochs = min(config.epochs, 1)
  config.batch_size, config.eval_batch_size = 8, 32
  config.train_data = (str(data / "auxiliary"),)
  config.checkpoint_steps = 10_000
  assert train.train(config.lock(), workdir)
  run = run_lib.load(workdir)
  dataset = registry.open_dataset(str(data / "benchmark"))
  compare = evaluator.Evaluator.from_config(
    run.config, run.method, run.backbone, distributed.make_mesh()
  )
  (rows,) = compare.evaluate(run.params, run.stats, dataset).rows
  return tables.mean_row(rows)[0]["image_auroc"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  shared = tmp_path_factory.getbasetemp().parent / "learning"
  shared.mkdir(exist_ok=True)
  return draw(shared)


@pytest.mark.parametrize("name", METHODS)
def test_no_method_learns_less_than_recorded(name, drawn, tmp_path):
  # In a separate process: the tests' compiler options make slow programs.
  done = subprocess.run(
    [sys.executable, "-m", "tests.learning", name, drawn, tmp_path],
    env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  found = float(done.stdout.splitlines()[-1])
  recorded = json.loads(RECORDED.read_text())
  assert found > recorded[name] - MAX_DROP


def record():
  """Record the number of every method."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    data, found = draw(folder), {}
    for method in methods.names():
      found[method] = round(learn(method, data, folder / method), 4)
      print(method, found[method], flush=True)
  RECORDED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
  if sys.argv[1:]:
    method, *folders = sys.argv[1:]
    print(learn(method, *map(pathlib.Path, folders)))
  else:
    record()
