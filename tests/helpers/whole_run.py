"""A small run that trains, calibrates, evaluates and predicts.

python -m tests.helpers.whole_run --data=DIR --workdir=DIR
"""

import glob
import pathlib

import numpy as np
from absl import flags

from tests.helpers import device_orders, small_run
from zsad_jax import train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.datasets import references
from zsad_jax.evaluation import calibration, evaluator
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import cli, distributed


def run(workdir: pathlib.Path, data: str, method: str) -> None:
  """Train from stored features, calibrate, evaluate and predict.

  Args:
    workdir: receives the run and numbers.npz, which holds all results.
    data: folder of `small_run.write_mvtec`.
    method: "anomalyclip", or "adaptclip", which is trained with references.
  """
  clip_load.RANDOM_CONFIG = small_run.BACKBONE
  config = getattr(small_run, f"get_{method}_config")(data)
  config.batch_size = config.eval_batch_size = 8
  config.epochs = 5
  config.features.storage = "device"
  assert train.train(config.lock(), workdir)
  trained = run_lib.load(workdir)
  calibration.store(trained)
  numbers = {**_evaluated(trained, data), **_predicted(trained, data)}
  if distributed.is_primary():
    np.savez(workdir / "numbers.npz", **numbers)


def _evaluated(trained, data):
  """Return metrics and scores without and with references."""
  dataset = run_lib.open_dataset(trained.config, data)
  choices = references.NONE, references.sample(dataset, shots=3, seed=10)
  evaluation = evaluator.Evaluator.from_config(
    trained.config,
    trained.method,
    trained.backbone,
    distributed.make_mesh(),
    few_shot=True,
  )
  found = {}
  for category in evaluation.categories(
    trained.params, trained.stats, dataset, choices
  ):
    name = f"{category.name} {category.references.label}"
    found[f"{name} scores"] = category.pred_score
    found[f"{name} metrics"] = np.array([*category.compute().values()], float)
  return found


def _predicted(trained, data):
  """Return the results of a prediction with references."""
  images: list = sorted(glob.glob(f"{data}/*/test/*/*.png"))
  normal = sorted(glob.glob(f"{data}/nut/train/good/*.png"))
  results = detector_lib.Detector(trained).with_references(normal)(images)
  return {
    "predict scores": np.array([x.score for x in results]),
    "predict zero-shot scores": np.array([x.zero_shot_score for x in results]),
    "predict maps": np.stack([x.raw_map for x in results]),
    "predict thresholds": np.array([x.threshold for x in results]),
  }


def define_flags() -> None:
  """Define the flags of `run`."""
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.DEFINE_string("data", None, "Folder of small_run.write_mvtec.")
  flags.DEFINE_string("method", "anomalyclip", "Method to train.")


def main(options) -> None:
  """Run on all devices."""
  run(pathlib.Path(options.workdir), options.data, options.method)


if __name__ == "__main__":
  device_orders.imitate()
  cli.run(main, define_flags)
