"""Tests of methods/musc.py against NumPy loops, and of its backbone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import image_only
from zsad_jax.layers import memory_bank
from zsad_jax.methods import musc

N, LAYERS, SIDE, C = 8, 2, 3, 5
METHOD = musc.Method(feature_layers=(1, 2), similar_images=(1, 2, 4))


@pytest.fixture(scope="module")
def tokens():
  """Tokens of a set of images."""
  shape = (N, LAYERS, SIDE**2, C)
  return np.random.default_rng(0).standard_normal(shape).astype("f")


def aggregated(tokens, r):
  """Unit sums over the neighbors inside of the grid, by loops."""
  grid = tokens.reshape(SIDE, SIDE, C).astype(float)
  out = np.zeros_like(grid)
  for y in range(SIDE):
    for x in range(SIDE):
      h = r // 2
      rows = slice(max(y - h, 0), y + h + 1)
      columns = slice(max(x - h, 0), x + h + 1)
      out[y, x] = grid[rows, columns].sum(axis=(0, 1))
  out = out.reshape(-1, C)
  return out / np.linalg.norm(out, axis=-1, keepdims=True)


def patch_scores(tokens, kept):
  """Mutual scores of all patches: (n, layers, r, l), by loops."""
  out = np.zeros((len(tokens), LAYERS, 3, SIDE**2))
  for layer in range(LAYERS):
    for k, r in enumerate((1, 3, 5)):
      units = [aggregated(x[layer], r) for x in tokens]
      for i, own in enumerate(units):
        for p, patch in enumerate(own):
          distances = sorted(
            np.linalg.norm(other - patch, axis=-1).min()
            for j, other in enumerate(units)
            if j != i
          )
          out[i, layer, k, p] = np.mean(distances[:kept])
  return 0.5 * out


@jax.jit
def found(tokens, index):
  distances = METHOD.compare({"tokens": tokens}, {"tokens": tokens})
  return METHOD.patch_scores(distances, index)


@pytest.mark.parametrize("count, kept", [(8, 2), (5, 1)])
def test_patch_scores_are_those_of_loops(tokens, count, kept):
  """Of 8 images 30 % of the 7 others are 2; of 5, 1 of the 4 others."""
  given = tokens[:count]
  result = found(given, jnp.arange(count))
  np.testing.assert_allclose(result, patch_scores(given, kept), atol=2e-6)


def test_maps_and_terms_of_predictions(tokens, small_clip):
  units = np.eye(N, 7, dtype="f")
  distances = METHOD.compare({"tokens": tokens}, {"tokens": tokens})
  given = {
    "tokens": tokens,
    "class_unit": units,
    "comparisons": distances,
    "set_index": jnp.arange(N),
  }
  result: Any = METHOD.predict({}, {}, small_clip, {}, given)
  side = SIDE * small_clip.patch_size
  assert result["anomaly_map"].shape == (N, side, side)
  values = patch_scores(tokens, 2).mean(axis=(1, 2)).reshape(N, SIDE, SIDE)
  corners = np.asarray(result["anomaly_map"])[:, :: side - 1, :: side - 1]
  np.testing.assert_allclose(corners, values[:, ::2, ::2], atol=2e-6)
  largest = values.max(axis=(1, 2))
  assert (result["pred_score"] <= largest + 1e-6).all()
  terms = np.asarray(result["score_terms"])
  np.testing.assert_array_equal(terms[:, 0], result["pred_score"])
  np.testing.assert_array_equal(terms[:, 1:], units)
  with pytest.raises(ValueError, match="scores all images of a set together"):
    METHOD.predict({}, {}, small_clip, {}, {"tokens": tokens})


def test_image_scores_are_those_of_loops():
  rng = np.random.default_rng(1)
  units = np.abs(rng.standard_normal((N, 4)))
  units /= np.linalg.norm(units, axis=1, keepdims=True)
  score = rng.random(N)
  scaled = (score - score.min()) / (score.max() - score.min())
  expected = []
  for i in range(N):
    cosines = [units[i] @ units[j] for j in range(N)]
    order = sorted(range(N), key=lambda j: -cosines[j])
    assert order[0] == i
    means = []
    for k in (1, 2, 4):
      weights = [cosines[j] for j in order[:k]]
      means.append(np.average(scaled[order[:k]], weights=weights))
    expected.append(np.mean(means))
  terms = np.concatenate([score[:, None], units], axis=1)
  result = METHOD.category_scores(terms)
  np.testing.assert_allclose(result, expected, atol=1e-12)
  alone = dataclasses.replace(METHOD, similar_images=(1,))
  np.testing.assert_allclose(alone.category_scores(terms), scaled, atol=1e-12)
  terms[:, 0] = 0.5
  assert (METHOD.category_scores(terms) == 0).all()


def test_tokens_are_normalized_over_patches_and_channels(small_clip):
  """With an image encoder that has no text encoder."""
  backbone: Any = image_only.ImageOnly(small_clip)
  method = musc.Method(feature_layers=(2, 3))
  pixels = np.random.default_rng(2).standard_normal((2, 32, 32, 3)).astype("f")
  batch = {"image": pixels, "class_id": np.zeros(2, int)}
  result = jax.jit(lambda batch: method.encode(backbone, batch))(batch)
  assert method.prepare(backbone, ["bolt"]) == {}
  assert result["tokens"].shape == (2, 2, 16, 64)
  mean, std = (
    f(np.asarray(result["tokens"]), axis=(2, 3)) for f in (np.mean, np.std)
  )
  np.testing.assert_allclose(mean, 0, atol=1e-5)
  np.testing.assert_allclose(std, 1, atol=1e-3)


def test_distances_to_each_image():
  rng = np.random.default_rng(3)
  query, images = (
    rng.standard_normal(s).astype("f") for s in ((2, 3, 4), (5, 6, 4))
  )
  query, images = (
    x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, images)
  )
  result = memory_bank.nearest_each(jnp.asarray(query), jnp.asarray(images))
  expected = 1 - np.einsum("blc,mpc->blmp", query, images).max(axis=-1)
  np.testing.assert_allclose(result, expected, atol=1e-6)


def test_the_least_size_of_a_set():
  assert musc.Method().min_set_size == 5
  assert musc.Method(nearest_images=1.0).min_set_size == 2


def test_fields_are_checked():
  for settings, message in (
    (dict(nearest_images=0.0), "nearest_images has to be greater than 0"),
    (dict(nearest_images=1.5), r"nearest_images has to be in \[0, 1\]"),
    (dict(neighborhoods=(1, 2)), "neighborhoods has to be odd, got 2"),
    (dict(similar_images=()), "similar_images: there has to be one, got none"),
    (dict(feature_layers=(0,)), "feature_layers has to be at least 1"),
  ):
    with pytest.raises(ValueError, match=message):
      dataclasses.replace(musc.Method(), **settings)
