"""Tests of the fused heads against the plain ones of `prompt_query`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.layers import fused_heads, kernels, prompt_query

RNG = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def close(found, expected):
  """Compare up to rounding at the scale of the largest value."""
  scale = max(np.abs(expected).max(), 1.0)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * scale)


def random_like(tree):
  """Draw values in [0.5, 1.5] of the shapes of a tree."""
  draw = lambda x: jnp.asarray(RNG.uniform(0.5, 1.5, x.shape), x.dtype)
  return jax.tree.map(draw, tree)


@pytest.fixture
def model():
  """Parameters and statistics of an adapter with one level."""
  init = functools.partial(
    prompt_query.init, d=4, levels=1, widths=(3, 2), share_heads=True
  )
  return random_like(jax.eval_shape(init, jax.random.key(0)))


@pytest.fixture
def norm():
  """Scale and bias of a level; some scales are negative."""
  return {"scale": jnp.array([1.5, -0.5, 0.7, -2.0]), "bias": normal(4)}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("one_cpu", [True, False])
def test_local_heads_agree(training, one_cpu, model, norm, monkeypatch):
  monkeypatch.setattr(kernels, "one_cpu", lambda: one_cpu)
  params, stats = (tree["local"]["0"] for tree in model)
  x_hat = normal(3, 4, 4, 4)
  weight = jnp.array([1.0, 1.0, 0.0]) if training else None

  def plain(params, norm, x_hat):
    x = norm["scale"] * x_hat + norm["bias"]
    return prompt_query.local_head(params, stats, x, weight=weight)

  def fused(params, norm, x_hat):
    return fused_heads.local_head(params, stats, x_hat, norm, weight=weight)

  def run(head):
    loss = lambda *x: (head(*x)[0][:2] ** 2).mean()
    both = lambda *x: (head(*x), jax.grad(loss, (0, 1, 2))(*x))
    return jax.jit(both)(params, norm, x_hat)

  (logits, new), gradients = run(plain)
  (fused_logits, fused_new), fused_gradients = run(fused)
  assert logits.shape == (3, 16, 16, 2)
  close(fused_logits, logits)
  jax.tree.map(close, fused_new, new)
  jax.tree.map(close, fused_gradients, gradients)


@pytest.mark.parametrize("topk", [1, 3])
def test_pooling_agrees(topk, norm):
  x_hat = normal(3, 16, 4)
  plain = lambda norm, x: prompt_query.pool(
    norm["scale"] * x + norm["bias"], topk=topk
  )
  fused = lambda norm, x: fused_heads.pool(x, norm, topk=topk)

  def run(pool):
    loss = lambda *x: (pool(*x) ** 2).sum()
    both = lambda *x: (pool(*x), jax.grad(loss, (0, 1))(*x))
    return jax.jit(both)(norm, x_hat)

  jax.tree.map(close, run(fused), run(plain))
