"""Convolutions, beside loops over the pixels."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.benchmark import roofline
from zsad_jax.layers import conv

RNG = np.random.default_rng(0)
close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def convolved(x, kernel, bias=0.0):
  """Cross-correlation with zero padding, pixel by pixel."""
  x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
  (b, h, w, _), side = x.shape, kernel.shape[0]
  margin = ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0))
  padded, out = np.pad(x, margin), np.zeros((b, h, w, kernel.shape[-1]))
  for y, z in itertools.product(range(h), range(w)):
    window = padded[:, y : y + side, z : z + side]
    out[:, y, z] = np.einsum("byzi,yzio->bo", window, kernel) + bias
  return out


def test_a_convolution_by_products_and_its_gradient(monkeypatch):
  x, kernel = normal(2, 5, 4, 3), normal(3, 3, 3, 2)
  by_device = {}
  for alone in (True, False):
    monkeypatch.setattr(conv.kernels, "one_cpu", lambda alone=alone: alone)
    close(
      jax.jit(lambda *a: conv._convolve(*a))(x, kernel), convolved(x, kernel)
    )
    loss = lambda x, kernel: (conv._convolve(x, kernel) ** 2).sum()
    by_device[alone] = jax.grad(loss, argnums=(0, 1))(x, kernel)
  jax.tree.map(close, *by_device.values())


def enlarged(x, kernel, bias):
  """Every pixel becomes a block."""
  b, h, w, _ = x.shape
  side, _, _, c_out = kernel.shape
  out = np.zeros((b, h * side, w * side, c_out))
  pixels = itertools.product(range(h), range(w), range(side), range(side))
  for y, z, dy, dz in pixels:
    out[:, side * y + dy, side * z + dz] = x[:, y, z] @ kernel[dy, dz] + bias
  return out


def test_a_scaled_kernel_is_a_scaled_image():
  x, scale, shift = normal(2, 4, 3, 2), normal(2), normal(2)
  params = {"kernel": normal(3, 3, 2, 5)}
  found = jax.jit(conv.apply_scaled)(params, x, scale, shift)
  close(found, convolved(x * scale + shift, params["kernel"]))


@pytest.mark.parametrize("side, bias", [(1, True), (3, False), (5, True)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_convolution_of_what_was_enlarged(side, bias, stride, monkeypatch):
  up = {"kernel": normal(stride, stride, 2, 3), "bias": normal(3)}
  params = {"kernel": normal(side, side, 3, 4)}
  params |= {"bias": normal(4)} if bias else {}
  x = normal(2, 3, 4, 2)
  expected = convolved(enlarged(x, **up), **params)
  for alone in (True, False):
    monkeypatch.setattr(conv.kernels, "one_cpu", lambda alone=alone: alone)
    found = jax.jit(lambda *a: conv.apply_after_transposed(*a))(up, params, x)
    close(found, expected, atol=1e-4)


def test_its_gradient_does_not_depend_on_the_device(monkeypatch):
  up = {"kernel": normal(2, 2, 2, 3), "bias": normal(3)}
  params = {"kernel": normal(3, 3, 3, 4), "bias": normal(4)}
  x = normal(2, 3, 4, 2)
  found = []
  for alone in (True, False):
    monkeypatch.setattr(conv.kernels, "one_cpu", lambda alone=alone: alone)
    loss = lambda *a: (conv.apply_after_transposed(*a) ** 2).sum()
    found.append(jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(up, params, x))
  jax.tree.map(functools.partial(close, rtol=1e-4, atol=1e-3), *found)


def test_no_product_with_a_kernel_s_zeros():
  """Of 3 x 3 places each of the 2 x 2 pixels of a block is near four."""
  kernel = normal(3, 3, 3, 2, 2, 4)
  used = np.array([[True, False], [True, True], [False, True]])
  x = normal(2, 5, 4, 3)
  found = roofline.flops(
    lambda x: conv._convolve_by_products(x, kernel, used), x
  )
  rows = 2 * (5 + 1) * (4 + 1)  # With zeros behind each row and each image.
  rows += 2 * (4 + 1 + 1)  # A row and a pixel before the first and the last.
  assert found == 2 * rows * 3 * 4 * (4 * 2 * 2)
