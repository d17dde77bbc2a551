"""Thresholds of scores and pixels, from auxiliary or from normal images.

The thresholds of a run maximise F1 on the auxiliary images and on their pixels;
no target image is used. There are those without references, and those with a
sampled reference per class where the auxiliary data sets have normal images to
sample from.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from zsad_jax.datasets import naming, references
from zsad_jax.evaluation import ensemble
from zsad_jax.inference import sets
from zsad_jax.metrics import exact, streaming
from zsad_jax.metrics.accumulators import StreamingPixelMetrics
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib

_NO_THRESHOLD = (
  "note: a run with parameters per category has no threshold. Set one for a "
  "category: zsad calibrate --name=NAME --class_name=CATEGORY good/"
)
_NO_REFERENCES = (
  "note: {} compares with references, and the auxiliary data have none: the "
  "run has no threshold. Set one: zsad calibrate --workdir={} --name=NAME "
  "--references=few_good/ good/"
)
_MAP_RANGE = (0.01, 0.995)  # Quantiles: robust limits of the colour scale.
_FILES = {0: threshold_lib.FILE, 1: threshold_lib.FEW_SHOT_FILE}  # By shots.


def store(run: run_lib.Run) -> None:
  """Compute the thresholds of a run and write them to its folder.

  There are none, with a note, of a run with parameters per category, or where a
  method needs references and the data have none.
  """
  config: Any = run.config
  if run.categories:  # Their few references are in the memory banks.
    print(_NO_THRESHOLD)
    return
  datasets = [run_lib.open_dataset(config, name) for name in config.train_data]
  few_shot = not sets.scores_sets(run.method) and all(
    {s.class_name for s in data.train} >= set(data.class_names)
    for data in datasets
  )
  zero_shot = not run.method.needs_references
  if not (few_shot or zero_shot):
    print(_NO_REFERENCES.format(config.method_name, run.workdir))
    return
  # Scores of single images, as in predictions.
  evaluator = ensemble.evaluator_of(
    run, transductive_scores=False, few_shot=few_shot
  )
  found = {shots: [] for shots in (0, 1) if (zero_shot, few_shot)[shots]}
  # Image scores alone have no maps whose colors would need limits.
  limits = (lambda _: (0.0, 1.0)) if run.method.image_only else map_range
  pixels: dict[int, streaming.PixelState] = {}
  for data in datasets:
    choices = [
      references.sample(data, shots=shots, seed=references.SEEDS[0])
      for shots in found
    ]
    for category in evaluator.categories(run.params, run.stats, data, choices):
      # The histograms are large: only their sum is kept.
      assert isinstance(category.pixel_metrics, StreamingPixelMetrics)
      state = category.pixel_metrics.state
      shots = category.references.shots or 0
      found[shots].append((category.label, category.pred_score, limits(state)))
      pixels[shots] = pixels[shots].merge(state) if shots in pixels else state
  places = [naming.place(name, config.data_root) for name in config.train_data]
  names = naming.names(places)
  listed = ", ".join(names[place] for place in places)
  data = f"{threshold_lib.AUXILIARY} ({listed})"
  for shots, categories in found.items():
    source = data + (" with one reference per class" if shots else "")
    stored = _thresholds(categories, pixels[shots], source)
    stored.write(run.workdir, _FILES[shots])


def map_range(state: streaming.PixelState) -> tuple[float, float]:
  """Return robust limits of the colour scale of maps, given as histograms."""
  low, high = (state.quantile(fraction) for fraction in _MAP_RANGE)
  return low, high


def f1_threshold(
  label: Int[np.ndarray, "n"], score: Float[np.ndarray, "n"]
) -> float:
  """Return the threshold of images with the best F1.

  It is halfway between the lowest score that is labelled anomalous and the next
  lower one, so that rounding, as of an exported program, changes no label.

  Args:
    label: 1 for anomalous images.
    score: their scores.
  """
  _, lowest = exact.f1_max(label, score)
  below = score[score < lowest]
  if not below.size:
    return float(lowest)
  next_lower = float(below.max())
  # In float32, as scores are compared; adjacent numbers have none between them.
  middle = float(np.float32((float(lowest) + next_lower) / 2))
  return middle if next_lower < middle <= lowest else float(lowest)


def pixel_f1_threshold(state: streaming.PixelState) -> float | None:
  """Return the threshold of pixels with the best F1, of their histograms.

  Returns:
    Pixels of at least this value are labelled anomalous; None if no normal or
    no anomalous pixel was counted, such as for data without masks.
  """
  if not (state.num_normal and state.num_anomalous):
    return None
  return state.curve().f1_threshold()


def check_rate(rate: float) -> None:
  """Check a false-positive rate.

  Raises:
    ValueError: it is not in (0, 1).
  """
  if not 0 < rate < 1:
    raise ValueError(
      f"The rate of false alarms must be in (0, 1), got {rate:g}."
    )


def normal_threshold(
  score: Shaped[np.ndarray, " n"], rate: float
) -> tuple[float, str]:
  """Split-conformal threshold with false-positive rate at most `rate`.

  If calibration and test scores are exchangeable, the rank of a test score
  among the n + 1 scores is uniform: it exceeds the k-th largest of n with
  probability at most k / (n + 1), over the draw of all of them (Vovk et al.,
  Algorithmic Learning in a Random World, 2005). The threshold is the next
  larger float above that score, for k = floor(rate (n + 1)).

  Args:
    score: scores of n normal images, none of which is a reference.
    rate: false-positive rate, in (0, 1).

  Returns:
    The threshold: images with at least this score are labelled anomalous; and a
    warning if n is too small for the rate, else "".

  Raises:
    ValueError: a score is NaN or the rate is out of range.
  """
  check_rate(rate)
  if not score.size or not np.isfinite(score).all():
    raise ValueError("A threshold needs scores, none of them NaN or infinite.")
  # A rate such as 0.05 is not a binary fraction: 0.05 * 60 is less than 3.
  rank = math.floor(rate * (score.size + 1) * (1 + 1e-12))
  warning = ""
  if not rank:
    needed = math.ceil(1 / rate) - 1
    warning = (
      f"{score.size} normal images are too few for a rate of "
      f"{100 * rate:g} %: up to {100 / (score.size + 1):.2g} % of new normal "
      f"images may exceed all of them. Give at least {needed}."
    )
  largest = np.sort(score)[::-1][max(rank, 1) - 1]
  return float(np.nextafter(largest, np.float32(np.inf))), warning


def _thresholds(categories, pixels, source):
  """Return the thresholds from labels, scores and maps of auxiliary images."""
  labels, scores, ranges = zip(*categories)
  image_score = f1_threshold(np.concatenate(labels), np.concatenate(scores))
  low, high = np.median(ranges, axis=0)
  pixel = pixel_f1_threshold(pixels)
  return threshold_lib.Threshold(
    image_score,
    float(low),
    float(high),
    f"best F1 on {source}",
    pixel,
    pixel_source="" if pixel is None else f"best pixel F1 on {source}",
  )
