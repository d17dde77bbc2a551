"""Rates of thresholds from normal images, and pixel thresholds from masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.evaluation import calibration, user_images
from zsad_jax.metrics import exact, streaming
from zsad_jax.runs.detection import Detection
from zsad_jax.runs.threshold import Threshold

LIMITS = Threshold(0.5, 0.0, 1.0, "test")


def detection(score, raw_map, size=None):
  raw_map = np.asarray(raw_map, np.float32)
  size = size or raw_map.shape
  return Detection(float(score), LIMITS, raw_map, size, 1.0)


@pytest.fixture(scope="module")
def pool():
  """Results of 100 images, whose maps are interpolated."""
  rng, found = np.random.default_rng(0), user_images.Results()
  for _ in range(100):
    found.add(detection(rng.uniform(), rng.uniform(size=(3, 4)), (5, 9)))
  return found


@pytest.mark.parametrize("rate, number", [(0.1, 19), (0.1, 25), (0.3, 8)])
@pytest.mark.parametrize("values", ["scores", "peaks"])
def test_new_normal_images_are_flagged_at_the_rate(pool, rate, number, values):
  """A mean over 2000 choices of calibration images and 10 new ones.

  The expected rate is floor(rate (n + 1)) / (n + 1), exactly, since the values
  are distinct; the standard error of the mean is below 0.005.
  """
  found = getattr(pool, values)
  assert len(set(found)) == 100
  rng, flagged = np.random.default_rng(number), []
  for _ in range(2000):
    chosen = rng.permutation(found)
    limit, _ = calibration.normal_threshold(chosen[:number], rate)
    flagged.append((chosen[number : number + 10] >= limit).mean())
  expected = np.floor(rate * (number + 1) + 1e-9) / (number + 1)
  assert expected <= rate + 1e-9
  np.testing.assert_allclose(np.mean(flagged), expected, atol=0.02)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1, width=16), min_size=1, max_size=40), st.data())
def test_as_many_images_as_the_rate_allows_reach_the_threshold(peaks, data):
  """Brute force: the lowest float that k - 1 of n images reach, at most."""
  rate = data.draw(st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5]))
  results = user_images.UserImages(rate)
  for peak in peaks:
    results.add_normal(detection(peak, np.full((2, 2), peak)))
  found = results.thresholds((0.0, 1.0))
  maps = np.array([np.float32(p) for p in peaks])
  allowed = max(1, int(rate * (len(peaks) + 1) + 1e-9)) - 1
  candidates = [np.nextafter(p, np.float32(2)) for p in maps]
  best = min(c for c in candidates if (maps >= c).sum() <= allowed)
  assert found.pixel == found.image_score == best
  warned = [x for x in results.remarks(found) if "too few" in x]
  assert len(warned) == (rate * (len(peaks) + 1) < 1)
  assert found.normal_scores == tuple(sorted(maps.tolist()))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_masks_give_the_best_pixel_f1(seed):
  rng = np.random.default_rng(seed)
  results = user_images.UserImages(0.1, with_masks=True)
  maps, truth = [], []
  for kind in rng.integers(0, 3, 6).tolist() + [0, 1]:
    found = detection(0.5, rng.integers(0, 9, (4, 5)) / 8)
    mask = rng.uniform(size=(4, 5)) < 0.4
    mask[0, 0] = True
    if kind == 0:
      results.add_normal(found)
      mask[:] = False
    else:
      results.add_anomalous(found, mask if kind == 1 else None)
    if kind < 2:
      maps.append(found.anomaly_map)
      truth.append(mask)
  stored = results.thresholds((0.0, 1.0))
  label, value = np.concatenate(truth).ravel(), np.concatenate(maps).ravel()
  best, _ = exact.f1_max(label.astype(int), value)
  flagged = value >= (stored.pixel or 0)
  f1 = 2 * (flagged & label).sum() / (flagged.sum() + label.sum())
  # Values of one bin, which differ by less than 1/4096, are one threshold.
  assert f1 == pytest.approx(best, abs=0.02)
  assert results.used_rate is None


@pytest.mark.parametrize("marked", [(0, 0), (1, 0), (0, 1)])
def test_pixels_of_one_kind_have_no_threshold(marked):
  state = streaming.PixelState.init()
  for is_anomalous in range(2):
    if marked[is_anomalous]:
      mask = np.full((1, 2, 2), bool(is_anomalous))
      state.update(mask, np.ones((1, 2, 2), np.float32))
  assert calibration.pixel_f1_threshold(state) is None


@settings(max_examples=50, deadline=None)
@given(
  st.lists(
    st.tuples(st.booleans(), st.floats(0, 1, width=16)), min_size=2, max_size=30
  ).filter(lambda pairs: len({anomalous for anomalous, _ in pairs}) == 2)
)
def test_rounding_changes_no_label_of_the_best_f1(pairs):
  label, score = map(np.array, zip(*pairs))
  limit = calibration.f1_threshold(label.astype(int), score)
  flagged = score >= limit
  f1 = 2 * (flagged & label).sum() / (flagged.sum() + label.sum())
  options = [score >= s for s in score]
  assert f1 == pytest.approx(
    max(2 * (x & label).sum() / (x.sum() + label.sum()) for x in options)
  )
  gap = min(abs(score[flagged].min() - limit), 1)
  if not flagged.all():
    assert gap == pytest.approx(abs(limit - score[~flagged].max()))
    assert gap > 0


@pytest.mark.parametrize("start", np.linspace(0.01, 1, 20, dtype=np.float32))
def test_adjacent_scores_keep_their_labels(start):
  score = np.array([start, np.nextafter(start, np.float32(2))])
  limit = calibration.f1_threshold(np.array([0, 1]), score)
  assert (score >= limit).tolist() == [False, True]


@pytest.mark.parametrize(
  "anomalous, expected",
  [([], "note: no anomalous image"), ([0.1], "lower scores"), ([0.9], None)],
)
def test_what_the_images_say_about_defects(anomalous, expected):
  results = user_images.UserImages(0.5)
  for score in (0.3, 0.4, 0.5):
    results.add_normal(detection(score, np.zeros((2, 2))))
  for score in anomalous:
    results.add_anomalous(detection(score, np.zeros((2, 2))))
  found = list(results.remarks(results.thresholds((0.0, 1.0))))
  named = [x for x in found if "anomalous image" in x and "AUROC" not in x]
  assert [expected in x for x in named] == [True] * bool(expected)
