"""Tests of the fused convolutions against the plain ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.benchmark import roofline
from zsad_jax.layers import conv, fused_conv, kernels

RNG = np.random.default_rng(0)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.fixture(params=["products", "xla"])
def implementation(request, monkeypatch):
  """Choose one CPU's matrix products or XLA's convolution."""
  one_cpu = request.param == "products"
  monkeypatch.setattr(kernels, "one_cpu", lambda: one_cpu)


def value_and_gradients(function, *arguments):
  """Return a function's value and all gradients of its sum of squares."""
  loss = lambda *x: (function(*x) ** 2).sum()
  numbers = tuple(range(len(arguments)))
  both = lambda *x: (function(*x), jax.grad(loss, numbers)(*x))
  return jax.jit(both)(*arguments)


@pytest.mark.parametrize("side", [1, 3])
def test_apply_scaled_equals_conv(side, implementation):
  params = {"kernel": normal(side, side, 2, 5)}
  x, scale, shift = normal(2, 4, 3, 2), normal(2), normal(2)
  plain = lambda p, x, scale, shift: conv.apply(p, scale * x + shift)
  expected = value_and_gradients(plain, params, x, scale, shift)
  found = value_and_gradients(fused_conv.apply_scaled, params, x, scale, shift)
  jax.tree.map(close, found, expected)


@pytest.mark.parametrize("side, bias", [(1, True), (3, False), (5, True)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_apply_after_transposed_equals_conv(side, bias, stride, implementation):
  up = {"kernel": normal(stride, stride, 2, 3), "bias": normal(3)}
  params = {"kernel": normal(side, side, 3, 4)}
  params |= {"bias": normal(4)} if bias else {}
  x = normal(2, 3, 4, 2)
  plain = lambda up, p, x: conv.apply(p, conv.apply_transposed(up, x))
  expected = value_and_gradients(plain, up, params, x)
  found = value_and_gradients(fused_conv.apply_after_transposed, up, params, x)
  jax.tree.map(close, found, expected)


def test_kernel_blocks_of_zeros_are_left_out():
  """Each of the 2 x 2 pixels of a block takes four of 3 x 3 positions."""
  kernel = normal(3, 3, 3, 2, 2, 4)
  used = np.array([[True, False], [True, True], [False, True]])
  x = normal(2, 5, 4, 3)
  found = roofline.flops(
    lambda x: fused_conv._convolve_by_products(x, kernel, used), x
  )
  rows = 2 * (5 + 1) * (4 + 1)  # With zeros after each row and each image.
  rows += 2 * (4 + 1 + 1)  # A row and a pixel before the first and the last.
  assert found == 2 * rows * 3 * 4 * (4 * 2 * 2)
