"""Tests of the metrics: values by hand, scikit-learn, and a slow AUPRO."""

import functools
import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax import metrics
from zsad_jax.metrics import exact

close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-9)
ITEM_METRICS = (exact.auroc, exact.average_precision, exact.f1_max)
SCORES = st.one_of(
  st.integers(-3, 3).map(float),  # Ties are the rule.
  st.floats(-1e3, 1e3, width=32),
)


@st.composite
def items(draw):
  """Labels, both states among them, and scores."""
  label = draw(
    st.lists(st.integers(0, 1), min_size=2, max_size=40).filter(
      lambda x: len(set(x)) == 2
    )
  )
  score = draw(st.lists(SCORES, min_size=len(label), max_size=len(label)))
  return np.array(label), np.array(score, np.float32)


@st.composite
def maps(draw):
  """A few small masks, normal and anomalous pixels among them, and maps."""
  n, h, w = draw(st.integers(1, 3)), draw(st.integers(2, 5)), 4
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  mask = rng.random((n, h, w)) < draw(st.sampled_from([0.1, 0.3, 0.6]))
  mask[0, 0, 0], mask[0, 1, 2] = False, True
  levels = draw(st.sampled_from([1, 2, 5, 1000]))
  return mask, rng.integers(0, levels, mask.shape).astype(np.float32)


def regions_by_hand(mask):
  """Sets of (image, row, column), grown pixel by pixel over 8 neighbours."""
  left = {tuple(map(int, p)) for p in np.argwhere(mask)}
  while left:
    grown, border = set(), {left.pop()}
    while border:
      grown |= border
      border = {
        (i, y + dy, x + dx)
        for i, y, x in border
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
      } & left
      left -= border
    yield grown


def slow_aupro(mask, anomaly_map, max_fpr):
  """Every distinct score is a threshold, every region is visited."""
  regions = list(regions_by_hand(mask))
  area, fpr, pro = 0.0, 0.0, 0.0
  for threshold in np.unique(anomaly_map)[::-1]:
    flagged = anomaly_map >= threshold
    next_pro = np.mean([np.mean([flagged[p] for p in r]) for r in regions])
    next_fpr = flagged[~mask].mean()
    if next_fpr > fpr:
      end = min(next_fpr, max_fpr)
      pro_end = pro + (next_pro - pro) * (end - fpr) / (next_fpr - fpr)
      area += (end - fpr) * (pro + pro_end) / 2
    fpr, pro = next_fpr, next_pro
    if fpr >= max_fpr:
      return area / max_fpr
  raise AssertionError("The last threshold flags everything.")


def sklearn_f1_max(label, score):
  precision, recall, _ = sklearn.metrics.precision_recall_curve(label, score)
  total = precision + recall
  return np.max(2 * precision * recall / np.where(total > 0, total, 1))


@settings(max_examples=100, deadline=None)
@given(items())
def test_item_metrics_equal_scikit_learn(data):
  label, score = data
  close(exact.auroc(label, score), sklearn.metrics.roc_auc_score(label, score))
  close(
    exact.average_precision(label, score),
    sklearn.metrics.average_precision_score(label, score),
  )
  f1, threshold = exact.f1_max(label, score)
  close(f1, sklearn_f1_max(label, score))
  f1_at = lambda t: 2 * sum(label[score >= t]) / (sum(score >= t) + sum(label))
  close(f1_at(threshold), f1)
  assert all(f1_at(t) < f1 - 1e-12 for t in score[score > threshold])


@settings(max_examples=100, deadline=None)
@given(maps(), st.sampled_from([0.05, 0.25, 0.3, 0.5, 1.0]))
def test_aupro_equals_a_slow_loop(data, max_fpr):
  mask, anomaly_map = data
  close(
    exact.aupro(mask, anomaly_map, max_fpr=max_fpr),
    slow_aupro(mask, anomaly_map, max_fpr),
  )


@settings(max_examples=50, deadline=None)
@given(maps())
def test_rows_hold_the_values_of_the_functions(data):
  mask, anomaly_map = data
  label, score = mask.ravel(), anomaly_map.ravel()
  f1, threshold = exact.f1_max(label, score)
  auroc = exact.auroc(label, score)
  ap = exact.average_precision(label, score)
  image = metrics.image_metrics(label, score)
  assert image == {
    "image_auroc": auroc,
    "image_ap": ap,
    "image_f1_max": f1,
    "image_f1_threshold": threshold,
  }
  pixel = metrics.pixel_metrics(mask, anomaly_map)
  assert pixel == {
    "pixel_auroc": auroc,
    "pixel_ap": ap,
    "pixel_f1_max": f1,
    "pixel_aupro": exact.aupro(mask, anomaly_map),
  }
  assert all(type(value) is float for value in (image | pixel).values())


@settings(max_examples=50, deadline=None)
@given(maps())
def test_only_the_order_counts(data):
  mask, anomaly_map = data
  for stretched in (
    np.exp(anomaly_map.astype(np.float64) / 100) - 7,
    np.where(anomaly_map == anomaly_map.max(), np.inf, anomaly_map),
    np.where(anomaly_map == anomaly_map.min(), -np.inf, anomaly_map),
  ):
    assert metrics.pixel_metrics(mask, stretched) == metrics.pixel_metrics(
      mask, anomaly_map
    )


@settings(max_examples=50, deadline=None)
@given(maps(), st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_count(data, random):
  mask, anomaly_map = data
  order = random.sample(range(len(mask)), len(mask))
  shuffled = metrics.pixel_metrics(mask[order], anomaly_map[order])
  for name, value in metrics.pixel_metrics(mask, anomaly_map).items():
    close(shuffled[name], value, err_msg=name)


def test_scores_by_hand():
  label = np.array([0, 0, 1, 1, 0, 1, 0, 1])
  score = np.array([0.1, 0.4, 0.35, 0.8, 0.4, 0.4, 0.2, 0.8])
  close(exact.auroc(label, score), 0.8125)
  close(exact.average_precision(label, score), 49 / 60)
  close(exact.f1_max(label, score), (0.8, 0.35))


def test_equal_f1_gives_the_larger_threshold():
  label, score = np.array([1, 0, 0, 1]), np.array([4.0, 3.0, 2.0, 1.0])
  close(exact.f1_max(label, score), (2 / 3, 4.0))


def test_maps_by_hand():
  mask = np.zeros((2, 4, 4), bool)
  mask[0, [0, 1, 3], [0, 1, 3]] = True  # Two regions, the first diagonal.
  mask[1, [2, 2, 3, 3, 2], [0, 1, 0, 1, 3]] = True
  anomaly_map = (np.arange(32) * 7 % 32 / 32).reshape(mask.shape)
  result = metrics.pixel_metrics(mask, anomaly_map)
  close(result["pixel_auroc"], 0.265625)
  close(result["pixel_ap"], 0.2102186, atol=5e-8)
  close(result["pixel_f1_max"], 0.4)
  close(result["pixel_aupro"], 0.1805556, atol=5e-8)
  close(exact.aupro(mask, anomaly_map, max_fpr=0.05), 0.0)
  close(exact.aupro(mask, anomaly_map, max_fpr=1.0), 0.3489583, atol=5e-8)


@pytest.mark.parametrize("value", [0.0, -7.5, np.inf, -np.inf])
def test_constant_maps_are_at_chance(value):
  mask = np.zeros((2, 5, 5), np.uint8)
  mask[1, 2:4, 2:4] = 255
  result = metrics.pixel_metrics(mask, np.full(mask.shape, value, np.float32))
  close(list(result.values()), [0.5, 4 / 50, 8 / 54, 0.15])


def test_perfect_maps_score_one():
  mask = np.zeros((2, 5, 5), bool)
  mask[1, 2:4, 2:4] = mask[0, 0, 0] = True
  result = metrics.pixel_metrics(mask, mask.astype(np.float32))
  close(list(result.values()), 1.0)


def test_small_regions_count_as_much_as_large_ones():
  mask, found = np.zeros((1, 8, 8), bool), np.zeros((1, 8, 8))
  mask[0, 0, 0] = mask[0, 4:, 4:] = True
  found[0, 0, 0] = 1  # PRO: 1/2 at FPR 0, then straight to 1 at FPR 1.
  close(exact.aupro(mask, found), 0.575)


def test_diagonal_neighbours_are_one_region():
  mask = np.zeros((1, 4, 4), bool)
  mask[0, [0, 1, 3], [0, 1, 3]] = True
  found = np.zeros((1, 4, 4))
  found[0, 3, 3] = 1  # One of two regions; of three, were they 4-connected.
  close(exact.aupro(mask, found), 0.5 + 0.15 / 2)


def test_regions_end_with_their_image():
  mask, found = np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2))
  mask[0, 1], mask[1, 0, 0] = True, True
  found[1, 0, 0] = 1  # One of two regions, though the images lie in a row.
  close(exact.aupro(mask, found), 0.5 + 0.15 / 2)


def test_a_rise_at_the_limit_is_not_counted():
  mask = np.array([[[True, False, True, False]]])
  anomaly_map = np.array([[[3.0, 2.0, 1.0, 0.0]]])
  close(exact.aupro(mask, anomaly_map, max_fpr=0.5), 0.5)


@pytest.mark.parametrize("state", [0, 1])
def test_one_state_alone_is_undefined(state):
  label, score = np.full(12, state), np.arange(12.0)
  for metric in ITEM_METRICS:
    with pytest.raises(ValueError, match=f"items, got {12 * state} .* of 12"):
      metric(label, score)
  mask, anomaly_map = label.reshape(3, 2, 2), score.reshape(3, 2, 2)
  with pytest.raises(ValueError, match="normal and anomalous pixels"):
    exact.aupro(mask, anomaly_map)
  image = metrics.image_metrics(label, score)
  pixel = metrics.pixel_metrics(mask, anomaly_map)
  assert len(image) == len(pixel) == 4
  assert all(math.isnan(value) for value in (image | pixel).values())


def test_no_image_is_undefined():
  image = metrics.image_metrics(np.zeros(0, int), np.zeros(0))
  pixel = metrics.pixel_metrics(np.zeros((0, 4, 4)), np.zeros((0, 4, 4)))
  assert all(math.isnan(value) for value in (image | pixel).values())


def test_nan_is_refused_by_name():
  label, score = np.array([0, 1, 0, 1]), np.array([0.0, 1.0, np.nan, 2.0])
  for metric in (*ITEM_METRICS, metrics.image_metrics):
    with pytest.raises(ValueError, match="item 2 is NaN"):
      metric(label, score)
  mask, anomaly_map = np.zeros((3, 2, 2), bool), np.zeros((3, 2, 2))
  anomaly_map[1, 0, 1] = np.nan
  for metric in (exact.aupro, metrics.pixel_metrics):
    with pytest.raises(ValueError, match="image 1 contains NaN"):
      metric(mask, anomaly_map)


@pytest.mark.parametrize("max_fpr", [0.0, -0.1, 1.1, math.nan])
def test_limit_out_of_range_is_refused(max_fpr):
  mask = np.array([[[True, False]]])
  with pytest.raises(ValueError, match="max_fpr"):
    exact.aupro(mask, np.zeros(mask.shape), max_fpr=max_fpr)


def test_other_labels_are_refused():
  with pytest.raises(ValueError, match="0 or 1, got -1"):
    exact.auroc(np.array([-1, 1]), np.zeros(2))


def test_shapes_must_agree():
  # TypeError where the shapes in the signatures are checked at run time.
  with pytest.raises((ValueError, TypeError)):
    exact.auroc(np.array([0, 1]), np.zeros(3))
  with pytest.raises((ValueError, TypeError)):
    metrics.pixel_metrics(np.zeros((2, 4, 4)), np.zeros((1, 4, 4)))


def test_arguments_are_left_alone():
  rng = np.random.default_rng(0)
  mask, anomaly_map = rng.random((2, 6, 6)) < 0.3, rng.random((2, 6, 6))
  before = mask.copy(), anomaly_map.copy()
  metrics.pixel_metrics(mask, anomaly_map)
  metrics.image_metrics(mask.ravel(), anomaly_map.ravel())
  np.testing.assert_array_equal(mask, before[0])
  np.testing.assert_array_equal(anomaly_map, before[1])
