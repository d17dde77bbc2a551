"""The threshold a run stores, and the range its maps are coloured in.

Both come from the auxiliary images that the run was trained on: nothing of a
target set is looked at. The threshold is the one with the best F1 there.
"""

import dataclasses
import json
import pathlib

import numpy as np

from zsad_jax import evaluator, files, predictor, runs
from zsad_jax.datasets import registry
from zsad_jax.evaluation import metrics

FILE = "threshold.json"
_MAP_PERCENTILES = (1.0, 99.5)  # Robust limits of the colours.


@dataclasses.dataclass(frozen=True)
class Threshold:
  """What `predict` needs beside the parameters.

  Attributes:
    image_score: images with at least this score are called anomalous.
    map_low: anomaly-map value shown in the coldest colour.
    map_high: value shown in the warmest.
    source: how they were found, for people.
  """

  image_score: float
  map_low: float
  map_high: float
  source: str


def store(run: runs.Run) -> Threshold:
  """Finds the threshold of a run and writes it beside its parameters."""
  evaluate = evaluator.make(
      run.config, run.method, run.backbone, predictor.make_mesh()
  )
  labels, scores, limits = [], [], []
  for name in run.config.train_data:
    dataset = registry.open_dataset(name, data_root=run.config.data_root)
    for category in evaluate.categories(run.params, run.stats, dataset):
      labels.append(category.label)
      scores.append(category.pred_score)
      limits.append(np.percentile(category.anomaly_map, _MAP_PERCENTILES))
  label, score = np.concatenate(labels), np.concatenate(scores)
  _, image_score = metrics.f1_max(label, score)
  low, high = np.median(limits, axis=0)
  sets = ", ".join(run.config.train_data)
  source = f"best F1 on the auxiliary images ({sets})"
  found = Threshold(float(image_score), float(low), float(high), source)
  text = json.dumps(dataclasses.asdict(found), indent=1) + "\n"
  files.write_text(run.workdir / FILE, text)
  return found


def read(workdir: pathlib.Path) -> Threshold:
  """Reads the threshold of a run.

  Raises:
    FileNotFoundError: the run has none, as its training was not finished.
  """
  path = workdir / FILE
  if not path.is_file():
    raise FileNotFoundError(
        f"{path} does not exist: training was not finished. Run the training "
        "command again; it goes on where it stopped."
    )
  return Threshold(**json.loads(path.read_text(encoding="utf-8")))
