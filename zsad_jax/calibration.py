"""Finds the threshold of a run on the auxiliary images it was trained on.

Nothing of a target set is looked at. The threshold is the one with the best
F1 there.
"""

import numpy as np

from zsad_jax import evaluator, predictor, runs
from zsad_jax.datasets import registry
from zsad_jax.evaluation import metrics
from zsad_jax.threshold import Threshold

_MAP_PERCENTILES = (1.0, 99.5)  # Robust limits of the colours.


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
  found.write(run.workdir)
  return found
