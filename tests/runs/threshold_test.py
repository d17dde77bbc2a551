"""Scales of scores: normalized, and as a share of normal images."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsad_jax.runs import ensemble
from zsad_jax.runs.threshold import Threshold, read

SCORES = st.floats(0, 1, width=32)


def make(image_score, normal_scores=()):
  return Threshold(
    image_score, 0.0, 1.0, "test", normal_scores=tuple(sorted(normal_scores))
  )


@given(st.lists(SCORES, max_size=20), SCORES)
def test_the_percentile_counts_lower_scores(normal, score):
  found = make(0.5, normal).normal_percentile(score)
  if not normal:
    assert found is None
    return
  assert found == pytest.approx(100 * np.mean([x < score for x in normal]))


@given(st.floats(0, 1.5), SCORES, SCORES)
def test_the_threshold_is_one_half_and_the_order_is_kept(limit, a, b):
  threshold = make(limit)
  low, high = map(threshold.normalized, sorted([a, b]))
  assert 0 <= low <= high <= 1
  for score, found in ((min(a, b), low), (max(a, b), high)):
    assert (found >= 0.5) == (score >= limit)


def test_a_file_without_pixels_is_read(tmp_path):
  """Runs of earlier versions have four fields."""
  (tmp_path / "threshold.json").write_text(
    '{"image_score": 0.5, "map_low": 0.1, "map_high": 0.9, "source": "old"}'
  )
  assert read(tmp_path) == Threshold(0.5, 0.1, 0.9, "old")


@pytest.mark.parametrize("second, mean", [(0.75, 0.5), (None, None)])
def test_an_ensemble_has_the_mean_pixel_threshold(tmp_path, second, mean):
  for name, pixel in (("a", 0.25), ("b", second)):
    (tmp_path / name).mkdir()
    threshold = dataclasses.replace(make(0.5), pixel=pixel)
    threshold.write(tmp_path / name)
  members = [tmp_path / "a", tmp_path / "b"]
  ensemble._write_threshold(tmp_path, members, "threshold.json")
  assert read(tmp_path).pixel == mean
