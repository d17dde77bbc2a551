"""Tests of the nearest-neighbour search against brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.layers import kernels, neighbors

METRICS = neighbors.METRICS
search = jax.jit(neighbors.nearest, static_argnames=("metric", "block"))


def draw(seed, queries, references, width=6):
  """Unit vectors; some references are equal, some queries are references."""
  rng = np.random.default_rng(seed)
  bank = rng.normal(size=(references, width))
  query = rng.normal(size=(queries, width))
  same = rng.integers(0, references, (2, max(1, references // 4)))
  bank[same[0]] = bank[same[1]]
  query[::3] = bank[rng.integers(0, references, len(query[::3]))]
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  return unit(query).astype(np.float32), unit(bank).astype(np.float32)


def brute_force(query, bank, metric):
  """All distances in float64."""
  query, bank = query.astype(np.float64), bank.astype(np.float64)
  if metric == "cosine":
    return 1 - query @ bank.T
  return np.linalg.norm(query[:, None] - bank[None], axis=-1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("references", [1, 7, 24])
@pytest.mark.parametrize("block", [(4, 8), (None, 5), (16, 100)])
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_brute_force_agrees(metric, references, block, seed):
  query, bank = draw(seed, 9, references)
  if metric == "euclidean":
    query, bank = 3 * query, 5 * bank
  distance, index = map(
    np.asarray, search(query, bank, metric=metric, block=block)
  )
  assert distance.dtype == np.float32 and index.dtype == np.int32
  every = brute_force(query, bank, metric)
  np.testing.assert_allclose(distance, every.min(axis=1), atol=2e-6)
  chosen = np.take_along_axis(every, index[:, None], axis=1)[:, 0]
  np.testing.assert_allclose(chosen, every.min(axis=1), atol=2e-6)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_first_of_equal_references_is_found(metric, seed):
  """Small whole numbers, whose products are exact."""
  rng = np.random.default_rng(seed)
  query, bank = rng.integers(-2, 3, (2, 12, 3)).astype(np.float32)
  every = brute_force(query, bank, metric)
  for block in ((4, 5), (None, 12)):
    distance, index = search(query, bank, metric=metric, block=block)
    np.testing.assert_array_equal(index, every.argmin(axis=1))
    expected = np.maximum(every.min(axis=1), 0).astype(np.float32)
    np.testing.assert_array_equal(distance, expected)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=3)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_batch_and_its_order_change_no_bit(metric, seed):
  """More queries and references than a block of a CPU has."""
  query, bank = draw(seed, 150, 1500, 33)
  whole = [np.asarray(x) for x in search(query, bank, metric=metric)]
  rng = np.random.default_rng(seed)
  for rows in (slice(2, 9), slice(130, 150), rng.permutation(150)):
    found = search(query[rows], bank, metric=metric)
    for x, expected in zip(found, whole):
      np.testing.assert_array_equal(x, expected[rows])


@pytest.mark.parametrize("metric", METRICS)
def test_the_block_changes_no_bit_of_the_distance(metric):
  query, bank = draw(3, 40, 300, 16)
  distance, index = search(query, bank, metric=metric)
  for block in ((16, 64), (40, 7), (None, 299), (8, 1000)):
    other = search(query, bank, metric=metric, block=block)
    np.testing.assert_array_equal(other[0], distance)
    # Equal references may have products that differ by rounding.
    np.testing.assert_array_equal(bank[other[1]], bank[index])


def test_small_euclidean_distances_are_exact():
  """The product of two vectors of length 100 has no digit left for them."""
  bank = np.full((3, 4), 50, np.float32)
  bank[1:] += np.array([[1], [2]], np.float32)
  query = bank[1:2] + np.array([[2**-10, 0, 0, 0]], np.float32)
  distance, index = search(query, bank, metric="euclidean")
  assert (distance[0], index[0]) == (2**-10, 1)


def test_memory_is_that_of_a_block():
  """Neither all distances nor a copy of the references are kept."""
  shapes = [jax.ShapeDtypeStruct((n, 64), jnp.float32) for n in (4096, 65537)]
  for metric in METRICS:
    run = functools.partial(neighbors.nearest, metric=metric)
    used = jax.jit(run).lower(*shapes).compile().memory_analysis()
    block = 4 * np.prod(kernels.CPU_NEIGHBORS) + 4 * 64 * 1024
    rest = 4 * (4096 * 64 + 3 * 65537)
    assert used.temp_size_in_bytes <= 3 * block + 2 * rest


def test_wrong_arguments_are_named():
  one = jnp.ones((1, 2))
  with pytest.raises(ValueError, match="no reference vector"):
    neighbors.nearest(one, one[:0])
  with pytest.raises(ValueError, match="cosine or euclidean, got 'l1'"):
    neighbors.nearest(one, one, metric="l1")
