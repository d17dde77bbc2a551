"""Published variants of the metrics, each under its own name.

They serve to reproduce published tables. Compare methods by the exact metrics
of `metrics.exact`: several of these variants depend on the scale of the scores,
drop a part of the curve, or order ties.
"""

import math

import numpy as np
from jaxtyping import Shaped

import zsad_jax.metrics.exact as exact

ESCAPE_RATES = (0.02, 0.05, 0.1)


def aupro_200(
  gt_mask: Shaped[np.ndarray, "n h w"],
  anomaly_map: Shaped[np.ndarray, "n h w"],
  *,
  max_fpr: float = exact.MAX_FPR,
  steps: int = 200,
) -> float:
  """Compute AUPRO from 200 thresholds equally spaced in score.

  Points with a false positive rate below `max_fpr` are kept and that axis is
  stretched to [0, 1]: the part left of the smallest rate is lost, and maps
  concentrated near their minimum are measured only at very small rates.

  Args:
    gt_mask: nonzero = anomalous.
    anomaly_map: higher = more anomalous.
    max_fpr: rates from here on are dropped; above 1: none.
    steps: number of thresholds.

  Returns:
    Float in [0, 1]; nan where fewer than two points are kept, or all scores
    are equal.

  Raises:
    UndefinedError: there is no normal or no anomalous pixel.

  References:
    `cal_pro_score` in the code of AnomalyCLIP, FAPrompt, APRIL-GAN and others.
    The fraction of a region above a threshold is computed by one sort of its
    scores instead of relabelling the masks, which gives the same numbers.
  """
  exact.check_shapes("gt_mask", gt_mask, "anomaly_map", anomaly_map)
  is_anomalous = gt_mask != 0
  anomalous = int(is_anomalous.sum())
  exact.check_states(anomalous, is_anomalous.size, "pixels")
  low, high = anomaly_map.min(), anomaly_map.max()
  if low == high:
    return math.nan
  threshold = np.arange(low, high, (high - low) / steps)
  above = lambda scores: (
    scores.size - np.searchsorted(np.sort(scores), threshold, side="right")
  )
  fpr = above(anomaly_map[~is_anomalous]) / (is_anomalous.size - anomalous)
  overlaps = [
    above(scores) / scores.size
    for scores in _scores_of_regions(is_anomalous, anomaly_map)
  ]
  pro = np.mean(overlaps, axis=0)
  kept = fpr < max_fpr
  fpr, pro = fpr[kept], pro[kept]
  if fpr.size < 2 or fpr.min() == fpr.max():
    return math.nan
  fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min())
  return float(np.trapezoid(pro[::-1], fpr[::-1]))


def aupro_resampled(
  gt_mask: Shaped[np.ndarray, "n h w"],
  anomaly_map: Shaped[np.ndarray, "n h w"],
  *,
  max_fpr: float = exact.MAX_FPR,
) -> float:
  """Compute AUPRO as the mean of the curves of regions, resampled by index.

  Each region's exact curve against all normal pixels, up to `max_fpr`, is
  resampled to a common number of points by index; the rates of false and of
  true positives are averaged, the area is divided by the last mean rate.

  Arguments and errors are those of `exact.aupro`. Needs a sort of all normal
  pixels for every region.

  References:
    The evaluator of AdaptCLIP's authors, after anomalib up to 2.2.
  """
  exact.check_shapes("gt_mask", gt_mask, "anomaly_map", anomaly_map)
  is_anomalous = gt_mask != 0
  exact.check_states(int(is_anomalous.sum()), is_anomalous.size, "pixels")
  normal = anomaly_map[~is_anomalous]
  all_fpr, _ = _roc(normal, anomaly_map[is_anomalous])
  points = np.count_nonzero(all_fpr <= max_fpr)
  curves = [
    _resampled(*_roc(normal, scores), points, max_fpr)
    for scores in _scores_of_regions(is_anomalous, anomaly_map)
  ]
  fpr, tpr = np.mean(curves, axis=0)
  return float(np.trapezoid(tpr, fpr) / fpr[-1])


def aupr_trapezoid(
  label: Shaped[np.ndarray, " n"], score: Shaped[np.ndarray, " n"]
) -> float:
  """Compute the trapezoid under precision over recall, from the point (0, 1).

  Arguments and errors are those of `exact.auroc`. Used by the public code of
  WinCLIP and AnoVL, VisA's script and others.
  """
  recall, precision = _precision_recall(label, score)
  return float(np.trapezoid(precision, recall))


def aupr_reordered(
  label: Shaped[np.ndarray, " n"], score: Shaped[np.ndarray, " n"]
) -> float:
  """Compute the trapezoid after a stable sort of the reversed curve by recall.

  Points of equal recall are then in the wrong order, lowest precision first.
  This is "AP" in AdaptCLIP's evaluator. Arguments and errors are those of
  `exact.auroc`.
  """
  recall, precision = (x[::-1] for x in _precision_recall(label, score))
  order = np.argsort(recall, kind="stable")
  return float(np.trapezoid(precision[order], recall[order]))


def overkill(
  label: Shaped[np.ndarray, " n"],
  score: Shaped[np.ndarray, " n"],
  escape_rate: float,
) -> float:
  """Compute the fraction of normal items flagged at a given escape rate.

  The escape rate is the fraction of anomalous items that are missed.

  Args:
    label: 0 or False = normal, 1 or True = anomalous.
    score: higher = more anomalous.
    escape_rate: in [0, 1], the quantile of the anomalous scores (linearly
      interpolated) that is the threshold.

  Returns:
    Float in [0, 1], lower is better.

  Raises:
    UndefinedError: there is no normal or no anomalous item.
    ValueError: the rate is out of range.

  References:
    AdaptCLIP's evaluator, Overkill@2, @5 and @10 %.
  """
  if not 0 <= escape_rate <= 1:
    raise ValueError(f"escape_rate must lie in [0, 1], got {escape_rate}.")
  is_anomalous = exact.check_items(label, score)
  threshold = np.quantile(score[is_anomalous], escape_rate)
  return float(np.mean(score[~is_anomalous] >= threshold))


def by_sample(
  group: Shaped[np.ndarray, " n"],
  label: Shaped[np.ndarray, " n"],
  score: Shaped[np.ndarray, " n"],
) -> tuple[Shaped[np.ndarray, " m"], Shaped[np.ndarray, " m"]]:
  """Compute label and score of samples shown by several images (views).

  Args:
    group: the sample of each image.
    label: 0 or 1 of each image.
    score: score of each image.

  Returns:
    The largest label and score of each sample, ordered by sample (Real-IAD).
  """
  _, index = np.unique(group, return_inverse=True)
  labels = np.zeros(index.max(initial=-1) + 1, np.asarray(label).dtype)
  scores = np.full(labels.shape, -np.inf, np.asarray(score).dtype)
  np.maximum.at(labels, index, label)
  np.maximum.at(scores, index, score)
  return labels, scores


def min_max(values: Shaped[np.ndarray, "*"]) -> Shaped[np.ndarray, "*"]:
  """Scale values to [0, 1]; equal values to 0.

  Depends on all values given: transductive.
  """
  low, high = values.min(), values.max()
  return (values - low) / (high - low) if high > low else np.zeros_like(values)


def _scores_of_regions(is_anomalous, anomaly_map):
  """Yield the scores of each region of each image."""
  for mask, one_map in zip(is_anomalous, anomaly_map):
    region, area = exact.regions(mask)
    order = np.argsort(region, kind="stable")
    if area.size:
      yield from np.split(one_map[mask][order], np.cumsum(area)[:-1])


def _roc(normal, anomalous):
  """Return both rates at every distinct score, descending, from (0, 0)."""
  threshold = np.unique(np.concatenate([normal, anomalous]))[::-1]
  rate = lambda score: np.append(0, _at_least(score, threshold)) / score.size
  return rate(normal), rate(anomalous)


def _resampled(fpr, tpr, points, max_fpr):
  """Resample a curve up to `max_fpr` at `points` equal steps of its index."""
  limit = max_fpr
  if fpr[fpr <= max_fpr].max() == 0:
    limit = fpr[fpr > max_fpr].min()
  end = np.count_nonzero(fpr <= limit)
  place = np.arange(points, dtype=float)
  share = None
  if not np.isclose(fpr[end - 1], max_fpr) and end < fpr.size:
    after = np.searchsorted(fpr, max_fpr)
    share = 1 - (fpr[after] - max_fpr) / (fpr[after] - fpr[after - 1])
    end += 1
  index = np.arange(end) / (end - 1) * (points - 1)
  if share is not None:
    place[-1] = index[-2] + (index[-1] - index[-2]) * share
  return np.interp(place, index, fpr[:end]), np.interp(place, index, tpr[:end])


def _precision_recall(label, score):
  """Return recall and precision at every distinct score, descending."""
  is_anomalous = exact.check_items(label, score)
  threshold = np.unique(score)[::-1]
  flagged = _at_least(score, threshold)
  true_pos = _at_least(score[is_anomalous], threshold)
  recall = np.append(0, true_pos / true_pos[-1])
  return recall, np.append(1, true_pos / flagged)


def _at_least(score, threshold):
  """Return the number of scores >= each threshold."""
  return score.size - np.searchsorted(np.sort(score), threshold)
