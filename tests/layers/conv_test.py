"""Tests of the plain convolutions against loops over the pixels."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.layers import conv

RNG = np.random.default_rng(0)
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def convolved(x, kernel, bias=0.0):
  """Compute the cross-correlation with zero padding, pixel by pixel."""
  x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
  (b, h, w, _), side = x.shape, kernel.shape[0]
  margin = ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0))
  padded, out = np.pad(x, margin), np.zeros((b, h, w, kernel.shape[-1]))
  for y, z in itertools.product(range(h), range(w)):
    window = padded[:, y : y + side, z : z + side]
    out[:, y, z] = np.einsum("byzi,yzio->bo", window, kernel) + bias
  return out


def enlarged(x, kernel, bias):
  """Replace every pixel by a block."""
  b, h, w, _ = x.shape
  side, _, _, c_out = kernel.shape
  out = np.zeros((b, h * side, w * side, c_out))
  pixels = itertools.product(range(h), range(w), range(side), range(side))
  for y, z, dy, dz in pixels:
    out[:, side * y + dy, side * z + dz] = x[:, y, z] @ kernel[dy, dz] + bias
  return out


@pytest.mark.parametrize("side, bias", [(1, True), (3, False), (5, True)])
def test_apply_equals_a_loop(side, bias):
  params = {"kernel": normal(side, side, 3, 4)}
  params |= {"bias": normal(4)} if bias else {}
  x = normal(2, 3, 4, 3)
  close(conv.apply(params, x), convolved(x, **params))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_apply_transposed_equals_a_loop(stride):
  params = {"kernel": normal(stride, stride, 2, 3), "bias": normal(3)}
  x = normal(2, 3, 4, 2)
  close(conv.apply_transposed(params, x), enlarged(x, **params))


@pytest.mark.parametrize(
  "make, fan_in",
  [
    (lambda r: conv.init(r, 100, 9, 3, bias=True), 900),
    (lambda r: conv.init_transposed(r, 100, 25, 2), 100),
  ],
  ids=["conv", "transposed"],
)
def test_init_equals_torch(make, fan_in):
  params = jax.jit(make)(jax.random.key(0, impl="unsafe_rbg"))  # Fast.
  bound = fan_in**-0.5
  assert np.abs(params["bias"]).max() <= bound
  assert 0.99 * bound < np.abs(params["kernel"]).max() <= bound
  std = bound / 3**0.5
  np.testing.assert_allclose(np.std(params["kernel"]), std, rtol=0.03)


def test_init_without_bias():
  init = functools.partial(conv.init, c_in=2, c_out=2, side=1, bias=False)
  assert set(jax.eval_shape(init, jax.random.key(0))) == {"kernel"}
