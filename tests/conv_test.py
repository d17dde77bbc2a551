"""Convolutions, beside loops over the pixels."""

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
  """Cross-correlation with zero padding, pixel by pixel."""
  x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
  (b, h, w, _), side = x.shape, kernel.shape[0]
  margin = ((0, 0), (side // 2,) * 2, (side // 2,) * 2, (0, 0))
  padded, out = np.pad(x, margin), np.zeros((b, h, w, kernel.shape[-1]))
  for y, z in itertools.product(range(h), range(w)):
    window = padded[:, y : y + side, z : z + side]
    out[:, y, z] = np.einsum("byzi,yzio->bo", window, kernel) + bias
  return out


def test_convolution():
  x, kernel, bias = normal(2, 4, 3, 2), normal(3, 3, 2, 5), normal(5)
  run = jax.jit(conv.apply)
  close(run({"kernel": kernel}, x), convolved(x, kernel))
  params = {"kernel": kernel[:1, :1], "bias": bias}
  close(run(params, x), convolved(x, kernel[:1, :1], bias))


def test_transposed_convolution():
  x, kernel, bias = normal(2, 2, 3, 3), normal(2, 2, 3, 4), normal(4)
  ours = jax.jit(conv.apply_transposed)({"kernel": kernel, "bias": bias}, x)
  expected = np.zeros((2, 4, 6, 4))
  for y, z, dy, dz in itertools.product(range(2), range(3), (0, 1), (0, 1)):
    expected[:, 2 * y + dy, 2 * z + dz] = x[:, y, z] @ kernel[dy, dz] + bias
  close(ours, expected)


def test_all_ways_to_convolve_are_one():
  x, kernel = normal(2, 5, 4, 3), normal(3, 3, 3, 2)
  products = jax.jit(conv._convolve_by_products)(x, kernel)
  close(products, convolved(x, kernel))
  library = functools.partial(
      jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )  # fmt: skip
  gradient = lambda f: jax.jit(
      jax.grad(lambda x, k: (f(x, k) ** 2).sum(), argnums=(0, 1))
  )(x, kernel)
  jax.tree.map(
      close, gradient(conv._convolve_by_products), gradient(library)
  )


@pytest.mark.parametrize("bias", [False, True])
def test_a_scaled_kernel_is_a_scaled_image(bias):
  x, scale, shift = normal(2, 4, 3, 2), normal(2), normal(2)
  params = {"kernel": normal(3, 3, 2, 5)}
  params |= {"bias": normal(5)} if bias else {}
  found = jax.jit(conv.apply_scaled)(params, x, scale, shift)
  expected = convolved(x * scale + shift, params["kernel"])
  close(found, expected + params.get("bias", 0))


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_convolution_of_what_was_enlarged(side, stride):
  up = {"kernel": normal(stride, stride, 2, 3), "bias": normal(3)}
  params = {"kernel": normal(side, side, 3, 4), "bias": normal(4)}
  x = normal(2, 3, 4, 2)
  found = jax.jit(conv.apply_after_transposed)(up, params, x)
  large = conv.apply_transposed(up, x)
  close(found, convolved(large, params["kernel"], params["bias"]), atol=1e-4)
