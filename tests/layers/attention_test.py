"""Tests of attention against its formula, for all kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.layers import attention, kernels


def by_hand(q, k, v, causal):
  """One query at a time, in float64."""
  out = np.zeros(q.shape)
  for b, t, h in np.ndindex(q.shape[:3]):
    keys = slice(t + 1) if causal else slice(None)
    logits = k[b, keys, h] @ q[b, t, h] / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max())
    out[b, t, h] = weights @ v[b, keys, h] / weights.sum()
  return out


def drawn(tokens, num_queries=None):
  rng = np.random.default_rng(tokens)
  q, k, v = rng.standard_normal((3, 2, tokens, 3, 8))
  return 3 * q[:, :num_queries], k, v


LONG = kernels.MANY_KEYS


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, LONG - 1, LONG, LONG + 3])
def test_equals_the_formula(tokens, causal):
  q, k, v = drawn(tokens)
  as32 = (jnp.float32(x) for x in (q, k, v))
  found = attention.attend(*as32, causal=causal)
  np.testing.assert_allclose(found, by_hand(q, k, v, causal), atol=1e-5)


def test_few_queries_are_the_first_rows_of_all():
  q, k, v = map(jnp.float32, drawn(LONG))
  all_rows = attention.attend(q, k, v, causal=False)
  found = attention.attend(q[:, :1], k, v, causal=False)
  np.testing.assert_allclose(found, all_rows[:, :1], atol=1e-6)


def test_large_logits_do_not_overflow():
  q, k, v = map(jnp.float32, drawn(LONG))
  found = attention.attend(1e4 * q, k, v, causal=False)
  assert np.isfinite(found).all()


def test_gradients_of_long_and_short_agree(monkeypatch):
  q, k, v = map(jnp.float32, drawn(LONG))
  loss = lambda *x: (attention.attend(*x, causal=False) ** 2).sum()
  long = jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
  monkeypatch.setattr(kernels, "MANY_KEYS", LONG + 1)
  short = jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
  for a, b in zip(long, short):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
