"""Accumulators of pixel metrics, variants, smoothing."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from scipy import ndimage

from zsad_jax import metrics
from zsad_jax.layers import resample, smoothing
from zsad_jax.metrics import accumulators, exact, variants


@pytest.fixture(scope="module")
def maps():
  rng = np.random.default_rng(0)
  mask = np.zeros((5, 12, 12), bool)
  mask[1, 2:6, 3:7] = mask[3, 0, 0] = mask[3, 8:, 8:] = True
  return mask, (rng.random(mask.shape) + mask).astype(np.float32)


def accumulated(name, mask, anomaly_map):
  accumulator = accumulators.variant(name).pixel_metrics()
  for part in np.array_split(np.arange(len(mask)), 2):
    accumulator.update(mask[part], anomaly_map[part])
  return accumulator


def test_streamed_is_within_its_bounds_of_exact(maps):
  streamed, by_sorting = (
    accumulated(n, *maps).compute() for n in ("streamed", "exact")
  )
  assert by_sorting == metrics.pixel_metrics(*maps)
  for name in by_sorting:
    assert (
      abs(streamed[name] - by_sorting[name]) <= streamed[name + "_bound"] + 1e-9
    )


@pytest.mark.parametrize("name", accumulators.VARIANTS)
def test_no_anomalous_pixel_is_undefined(name, maps):
  mask, anomaly_map = maps
  accumulator = accumulated(name, 0 * mask, anomaly_map)
  as_zero = name == "adaclip"
  for value in accumulator.compute().values():
    assert value == 0.0 if as_zero else math.isnan(value)
  assert accumulator.curves() == {}
  label, score = np.zeros(3, int), np.arange(3.0)
  for value in accumulators.variant(name).image_metrics(label, score).values():
    assert value == 0.0 if as_zero else math.isnan(value)


def test_variants_replace_the_metrics_they_define(maps):
  mask, anomaly_map = maps
  sorted_ = accumulated("exact", mask, anomaly_map).compute()
  row = accumulated("faprompt", mask, anomaly_map).compute()
  assert row["pixel_aupro"] == variants.aupro_200(mask, anomaly_map)
  assert row["pixel_aupro"] != sorted_["pixel_aupro"]
  assert row["pixel_auroc"] == sorted_["pixel_auroc"]
  label, score = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.3, 0.2, 0.15, 0.9])
  image = accumulators.variant("adaptclip").image_metrics(label, score)
  assert image["image_ap"] == variants.aupr_reordered(label, score)
  assert image["image_overkill_5"] == variants.overkill(label, score, 0.05)


def test_per_image_scales_each_map_by_its_extremes(maps):
  mask, anomaly_map = maps
  scaled = np.stack([variants.min_max(x) for x in anomaly_map])
  row = accumulated("per_image", mask, anomaly_map * 5 - 2).compute()
  expected = metrics.pixel_metrics(mask, scaled)
  np.testing.assert_allclose(row["pixel_auroc"], expected["pixel_auroc"])


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
    accumulators.variant("exakt")


def test_quantiles_of_maps(maps):
  mask, anomaly_map = maps
  state = accumulated("streamed", mask, anomaly_map).state
  for fraction in (0.0, 0.25, 0.9, 1.0):
    value = np.quantile(anomaly_map, fraction, method="inverted_cdf")
    assert 0 <= value - state.quantile(fraction) < 1e-3
  with pytest.raises(ValueError, match="fraction in"):
    state.quantile(1.5)


def test_smoothing_on_the_device_is_scipys(maps):
  _, anomaly_map = maps
  on_device = jax.jit(lambda x: smoothing.gaussian(x, 1.5))(anomaly_map)
  np.testing.assert_allclose(
    on_device, ndimage.gaussian_filter(anomaly_map, (0, 1.5, 1.5)), atol=1e-5
  )


def test_drawn_curves_have_the_measured_areas(maps):
  mask, anomaly_map = maps
  coarse = np.round(4 * anomaly_map)  # Few enough points to be drawn all.
  row = {
    "pixel_auroc": metrics.METRICS["pixel_auroc"].function(mask, coarse),
    "pixel_aupro": exact.aupro(mask, coarse, max_fpr=1.0),
  }
  for name in ("streamed", "exact"):
    drawn = accumulated(name, mask, coarse.astype(np.float32)).curves()
    for curve, metric in (("roc", "pixel_auroc"), ("pro", "pixel_aupro")):
      x, y = drawn[curve]
      np.testing.assert_allclose(np.trapezoid(y, x), row[metric], atol=1e-6)


def test_every_metric_has_one_value_by_all_ways(maps):
  mask, anomaly_map = maps
  label, score = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.3, 0.2, 0.15, 0.9])
  found = metrics.image_metrics(label, score)
  found |= metrics.pixel_metrics(mask, anomaly_map)
  assert found.keys() == metrics.METRICS.keys()
  for name, metric in metrics.METRICS.items():
    truth = (label, score) if metric.level == "image" else maps
    np.testing.assert_allclose(metric.function(*truth), found[name], rtol=1e-12)
    assert name.startswith(metric.level)


def test_a_lower_value_may_be_better():
  metric = metrics.METRICS["image_auroc"]
  assert metric.is_better(0.9, 0.8)
  rate = dataclasses.replace(metric, higher_is_better=False)
  assert rate.is_better(0.1, 0.2)
