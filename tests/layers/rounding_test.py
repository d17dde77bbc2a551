"""Tests of the rounding to float16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.layers import rounding


def half(x):
  with np.errstate(over="ignore"):
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def values():
  """Return each finite float16, the limits of its rounding, and others."""
  finite = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
  exact = finite.astype(np.float32)
  ties = (exact[:-1] + exact[1:]) / 2
  near = [np.nextafter(ties, np.float32(limit)) for limit in (0, np.inf)]
  large = np.array([65519.99, 65520, 1e30, np.inf, np.nan], np.float32)
  positive = np.concatenate([exact, ties, *near, large])
  return np.concatenate([positive, -positive])


@pytest.mark.parametrize("compiler", [lambda f: f, jax.jit])
def test_values_are_those_of_numpy(values, compiler):
  rounded = compiler(rounding.to_float16)(jnp.asarray(values))
  np.testing.assert_array_equal(rounded, half(values))
  np.testing.assert_array_equal(np.signbit(rounded), np.signbit(half(values)))


def test_gradients_are_rounded(values):
  weights = values[np.isfinite(values)]
  total = lambda x: (rounding.to_float16(x) * weights).sum()
  grad = jax.jit(jax.grad(total))(jnp.ones_like(weights))
  np.testing.assert_array_equal(grad, half(weights))


def test_no_conversion_that_a_compiler_may_remove():
  text = str(jax.make_jaxpr(rounding.to_float16)(jnp.ones(3)))
  assert "reduce_precision" in text and "f16" not in text
