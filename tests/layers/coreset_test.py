"""Tests of the greedy coreset against a sequential one."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.inference import few_shot, predictor
from zsad_jax.layers import coreset
from zsad_jax.methods import april_gan

select = jax.jit(coreset.select, static_argnames=("count", "width", "seed"))


def sequential(vectors, count):
  """Greedy k-center, a distance at a time."""
  chosen = [0]
  while len(chosen) < count:
    best, at = -1.0, 0
    for i, x in enumerate(vectors):
      if i in chosen:
        continue
      near = min(float(np.sum((x - vectors[c]) ** 2)) for c in chosen)
      if near > best:
        best, at = near, i
    chosen.append(at)
  return chosen


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), count=st.sampled_from([1, 2, 9, 15]))
def test_indices_are_those_of_the_sequential_choice(seed, count):
  """Whole numbers: distances are exact, and many are equal."""
  rng = np.random.default_rng(seed)
  vectors = rng.integers(-2, 3, (15, 3)).astype(np.float32)
  found = np.asarray(select(vectors, count))
  assert found.tolist() == sequential(vectors, count)


@pytest.mark.parametrize("width", [None, 8])
def test_indices_of_real_vectors(width):
  vectors = np.random.default_rng(1).normal(size=(300, 20)).astype(np.float32)
  found = np.asarray(select(vectors, 30, width=width, seed=3))
  if width:
    vectors = vectors @ coreset.projection(20, width, 3)
  assert found.tolist() == sequential(vectors.astype(np.float64), 30)


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_radius_is_at_most_twice_the_least(seed):
  """All pairs of centres are tried for the least one."""
  vectors = np.random.default_rng(seed).normal(size=(12, 2)).astype(np.float32)
  distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
  radius = lambda rows: distances[:, rows].min(axis=1).max()
  least = min(radius([i, j]) for i in range(12) for j in range(i))
  assert radius(np.asarray(select(vectors, 2))) <= 2 * least + 1e-6


def test_a_memory_bank_is_reduced_by_level():
  rng = np.random.default_rng(0)
  bank = {"units": jnp.asarray(rng.normal(size=(2, 3, 4, 5, 6)), jnp.float32)}
  found = jax.jit(coreset.Coreset(0.4).reduce)(bank)["units"]
  assert found.shape == (2, 1, 4, 6, 6)
  for n, level in np.ndindex(2, 4):
    vectors = np.asarray(bank["units"][n, :, level]).reshape(15, 6)
    rows = sequential(vectors, 6)
    np.testing.assert_array_equal(found[n, 0, level], vectors[rows])


@pytest.mark.parametrize(
  ("fraction", "number", "count"),
  [(0.1, 30, 3), (0.01, 50, 1), (1.0, 7, 7), (0.5, 5, 2)],
)
def test_the_number_is_rounded_down(fraction, number, count):
  assert coreset.Coreset(fraction).count(number) == count


def test_the_whole_bank_predicts_as_without_a_coreset():
  """A fraction of 1 changes the order alone; a tenth is a subset."""
  rng = np.random.default_rng(0)
  method = april_gan.Method(feature_layers=(1,), memory_layers=(1,))
  tokens = jnp.asarray(rng.normal(size=(4, 1, 16, 8)), jnp.float32)
  features = {"patch_tokens": tokens}
  whole = predictor.shared_memory_bank(method, features)
  build = lambda share: predictor.shared_memory_bank(
    method, features, coreset.Coreset(share)
  )
  rows = lambda x: {row.tobytes() for row in np.asarray(x).reshape(-1, 8)}
  assert build(1.0).shape == (1, 1, 1, 64, 8)
  assert rows(build(1.0)) == rows(whole)
  assert build(0.1).shape == (1, 1, 1, 6, 8)
  assert rows(build(0.1)) < rows(whole)


def test_a_method_that_compares_whole_references_refuses(monkeypatch):
  method = april_gan.Method()
  given = dict(feature_layers=(1,), vv_from=None, coreset=0.1)
  assert few_shot.with_memory_bank(method, **given) is method
  monkeypatch.setattr(april_gan.Method, "reducible_memory_bank", False)
  with pytest.raises(ValueError, match="coreset is 0.1, but april_gan"):
    few_shot.with_memory_bank(method, **given)


def test_wrong_numbers_are_named():
  with pytest.raises(ValueError, match="3 vectors has 1 to 3, got 4"):
    coreset.select(jnp.ones((3, 2)), 4)


DEVICES = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from zsad_jax.layers import coreset, memory_bank
from zsad_jax.runtime import distributed

mesh = distributed.make_mesh()
assert mesh.size == 4, mesh
rng = np.random.default_rng(0)
unit = lambda x: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("f4")
query = unit(rng.normal(size=(4, 50, 24)))
bank = unit(rng.normal(size=(4, 3, 700, 24)))
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))
nearest = jax.jit(memory_bank.nearest)
for n in (1, 4):
  split = nearest(put(query, "data"), put(bank[:n], *["data"] * (n > 1)))
  first = nearest(query[:3], bank[:1 if n == 1 else 3])
  alone = [first, nearest(query[3:], bank[n - 1:n])]
  for x, first, last in zip(split, *alone):
    assert len(x.sharding.device_set) == 4
    np.testing.assert_array_equal(x, np.concatenate([first, last]))
vectors = bank[0].reshape(-1, 24)
select = jax.jit(coreset.select, static_argnames=("count", "width"))
for width in (None, 8):
  one = select(vectors, 200, width=width)
  split = select(put(vectors, "data"), 200, width=width)
  np.testing.assert_array_equal(one, split)
"""


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing():
  flag = "--xla_force_host_platform_device_count=4"
  done = subprocess.run(
    [sys.executable, "-c", DEVICES],
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
