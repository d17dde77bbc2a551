"""Normalisation, layers, memory, smoothing, adapters, names."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from tests.layers.conv_test import convolved
from zsad_jax.backbones.clip import config
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import model as clip
from zsad_jax.layers import (
  batch_norm,
  memory_bank,
  prompt_query,
  residual_mlp,
  score_fusion,
  smoothing,
  tokens,
)
from zsad_jax.methods import adaclip, adaptclip, anomalyclip, faprompt
from zsad_jax.torch_io import rules

RNG = np.random.default_rng(0)
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def random_norm(c):
  """Parameters and running statistics of c channels, none at its default."""
  params = {"scale": 1 + 0.3 * normal(c), "bias": normal(c)}
  old = {"mean": normal(c), "var": 1 + normal(c) ** 2, "count": jnp.int32(7)}
  return params, old


def drawn(init):
  """Random parameters and statistics of the shapes that `init` gives."""
  shapes = jax.eval_shape(init, jax.random.key(0))
  draw = lambda x: jnp.asarray(RNG.uniform(0.5, 1.5, x.shape), x.dtype)
  return jax.tree.map(draw, shapes)


def normalized(params, x, mean, var):
  x = (np.asarray(x, np.float64) - mean) / np.sqrt(var + 1e-5)
  return x * np.asarray(params["scale"]) + np.asarray(params["bias"])


train_norm = jax.jit(
  lambda p, s, x, weight: batch_norm.apply(p, s, x, weight=weight)
)
eval_norm = jax.jit(lambda p, s, x: batch_norm.apply(p, s, x))


@pytest.mark.parametrize("weight", [(1, 1, 1, 1, 1), (1, 0, 1, 1, 0)])
def test_batch_norm_is_torchs(weight):
  params, old = random_norm(4)
  x, counts = 3 + normal(5, 2, 3, 4), np.array(weight, bool)
  out, new = train_norm(params, old, x, jnp.asarray(weight, jnp.float32))
  rows = np.asarray(x)[counts].reshape(-1, 4)
  mean, var = rows.mean(axis=0), rows.var(axis=0)
  close(out, normalized(params, x, mean, var), rtol=1e-4)
  close(new["mean"], 0.9 * old["mean"] + 0.1 * mean)
  unbiased = rows.var(axis=0, ddof=1)
  close(new["var"], 0.9 * old["var"] + 0.1 * unbiased)
  assert np.abs(unbiased / var - 1).max() > 0.02  # They can be told apart.
  assert new["count"] == 8


def test_batch_norm_padding_changes_nothing():
  params, old = random_norm(4)
  x, weight = normal(5, 2, 3, 4), jnp.array([1.0, 1, 1, 0, 0])
  out, new = train_norm(params, old, x, weight)
  other, same = train_norm(params, old, x.at[3:].set(1e3), weight)
  np.testing.assert_array_equal(out[:3], other[:3])
  jax.tree.map(np.testing.assert_array_equal, new, same)


def test_batch_norm_of_padding_alone_leaves_the_statistics():
  params, old = random_norm(4)
  out, new = train_norm(params, old, normal(5, 2, 3, 4), jnp.zeros(5))
  assert np.isfinite(out).all()
  jax.tree.map(np.testing.assert_array_equal, new, old)


def test_batch_norm_evaluates_with_running_statistics():
  params, old = random_norm(4)
  x = normal(5, 2, 3, 4)
  out, new = eval_norm(params, old, x)
  close(out, normalized(params, x, old["mean"], old["var"]), rtol=1e-4)
  jax.tree.map(np.testing.assert_array_equal, new, old)


@pytest.mark.parametrize("sigma", [4.0, 10.0])
def test_smoothing_is_scipys(sigma):
  # The kernel is 33 or 81 pixels long.
  maps = RNG.random((2, 9, 100)).astype(np.float32)
  smooth = jax.jit(smoothing.gaussian, static_argnames="sigma")
  expected = [ndimage.gaussian_filter(m, sigma) for m in maps]
  close(smooth(maps, sigma=sigma), expected, atol=2e-6)


def test_no_smoothing():
  maps = normal(1, 3, 3)
  np.testing.assert_array_equal(smoothing.gaussian(maps, 0.0), maps)


# The 24 units of Hurwitz: all their products are exact, and many are equal.
UNITS = np.concatenate(
  [
    np.eye(4),
    -np.eye(4),
    list(itertools.product((-0.5, 0.5), repeat=4)),
  ]
)


@jax.jit
def look_up(query, bank):
  distance, index = memory_bank.nearest(query, bank)
  return distance, index, memory_bank.take(bank, index)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("shots", [1, 3])
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_nearest_patch_is_the_first_of_the_best(number, shots, seed):
  rng = np.random.default_rng(seed)
  query = UNITS[rng.integers(0, 24, (2, 3))]
  bank = UNITS[rng.integers(0, 24, (number, shots, 4))]
  distance, index, patch = look_up(
    query.astype(np.float32), bank.astype(np.float32)
  )
  for i, j in np.ndindex(2, 3):
    mine = bank[i % number].reshape(-1, 4)
    cosines = mine @ query[i, j]
    assert index[i, j] == np.flatnonzero(cosines == cosines.max())[0]
    assert distance[i, j] == 1 - cosines.max()
    np.testing.assert_array_equal(patch[i, j], mine[index[i, j]])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_patch_is_nearest_to_itself_and_never_nearer(seed):
  rng = np.random.default_rng(seed)
  bank = rng.normal(size=(2, 1, 4, 4))
  bank /= np.linalg.norm(bank, axis=-1, keepdims=True)
  bank = bank.astype(np.float32)
  distance, index, _ = look_up(bank[:, 0, 1:], bank)
  np.testing.assert_array_equal(index, [[1, 2, 3]] * 2)
  assert (distance >= 0).all() and (distance < 1e-6).all()


harmonic_mean = jax.jit(score_fusion.harmonic_mean)


@given(st.lists(st.floats(1e-3, 2), min_size=4, max_size=4))
def test_harmonic_mean_is_scipys(values):
  ours = harmonic_mean([jnp.float32(x) for x in values])
  np.testing.assert_allclose(ours, stats.hmean(values), rtol=1e-5)


def test_harmonic_mean_of_a_zero_is_zero():
  # Of zeros of either sign, the sum of inverses is no number.
  pairs = (0.0, 0.0), (1.0, -0.0), (1.0, 1.0), (1.0, 1.0)
  values = [jnp.array(pair) for pair in pairs]
  np.testing.assert_array_equal(harmonic_mean(values), [0.0, 0.0])


def test_residual_mlp():
  params = drawn(lambda rng: residual_mlp.init(rng, 6, 3))[0]
  assert [set(params[k]) for k in ("down", "up")] == [{"kernel"}] * 2
  params["norm"], old = random_norm(3)
  x = normal(4, 5, 6)
  run = jax.jit(
    lambda p, s, x, w: residual_mlp.apply(p, {"norm": s}, x, weight=w)
  )
  hidden = np.asarray(x) @ np.asarray(params["down"]["kernel"])
  for weight in (jnp.ones(4), None):
    out, new = run(params, old, x, weight)
    rows = hidden.reshape(-1, 3)
    mean, var = old["mean"], old["var"]
    if weight is not None:
      mean, var = rows.mean(axis=0), rows.var(axis=0)
    normed = np.maximum(normalized(params["norm"], hidden, mean, var), 0)
    close(out, x + normed @ np.asarray(params["up"]["kernel"]), rtol=1e-4)
    assert new["norm"]["count"] == (8 if weight is not None else 7)
    assert np.allclose(new["norm"]["mean"], old["mean"]) == (weight is None)


def adapter(levels, *, share_heads):
  """2 x 2 patches of four channels, three images, two references each."""
  params, old = drawn(
    lambda rng: prompt_query.init(
      rng, 4, levels=levels, widths=(3, 2), share_heads=share_heads
    )
  )
  query, references = normal(3, levels, 4, 4), normal(3, 2, levels, 4, 4)
  query /= np.linalg.norm(query, axis=-1, keepdims=True)
  references /= np.linalg.norm(references, axis=-1, keepdims=True)
  return params, old, query, references


@functools.partial(jax.jit, static_argnames="training")
def compare(params, old, query, references, training=True):
  return prompt_query.forward(
    params,
    old,
    query,
    references,
    (8, 8),
    context=True,
    topk=2,
    weight=jnp.ones(len(query)) if training else None,
  )


def joint_features(params, query, references, level):
  """Inputs of the heads for a level in training: (3, 2, 2, 4)."""
  q = np.asarray(query[:, level], np.float64)
  bank = np.asarray(references[:, :, level], np.float64).reshape(3, 8, 4)
  best = np.einsum("bld,bmd->blm", q, bank).argmax(axis=-1)
  aligned = np.take_along_axis(bank, best[..., None], axis=1)
  x = q + np.abs(q - aligned)
  rows = x.reshape(-1, 4)
  norm = params["norms"][str(level)]
  x = normalized(norm, x, rows.mean(axis=0), rows.var(axis=0))
  return x.reshape(3, 2, 2, 4)


def test_shared_heads_see_the_levels_in_order():
  params, old, query, references = adapter(4, share_heads=True)
  _, new = compare(params, old, query, references)
  start = old["local"]["0"]["norm1"]
  mean, var = start["mean"], start["var"]
  for level in range(4):
    x = joint_features(params, query, references, level)
    rows = convolved(x, params["local"]["0"]["conv1"]["kernel"]).reshape(-1, 3)
    mean = 0.9 * mean + 0.1 * rows.mean(axis=0)
    var = 0.9 * var + 0.1 * rows.var(axis=0, ddof=1)
  found = new["local"]["0"]["norm1"]
  close(found["mean"], mean, rtol=1e-4)
  close(found["var"], var, rtol=1e-4)
  for head, norm in itertools.product(("local", "global"), ("norm1", "norm2")):
    updates = new[head]["0"][norm]["count"] - old[head]["0"][norm]["count"]
    assert updates == 4
  for level in map(str, range(4)):
    updates = new["norms"][level]["count"] - old["norms"][level]["count"]
    assert updates == 1


def test_own_heads_see_one_level_each():
  params, old, query, references = adapter(2, share_heads=False)
  _, new = compare(params, old, query, references)
  for i, level in enumerate("01"):
    start, found = old["local"][level]["norm1"], new["local"][level]["norm1"]
    assert found["count"] - start["count"] == 1
    x = joint_features(params, query, references, i)
    rows = convolved(x, params["local"][level]["conv1"]["kernel"])
    mean = 0.9 * start["mean"] + 0.1 * rows.reshape(-1, 3).mean(axis=0)
    close(found["mean"], mean, rtol=1e-4)


def test_evaluation_leaves_statistics_and_one_head_treats_levels_alike():
  params, old, query, references = adapter(2, share_heads=True)
  alike = jax.tree.map(lambda x: x, params)
  alike["norms"]["1"] = alike["norms"]["0"]
  old["norms"]["1"] = old["norms"]["0"]
  query, references = query[:, [0, 0]], references[:, :, [0, 0]]
  (first, second), new = compare(alike, old, query, references, training=False)
  jax.tree.map(np.testing.assert_array_equal, new, old)
  jax.tree.map(close, second, first)


def test_vectors_among_tokens():
  x = normal(2, 5, 3)
  one, each = x[:1, :2] + 1, x[:, :2] + 2
  over = tokens.set_after_start(x, one)
  expected = np.array(x)
  expected[:, 1:3] = one
  np.testing.assert_array_equal(over, expected)
  longer = tokens.set_after_start(x, each, replace=False)
  np.testing.assert_array_equal(longer, np.insert(x, [1, 1], each, axis=1))


METHODS = {
  "adaclip": adaclip.Method(),
  "anomalyclip": anomalyclip.Method(),
  "faprompt": faprompt.Method(),
  "adaptclip": adaptclip.Method(),
  "own heads": adaptclip.Method(share_heads=False),
}
# One name of each from the specifications.
KNOWN = {
  "adaclip": "visual_prompter.static_prompts.0",
  "anomalyclip": "prompt_learner.compound_prompts_text.7",
  "faprompt": "prompt_learner.patch_meta_net.linear2.bias",
  "adaptclip": "pq_learner.local_adapter.0.7.bias",
  "own heads": "visual_learner.global_adapter.fc.1.running_var",
}


@pytest.mark.parametrize("name", METHODS)
def test_every_leaf_has_its_own_name_in_torch(name):
  method, module = METHODS[name], {"own heads": "adaptclip"}.get(name, name)
  module = globals()[module]
  sizes = config.MODELS["ViT-L-14-336"]
  backbone = clip.Clip({}, sizes)
  params, old = jax.eval_shape(lambda: method.init(jax.random.key(0), backbone))
  found = []
  tables = (
    (params, module.TORCH_NAMES),
    (old, getattr(module, "TORCH_STATS", ())),
  )
  for tree, table in tables:
    for path in clip_convert.flatten(tree):
      torch, layout = rules.invert(path, table)
      assert rules.find(torch, table) == (path, layout)
      found.append(torch)
  assert len(found) == len(set(found)) == len(jax.tree.leaves((params, old)))
  assert KNOWN[name] in found
