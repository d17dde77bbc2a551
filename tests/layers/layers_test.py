"""Tests of resampling, similarity, k-means, fusion, prompts and names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from zsad_jax.layers import (
  kmeans,
  linear,
  prompts,
  resample,
  semantic_fusion,
  similarity,
)
from zsad_jax.torch_io import rules

RNG = np.random.default_rng(0)
SIZES = st.integers(2, 40)


@settings(max_examples=8, deadline=None)
@given(SIZES, SIZES)
def test_matrices_equal_jax_image(size_in, size_out):
  x = jnp.asarray(RNG.normal(size=(size_in, 1)), jnp.float32)
  for ours, theirs, antialias in (
    ("bilinear", "linear", False),
    ("bicubic", "cubic-pytorch", False),
    ("bicubic_antialias", "cubic", True),
  ):
    matrix = resample.matrix(size_in, size_out, ours)
    expected = jax.image.resize(
      x, (size_out, 1), method=theirs, antialias=antialias
    )
    np.testing.assert_allclose(matrix @ x, expected, atol=2e-5)


@given(SIZES, SIZES)
def test_corners_map_on_corners(size_in, size_out):
  matrix = resample.matrix(size_in, size_out, "bilinear_corners")
  where = matrix @ np.arange(size_in)
  expected = np.linspace(0, size_in - 1, size_out)
  np.testing.assert_allclose(where, expected, atol=1e-9)


def test_resize_is_rows_then_columns_and_names_unknown_methods():
  x = jnp.asarray(RNG.normal(size=(1, 3, 5, 2)), jnp.float32)
  out = resample.resize(x, (7, 4), method="bilinear")
  rows = resample.matrix(3, 7, "bilinear")
  columns = resample.matrix(5, 4, "bilinear")
  expected = np.einsum("Hh,bhwc,Ww->bHWc", rows, x, columns)
  np.testing.assert_allclose(out, expected, atol=1e-6)
  with pytest.raises(ValueError, match="nearest"):
    resample.matrix(3, 4, "nearest")


def test_position_table_keeps_the_class_row():
  table = jnp.asarray(RNG.normal(size=(17, 8)), jnp.float32)
  out = resample.resize_position_table(table, (6, 3), method="bicubic")
  assert out.shape == (19, 8)
  np.testing.assert_array_equal(out[0], table[0])
  same = resample.resize_position_table(table, (4, 4), method="bicubic")
  np.testing.assert_array_equal(same, table)


def test_unit_is_finite_at_zero():
  grad = jax.grad(lambda x: similarity.unit(x).sum())(jnp.zeros(4))
  assert np.isfinite(grad).all()
  x = jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32)
  norms = np.linalg.norm(similarity.unit(x), axis=-1)
  np.testing.assert_allclose(norms, 1.0, rtol=1e-6)


def _inertia(x, labels):
  x = np.asarray(x)
  return sum(
    ((x[labels == k] - x[labels == k].mean(0)) ** 2).sum()
    for k in np.unique(labels)
  )


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_is_as_good_as_scikit_learn(seed):
  # One initialisation each. A lost blob costs much, so many draws are averaged.
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(20, 32)) * 2
  x = centres[rng.integers(0, 20, 100)] + rng.normal(size=(100, 32))
  x = jnp.asarray(x, jnp.float32)
  run = jax.jit(jax.vmap(lambda rng: kmeans.kmeans(rng, x, 20)))
  ours = run(jax.random.split(jax.random.key(seed), 40))
  theirs = [
    KMeans(20, n_init=1, random_state=i).fit_predict(x) for i in range(40)
  ]
  ours, theirs = (
    np.mean([_inertia(x, np.asarray(labels)) for labels in found])
    for found in (ours, theirs)
  )
  assert ours < 1.05 * theirs


def test_kmeans_labels_are_a_fixed_point():
  x = jnp.asarray(RNG.normal(size=(60, 5)), jnp.float32)
  run = jax.jit(lambda x: kmeans.kmeans(jax.random.key(0), x, 7))
  labels, x = np.asarray(run(x)), np.asarray(x)
  means = np.stack([x[labels == k].mean(0) for k in range(7)])
  nearest = ((x[:, None] - means) ** 2).sum(-1).argmin(1)
  np.testing.assert_array_equal(labels, nearest)


def test_kmeans_is_repeatable_and_images_do_not_mix():
  x = jnp.asarray(RNG.normal(size=(4, 30, 6)), jnp.float32)
  run = jax.jit(jax.vmap(lambda y: kmeans.kmeans(jax.random.key(3), y, 5)))
  np.testing.assert_array_equal(run(x), run(x))
  np.testing.assert_array_equal(run(x)[::-1], run(x[::-1]))
  np.testing.assert_array_equal(run(x)[1:2], run(x[1:2]))


@pytest.mark.parametrize("distinct", [1, 3])
def test_kmeans_with_too_few_distinct_rows(distinct):
  rows = RNG.normal(size=(distinct, 4))
  x = jnp.asarray(np.repeat(rows, 10, axis=0), jnp.float32)
  labels = jax.jit(lambda x: kmeans.kmeans(jax.random.key(0), x, 5))(x)
  assert len(np.unique(labels)) <= distinct
  means, count = kmeans.cluster_means(x, labels, 5)
  assert np.isfinite(means).all() and count.sum() == len(x)


@pytest.mark.parametrize("mode", ["official", "paper", "topk_mean"])
def test_fusion_of_few_distinct_patches_is_finite(mode):
  # All patches alike: k-means has one cluster, and four empty ones.
  units = similarity.unit(jnp.ones((2, 16, 8)))
  fuse = lambda u: semantic_fusion.fuse(
    u, jnp.linspace(0.1, 0.9, 16), mode=mode, k=5, count=10, seed=0
  )
  fuse = jax.jit(fuse)
  np.testing.assert_allclose(fuse(units), units[0, 0], atol=1e-6)
  grad = jax.grad(lambda u: fuse(u)[0])(units)
  assert np.isfinite(grad).all()


def test_fusion_by_hand():
  # Two levels, four patches, the three best in clusters {0, 1} and {2}.
  units = similarity.unit(jnp.asarray(RNG.normal(size=(2, 4, 3)), jnp.float32))
  prob = jnp.array([0.9, 0.1, 0.8, 0.7])
  labels = jnp.array([0, 0, 1])  # Of patches 0, 2, 3.
  ours = semantic_fusion.fuse(
    units, prob, mode="official", k=2, count=3, seed=0, labels=labels
  )
  u = np.asarray(units)
  first = np.mean([u[0, 0], u[1, 0], u[0, 2], u[1, 2]], axis=0)
  second = np.mean([u[0, 3], u[1, 3]], axis=0)
  expected = (first + second) / np.linalg.norm(first + second)
  np.testing.assert_allclose(ours, expected, atol=1e-6)
  with pytest.raises(ValueError, match="hsf"):
    semantic_fusion.fuse(units, prob, mode="best", k=2, count=3, seed=0)


def test_adaclip_prompts():
  normal, anomalous = prompts.adaclip("metal_nut-a")
  assert len(normal) == prompts.ADACLIP_NUM_NORMAL_PROMPTS == 28
  assert len(anomalous) == 20
  # State-major, "-" a space, "_" kept.
  assert normal[0] == "a bad photo of a metal_nut a."
  assert normal[4] == "a bad photo of a flawless metal_nut a."
  assert anomalous[-1] == "a cropped photo of the metal_nut a with damage."


def test_torch_names_there_and_back():
  table = (
    *rules.linear(r"head\.(\d+)", r"heads/\1"),
    rules.Rule(r"conv\.weight", "conv/kernel", "conv"),
  )
  named = {
    "head.0.weight": RNG.normal(size=(3, 2)),
    "head.0.bias": RNG.normal(size=3),
    "conv.weight": RNG.normal(size=(4, 3, 2, 2)),
  }
  ours = rules.rename(named, table)
  assert ours["heads/0/kernel"].shape == (2, 3)
  assert ours["conv/kernel"].shape == (2, 2, 3, 4)
  back = rules.to_torch(ours, table, named)
  for name, array in named.items():
    np.testing.assert_allclose(back[name], array, rtol=1e-6)
  with pytest.raises(ValueError, match="'tail'"):
    rules.to_torch(ours, table, ["tail"])


def test_linear_starts_as_torch_does():
  params = linear.init(jax.random.key(0), 400, 50)
  for leaf in jax.tree.leaves(params):
    assert np.abs(leaf).max() <= 0.05  # 1 / sqrt(400), bias too.
  # Uniform: a standard deviation of bound / sqrt(3).
  np.testing.assert_allclose(np.std(params["kernel"]), 0.05 / 3**0.5, rtol=0.02)
