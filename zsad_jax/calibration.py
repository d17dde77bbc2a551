"""Finds the thresholds of a run on the auxiliary images it was trained on.

Nothing of a target set is looked at. A threshold is the one with the best F1
there: without references, and beside one sampled reference per class where
the auxiliary sets have normal images to sample from.
"""

import numpy as np

from zsad_jax import evaluator, fewshot, predictor, runs, threshold
from zsad_jax.datasets import references, registry
from zsad_jax.evaluation import metrics

_MAP_PERCENTILES = (1.0, 99.5)  # Robust limits of the colours.
_FILES = {0: threshold.FILE, 1: threshold.FEW_SHOT_FILE}  # By shots.


def store(run: runs.Run) -> None:
  """Finds the thresholds of a run and writes them beside its parameters.

  Raises:
    ValueError: the method needs references and there are none.
  """
  datasets = [
      registry.open_dataset(name, data_root=run.config.data_root)
      for name in run.config.train_data
  ]
  few_shot = all(
      {s.class_name for s in data.train} >= set(data.class_names)
      for data in datasets
  )
  zero_shot = not fewshot.needs_references(run.method)
  if not (few_shot or zero_shot):
    raise ValueError(
        f"{run.config.name} needs references, but the auxiliary data "
        f"({', '.join(run.config.train_data)}) has none."
    )
  evaluate = evaluator.make(
      run.config,
      run.method,
      run.backbone,
      predictor.make_mesh(),
      few_shot=few_shot,
  )
  found = {shots: [] for shots in (0, 1) if (zero_shot, few_shot)[shots]}
  for data in datasets:
    choices = [
        references.sample(data, shots=shots, seed=references.SEEDS[0])
        for shots in found
    ]
    for category in evaluate.categories(
        run.params, run.stats, data, choices
    ):
      found[category.references.shots].append(category)
      # Maps are large; only their range is needed.
      category.anomaly_map = np.percentile(
          category.anomaly_map, _MAP_PERCENTILES
      )
  source = "best F1 on the auxiliary images "
  source += f"({', '.join(run.config.train_data)})"
  for shots, categories in found.items():
    beside = " beside one reference per class" if shots else ""
    _threshold(categories, source + beside).write(run.workdir, _FILES[shots])


def _threshold(categories, source):
  """The threshold of categories whose maps were reduced to their range."""
  _, image_score = metrics.f1_max(
      np.concatenate([category.label for category in categories]),
      np.concatenate([category.pred_score for category in categories]),
  )
  low, high = np.median([c.anomaly_map for c in categories], axis=0)
  return threshold.Threshold(
      float(image_score), float(low), float(high), source
  )
