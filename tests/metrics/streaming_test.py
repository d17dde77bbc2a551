"""Tests of the streamed metrics: within their bounds of the exact ones."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from zsad_jax import metrics
from zsad_jax.metrics import exact as exact_lib
from zsad_jax.metrics import streaming
from zsad_jax.metrics.streaming import PixelState
from zsad_jax.runtime import packing

NAMES = ("auroc", "ap", "f1_max", "aupro")
LAWS = {
  "linear": lambda x: x,
  "saturated": lambda x: 1 / (1 + np.exp(-12 * x)),
  "heavy-tailed": lambda x: np.exp(6 * x),
  "tied": lambda x: np.round(2 * x),
  "half equal": lambda x: np.maximum(x, 0),
  "negative": lambda x: -np.exp(-3 * x),
  "huge": lambda x: np.float32(3e38) * np.tanh(x),
  "tiny": lambda x: np.float32(1e-44) * np.round(9 * x),
  "infinite": lambda x: np.where(np.abs(x) > 1, np.inf * x, x),
  "constant": lambda x: 0 * x,
  "adversarial": lambda x: 1 + 1e-7 * x,  # All of it in a bin or two.
}


def state_of(mask, anomaly_map, bits=streaming.BITS):
  state = PixelState.init(bits)
  state.update(mask, anomaly_map)
  return state


def computed(state, max_fpr=exact_lib.MAX_FPR):
  """Metrics of a state, by name."""
  curve = state.curve()
  return {
    "auroc": curve.auroc(),
    "ap": curve.average_precision(),
    "f1_max": curve.f1_max(),
    "aupro": curve.aupro(max_fpr=max_fpr),
  }


def equal(one, other):
  names = "anomalous", "normal", "pro", "num_regions", "largest_region"
  return all(
    np.array_equal(getattr(one, name), getattr(other, name)) for name in names
  )


@st.composite
def maps(draw):
  """Masks with both states, and maps of any law, good or bad."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  mask = rng.random((draw(st.integers(1, 4)), 9, 11)) < 0.2
  mask[0, 0, 0], mask[0, 1, 2] = False, True
  noise = rng.normal(size=mask.shape) + draw(st.floats(-2, 2)) * mask
  law = LAWS[draw(st.sampled_from(sorted(LAWS)))]
  return mask, law(noise).astype(np.float32)


@settings(max_examples=300, deadline=None)
@given(maps(), st.integers(10, 24), st.sampled_from([0.05, 0.3, 1.0]))
def test_error_is_within_the_stated_bound(data, bits, max_fpr):
  mask, anomaly_map = data
  exact = metrics.pixel_metrics(mask, anomaly_map)
  exact["pixel_aupro"] = exact_lib.aupro(mask, anomaly_map, max_fpr=max_fpr)
  found = computed(state_of(mask, anomaly_map, bits), max_fpr=max_fpr)
  for name in NAMES:
    error = abs(found[name].value - exact[f"pixel_{name}"])
    assert error <= found[name].bound + 1e-9, name


@settings(max_examples=50, deadline=None)
@given(maps())
def test_the_threshold_reaches_the_f1(data):
  mask, anomaly_map = data
  curve = state_of(mask, anomaly_map, 12).curve()
  flagged = anomaly_map >= np.float32(curve.f1_threshold())
  f1 = 2 * (flagged & mask).sum() / (flagged.sum() + mask.sum())
  np.testing.assert_allclose(curve.f1_max().value, f1, atol=1e-12)


def smooth_maps(seed):
  """Sixty smooth maps of noise, raised at round defects in every second."""
  rng = np.random.default_rng(seed)
  noise = ndimage.gaussian_filter(rng.normal(size=(60, 160, 160)), (0, 4, 4))
  noise /= noise.std()
  mask = np.zeros(noise.shape, bool)
  y, x = np.mgrid[:160, :160]
  for i, _ in itertools.product(range(0, 60, 2), range(2)):
    radius = rng.integers(4, 14)
    away = np.square([y, x] - rng.integers(20, 140, (2, 1, 1))).sum(0)
    mask[i] |= away < radius**2
    noise[i] += 2 * np.exp(-away / (2 * radius**2))
  return mask, noise


@pytest.mark.parametrize(
  "law",
  [
    lambda x: x,
    lambda x: 1 / (1 + np.exp(-x)),
    lambda x: 1 / (1 + np.exp(4 - 2 * x)),
    lambda x: np.exp(3 * x),
  ],
  ids=["linear", "sigmoid", "softmax", "heavy"],
)
def test_smooth_maps_are_measured_closely(law):
  mask, noise = smooth_maps(0)
  anomaly_map = law(noise).astype(np.float32)
  exact = metrics.pixel_metrics(mask, anomaly_map)
  found = computed(state_of(mask, anomaly_map))
  tolerance = dict(zip(NAMES, (1e-6, 2e-5, 5e-5, 2e-6)))
  for name in NAMES:
    error = abs(found[name].value - exact[f"pixel_{name}"])
    assert error < tolerance[name], name


def test_bfloat16_is_exact_with_sixteen_bits():
  mask, noise = smooth_maps(1)
  mask, noise = mask[:6, ::4, ::4], noise[:6, ::4, ::4].astype(np.float32)
  coarse = (noise.view(np.uint32) & 0xFFFF0000).view(np.float32)
  exact = metrics.pixel_metrics(mask, coarse)
  found = computed(state_of(mask, coarse, 16))
  np.testing.assert_allclose(found["auroc"].value, exact["pixel_auroc"])
  np.testing.assert_allclose(found["f1_max"].value, exact["pixel_f1_max"])
  np.testing.assert_allclose(
    found["aupro"].value, exact["pixel_aupro"], rtol=1e-6
  )


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_parts_merge_to_the_same_bits(workers):
  mask, noise = smooth_maps(2)
  noise = noise.astype(np.float32)
  whole = state_of(mask, noise)
  merged = PixelState.init()
  for part in reversed(range(workers)):
    merged = merged.merge(state_of(mask[part::workers], noise[part::workers]))
  assert equal(merged, whole)
  assert computed(merged) == computed(whole)


def test_a_saved_state_goes_on(tmp_path):
  mask, noise = smooth_maps(3)
  noise = noise.astype(np.float32)
  state_of(mask[:20], noise[:20]).save(tmp_path / "state.npz")
  state = PixelState.load(tmp_path / "state.npz")
  sent = PixelState.from_dict(packing.unpack(packing.pack(state.to_dict())))
  assert vars(sent).keys() == vars(state).keys()
  for name, value in vars(state).items():
    np.testing.assert_array_equal(getattr(sent, name), value)
  state.update(mask[20:], noise[20:])
  assert equal(state, state_of(mask, noise))


@given(
  st.lists(
    st.one_of(st.floats(width=32, allow_nan=False), st.floats(0, 1, width=32)),
    min_size=2,
  ),
  st.integers(10, 24),
)
def test_bins_keep_the_order(scores, bits):
  scores = np.sort(np.array(scores, np.float32) + np.float32(0))
  place = streaming.bins(scores, bits).astype(np.int64)
  assert (np.diff(place) >= 0).all()
  assert 0 <= place.min() and place.max() < streaming.num_bins(bits)
  lowest = np.array([streaming.lowest(int(p), bits) for p in place], np.float32)
  assert (lowest <= scores).all()
  assert (streaming.bins(lowest, bits) == place)[lowest > -np.inf].all()


def test_zero_has_one_sign():
  mask = np.array([[[False, True, False, False]]])
  anomaly_map = np.array([[[-0.0, 0.0, -1.0, 1.0]]], np.float32)
  assert computed(state_of(mask, anomaly_map))["auroc"].value == 0.5


def test_invalid_input_is_refused():
  mask = np.zeros((2, 3, 3), bool)
  bad = np.zeros((2, 3, 3), np.float32)
  bad[1, 2, 2] = np.nan
  with pytest.raises(ValueError, match="map of image 1 contains NaN"):
    state_of(mask, bad)
  with pytest.raises((ValueError, TypeError)):
    state_of(mask, bad[:1])
  with pytest.raises(ValueError, match="bits"):
    PixelState.init(30)
  with pytest.raises(ValueError, match="21 and of 16 bits"):
    PixelState.init().merge(PixelState.init(16))
  with pytest.raises(exact_lib.UndefinedError, match="anomalous pixels"):
    computed(state_of(mask, np.zeros((2, 3, 3), np.float32)))
  mask[0, 0, 0] = True
  with pytest.raises(ValueError, match="max_fpr"):
    computed(state_of(mask, np.zeros((2, 3, 3), np.float32)), max_fpr=0.0)


def test_a_corrupt_state_is_named(tmp_path):
  path = tmp_path / "state.npz"
  path.write_bytes(b"PK")
  with pytest.raises(ValueError, match="state.npz holds no state"):
    PixelState.load(path)
  with pytest.raises(FileNotFoundError):
    PixelState.load(tmp_path / "other.npz")
