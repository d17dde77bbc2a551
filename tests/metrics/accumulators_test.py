"""Measures, galleries, smoothing: what is made of a category's maps."""

import math

import jax
import numpy as np
import pytest
from scipy import ndimage

from zsad_jax.evaluation import examples
from zsad_jax.layers import resample, smoothing
from zsad_jax.metrics import accumulators, variants
from zsad_jax.metrics import exact as exact_lib


@pytest.fixture(scope="module")
def maps():
  rng = np.random.default_rng(0)
  mask = np.zeros((5, 12, 12), bool)
  mask[1, 2:6, 3:7] = mask[3, 0, 0] = mask[3, 8:, 8:] = True
  return mask, (rng.random(mask.shape) + mask).astype(np.float32)


def measured(name, mask, anomaly_map):
  measure = accumulators.make(name)
  for part in np.array_split(np.arange(len(mask)), 2):
    measure.update(mask[part], anomaly_map[part])
  return measure


def test_streamed_stands_beside_exact(maps):
  streamed, exact = (measured(n, *maps).pixel() for n in ("streamed", "exact"))
  assert exact == exact_lib.pixel_metrics(*maps)
  for name in accumulators.PIXEL:
    assert abs(streamed[name] - exact[name]) <= streamed[name + "_bound"] + 1e-9


@pytest.mark.parametrize("name", accumulators.MEASURES)
def test_no_anomalous_pixel_is_undefined(name, maps):
  mask, anomaly_map = maps
  measure = measured(name, 0 * mask, anomaly_map)
  as_zero = name == "adaclip"
  for value in measure.pixel().values():
    assert value == 0.0 if as_zero else math.isnan(value)
  assert measure.curves() == {}
  label, score = np.zeros(3, int), np.arange(3.0)
  for value in measure.image(label, score).values():
    assert value == 0.0 if as_zero else math.isnan(value)


def test_variants_change_the_columns_they_name(maps):
  mask, anomaly_map = maps
  exact = measured("exact", mask, anomaly_map).pixel()
  row = measured("faprompt", mask, anomaly_map).pixel()
  assert row["pixel_aupro"] == variants.aupro_200(mask, anomaly_map)
  assert row["pixel_aupro"] != exact["pixel_aupro"]
  assert row["pixel_auroc"] == exact["pixel_auroc"]
  label, score = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.3, 0.2, 0.15, 0.9])
  image = measured("adaptclip", mask, anomaly_map).image(label, score)
  assert image["image_ap"] == variants.aupr_reordered(label, score)
  assert image["image_overkill_5"] == variants.overkill(label, score, 0.05)


def test_per_image_scale_is_each_images_own(maps):
  mask, anomaly_map = maps
  scaled = np.stack([variants.min_max(x) for x in anomaly_map])
  row = measured("per_image", mask, anomaly_map * 5 - 2).pixel()
  exact = exact_lib.pixel_metrics(mask, scaled)
  np.testing.assert_allclose(row["pixel_auroc"], exact["pixel_auroc"])


@pytest.mark.parametrize("size", [5, 12, 31])
def test_at_another_size(maps, size):
  mask, anomaly_map = maps
  small, resized = accumulators.at_size(mask, anomaly_map, size)
  matrix = resample.matrix(12, size, "bilinear")
  expected = np.einsum("Hh,bhw,Ww->bHW", matrix, anomaly_map, matrix)
  np.testing.assert_allclose(resized, expected, atol=1e-6)
  nearest = [math.floor(i * 12 / size) for i in range(size)]
  np.testing.assert_array_equal(small, mask[:, nearest][:, :, nearest])


def test_an_unknown_variant_is_named():
  with pytest.raises(ValueError, match="no variant 'exakt'.* streamed, exact"):
    accumulators.make("exakt")


def test_quantiles_of_maps(maps):
  mask, anomaly_map = maps
  state = measured("streamed", mask, anomaly_map).state
  for share in (0.0, 0.25, 0.9, 1.0):
    exact = np.quantile(anomaly_map, share, method="inverted_cdf")
    assert 0 <= exact - state.quantile(share) < 1e-3
  with pytest.raises(ValueError, match="share in"):
    state.quantile(1.5)


def test_smoothing_on_the_device_is_scipys(maps):
  _, anomaly_map = maps
  on_device = jax.jit(lambda x: smoothing.gaussian(x, 1.5))(anomaly_map)
  np.testing.assert_allclose(
    on_device, ndimage.gaussian_filter(anomaly_map, (0, 1.5, 1.5)), atol=1e-5
  )


def test_a_gallery_keeps_the_telling_images():
  shown = examples.Gallery(each=2, threshold=0.5, always=[3])
  scores = [0.1, 0.9, 0.48, 0.2, 0.7, 0.05, 0.6, 0.95]
  labels = [0, 0, 0, 0, 1, 1, 1, 1]
  empty = np.zeros((2, 2), np.float32)
  for i, (label, score) in enumerate(zip(labels, scores)):
    shown.add(label, examples.Example(i, score, empty, None))
  numbers = {k: [e.number for e in v] for k, v in shown.kinds().items()}
  # Each image once, under the first of its kinds.
  assert numbers == {
    "missed": [5, 6],
    "false alarm": [1, 2],
    "found": [7, 4],
    "clear": [0, 3],
  }
  assert list(shown.kept) == [3]
  one = examples.Gallery(each=1, threshold=0.5)
  for i, (label, score) in enumerate(zip(labels, scores)):
    one.add(label, examples.Example(i, score, empty, None))
  assert [e.number for e in one.kinds()["borderline"]] == [2]


def test_drawn_curves_have_the_measured_areas(maps):
  mask, anomaly_map = maps
  coarse = np.round(4 * anomaly_map)  # Few enough points to be drawn all.
  row = exact_lib.pixel_metrics(mask, coarse, max_fpr=1.0)
  for name in ("streamed", "exact"):
    drawn = measured(name, mask, coarse.astype(np.float32)).curves()
    for curve, metric in (("roc", "pixel_auroc"), ("pro", "pixel_aupro")):
      x, y = drawn[curve]
      np.testing.assert_allclose(np.trapezoid(y, x), row[metric], atol=1e-6)
