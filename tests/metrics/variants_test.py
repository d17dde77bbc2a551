"""Tests of the published variants: by hand, and against slow versions."""

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings

from tests.metrics.exact_test import items, maps, regions_by_hand
from zsad_jax.metrics import exact, variants

LABEL = np.array([0, 0, 1, 1, 0, 1, 0, 1])
SCORE = np.array([0.1, 0.4, 0.35, 0.8, 0.4, 0.4, 0.2, 0.8])


def two_images():
  """Two 4 x 4 images with two 8-connected regions each."""
  mask = np.zeros((2, 4, 4), bool)
  mask[0, [0, 1, 3], [0, 1, 3]] = True
  mask[1, [2, 2, 3, 3, 2], [0, 1, 0, 1, 3]] = True
  anomaly_map = (7 * np.arange(32) % 32).reshape(2, 4, 4) / 32
  return mask, anomaly_map


def slow_aupro_200(mask, anomaly_map, max_fpr, steps):
  """As published: all masks and maps are gone through at every threshold."""
  regions = list(regions_by_hand(mask))
  low, high = anomaly_map.min(), anomaly_map.max()
  points = []
  for threshold in np.arange(low, high, (high - low) / steps):
    flagged = anomaly_map > threshold
    pro = np.mean([np.mean([flagged[p] for p in r]) for r in regions])
    points.append((flagged[~mask].mean(), pro))
  fpr, pro = np.array([p for p in points if p[0] < max_fpr]).T
  fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min())
  return sklearn.metrics.auc(fpr, pro)


def test_values_by_hand():
  assert math.isclose(variants.aupr_trapezoid(LABEL, SCORE), 103 / 120)
  np.testing.assert_allclose(
    variants.aupro_200(*two_images()), 0.2083333, atol=1e-7
  )


@settings(max_examples=50, deadline=None)
@given(maps())
def test_200_thresholds_are_what_a_slow_loop_says(data):
  mask, anomaly_map = data
  fast = variants.aupro_200(mask, anomaly_map, max_fpr=1.01, steps=17)
  if anomaly_map.min() == anomaly_map.max() or math.isnan(fast):
    assert math.isnan(fast)
    return
  slow = slow_aupro_200(mask, anomaly_map, 1.01, 17)
  np.testing.assert_allclose(fast, slow, atol=1e-9)


def test_too_few_points_are_undefined():
  mask = np.zeros((1, 2, 4), bool)
  mask[0, 0, 0] = True
  anomaly_map = np.where(mask, 1.0, 0.0)
  assert math.isnan(variants.aupro_200(mask, anomaly_map))
  assert math.isnan(variants.aupro_200(mask, 0 * anomaly_map))


@settings(max_examples=50, deadline=None)
@given(items())
def test_the_trapezoid_is_scikit_learns(data):
  label, score = data
  precision, recall, _ = sklearn.metrics.precision_recall_curve(label, score)
  np.testing.assert_allclose(
    variants.aupr_trapezoid(label, score),
    sklearn.metrics.auc(recall, precision),
    atol=1e-9,
  )


def test_reordering_takes_the_lowest_precision_first():
  label = np.array([1, 0, 0])
  # After (1, 1) come (1, 1/2) and (1, 1/3), from which the trapezoid starts
  # only where recall is 0; all three stand at recall 1.
  score = np.array([3.0, 2.0, 1.0])
  assert variants.aupr_trapezoid(label, score) == 1.0
  np.testing.assert_allclose(
    variants.aupr_reordered(label, score), (1 + 1 / 3) / 2
  )


@settings(max_examples=50, deadline=None)
@given(items())
def test_one_region_is_resampled_to_the_exact_curve(data):
  label, score = data
  mask, anomaly_map = (label == 1)[None, None], score[None, None]
  mask = np.repeat(mask, 1, axis=1)
  if len(list(regions_by_hand(mask))) != 1:
    return
  np.testing.assert_allclose(
    variants.aupro_resampled(mask, anomaly_map, max_fpr=1.0),
    exact.auroc(label, score),
    atol=1e-9,
  )


def test_overkill_by_hand():
  label = np.array([0] * 4 + [1] * 5)
  score = np.array([0.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 4.0, 5.0])
  assert variants.overkill(label, score, 0.0) == 0.75
  assert variants.overkill(label, score, 0.5) == 0.25
  assert variants.overkill(label, score, 0.125) == 0.5  # Between 1 and 2.
  with pytest.raises(ValueError, match="escape_rate"):
    variants.overkill(label, score, 5.0)
  with pytest.raises(exact.UndefinedError):
    variants.overkill(label[:4], score[:4], 0.05)


def test_samples_take_their_views_maximum():
  group = np.array(["b", "a", "b", "c", "a"])
  label, score = np.array([0, 0, 1, 0, 0]), np.array([3.0, 1, 2, -4, 5])
  labels, scores = variants.by_sample(group, label, score)
  np.testing.assert_array_equal(labels, [0, 1, 0])
  np.testing.assert_array_equal(scores, [5, 3, -4])


def test_min_max():
  np.testing.assert_array_equal(
    variants.min_max(np.array([2.0, 4, 3])), [0, 1, 0.5]
  )
  np.testing.assert_array_equal(variants.min_max(np.full(3, 7.0)), np.zeros(3))
