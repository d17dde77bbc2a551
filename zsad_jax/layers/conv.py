"""Convolutions as plain trees, initialised as torch does. Channels last."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from zsad_jax.layers import kernels


def init(rng, c_in: int, c_out: int, side: int, *, bias: bool):
  """Kernel (side, side, c_in, c_out), uniform in +-1/sqrt(fan in) (torch)."""
  return _init(rng, (side, side, c_in, c_out), c_in * side**2, bias)


def init_transposed(rng, c_in: int, c_out: int, side: int):
  """The same with a bias; torch takes c_out for the fan in here."""
  return _init(rng, (side, side, c_in, c_out), c_out * side**2, bias=True)


def apply_scaled(
  params,
  x: Float[Array, "b h w c"],
  scale: Float[Array, " c"],
  shift: Float[Array, " c"],
) -> Float[Array, "b h w c2"]:
  """Convolution of scale * x + shift, padded with zeros to keep the size.

  By a scaled kernel: where nothing that is learned stands in x, the backward
  pass then needs no gradient of an image, a third of its work. No bias.
  """
  kernel = params["kernel"]
  shifted = _constant_images(kernel, shift, len(x), x.shape[1:3])
  return _convolve(x, kernel * scale[:, None]) + shifted


def apply_after_transposed(
  up, params, x: Float[Array, "b h w c"]
) -> Float[Array, "b h2 w2 c2"]:
  """Convolution of what a transposed convolution makes of x, by one kernel.

  Each is linear, and so are both together: nothing but the result is computed
  at the higher resolution.

  Args:
    up: of the transposed one, whose stride is its kernel's side: each pixel
      becomes a block of its own, and the kernel is not reversed (torch).
    params: of the convolution, padded with zeros to keep the size.
    x: images.
  """
  b, h, w, _ = x.shape
  stride = up["kernel"].shape[0]
  side, *_, c_out = params["kernel"].shape
  falls = _falls(side, stride)
  kernel = jnp.einsum(
    "pamr,qbns,rsce,abeo->mncpqo",
    falls,
    falls,
    up["kernel"],
    params["kernel"],
  )
  if kernels.one_cpu():
    blocks = _convolve_by_products(x, kernel, falls.any((1, 3)).T)
  else:
    blocks = _convolve(x, kernel.reshape(*kernel.shape[:3], -1))
  blocks = blocks.reshape(b, h, w, stride, stride, c_out).swapaxes(2, 3)
  y = blocks.reshape(b, h * stride, w * stride, c_out)
  y += _constant_images(params["kernel"], up["bias"], b, y.shape[1:3])
  return y + params.get("bias", 0.0)


def _falls(side, stride):
  """Whether place a of a kernel, around pixel p of a block, is r of block m."""
  reach = -(-(side // 2) // stride)
  falls = np.zeros((stride, side, 2 * reach + 1, stride), np.float32)
  for p in range(stride):
    for a in range(side):
      block, r = divmod(p + a - side // 2, stride)
      falls[p, a, reach + block, r] = 1.0
  return falls


def _constant_images(kernel, value: Float[Array, " c"], b: int, size):
  """Convolution of images that are `value` everywhere: (b, h, w, c2).

  What it is depends on how much of the kernel lies on the image. Of one image
  for all the gradient would be a sum over the batch, slower than a product.
  """
  side, *_, c_out = kernel.shape
  inside = jax.lax.conv_general_dilated_patches(
    jnp.ones((1, 1, *size)), (side, side), (1, 1), "SAME"
  )
  places = jnp.einsum("yxio,i->yxo", kernel, value).reshape(-1, c_out)
  inside = jnp.tile(inside.reshape(side**2, -1).T, (b, 1))
  return (inside @ places).reshape(b, *size, c_out)


def _convolve(x, kernel):
  if kernels.one_cpu():
    side, _, *features = kernel.shape
    kernel = kernel.reshape(side, side, features[0], 1, 1, features[1])
    blocks = _convolve_by_products(x, kernel, np.ones((side, 1), bool))
    return blocks.reshape(*x.shape[:3], -1)
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _convolve_by_products(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "k k c p p o"],
  used: Bool[np.ndarray, "k p"],
) -> Float[Array, "b h w p p o"]:
  """One matrix product for all places in the kernel, moved to where they count.

  Faster than XLA's convolution on a CPU, above all its gradient.

  Args:
    x: images.
    kernel: what each place adds to the p x p pixels that a pixel becomes.
    used: which of these, along one side, a place adds to. In the others the
      kernel is zero.
  """
  b, h, w, c = x.shape
  (side, block), reach, c_out = used.shape, len(used) // 2, kernel.shape[-1]
  # All pixels in one axis, where a neighbour is always equally far: the zeros
  # behind a row lie before the next one, too.
  wide = w + reach
  x = jnp.pad(x, ((0, 0), (0, reach), (0, reach), (0, 0))).reshape(-1, c)
  length, margin = len(x), reach * wide + reach
  x = jnp.pad(x, ((margin, margin), (0, 0)))
  starts = np.add.outer(wide * np.arange(side), np.arange(side)).ravel()
  near = np.einsum("ip,jq->pqij", used, used).reshape(block**2, -1)
  starts = tuple(tuple(map(int, starts[places])) for places in near)
  columns = kernel.transpose(2, 3, 4, 0, 1, 5).reshape(c, near.size, c_out)
  columns = columns[:, np.flatnonzero(near)].reshape(c, -1)
  y = _add_moved(x @ columns, starts, length, c_out)
  y = y.reshape(b, h + reach, wide, block, block, c_out)
  return y[:, :h, :w]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _add_moved(products: Float[Array, "n m"], starts, length, c_out):
  """Sums of a product's columns, each from a row of its own on.

  Args:
    products: c_out columns for each place.
    starts: per pixel of a block, the first row of each place near it.
    length: number of rows of a sum.
    c_out: see above.

  Returns:
    The sums side by side, (length, pixels * c_out).
  """
  columns = iter(range(0, products.shape[1], c_out))
  move = lambda start, i: products[start : start + length, i : i + c_out]
  sums = [sum(move(start, next(columns)) for start in near) for near in starts]
  return jnp.concatenate(sums, axis=1)


def _add_moved_backward(starts, length, c_out, number, d_sums):
  # Beside what JAX derives it adds up no zeros.
  most = number - length
  d_sums, parts = jnp.pad(d_sums, ((most, most), (0, 0))), []
  for i, near in enumerate(starts):
    part = d_sums[:, i * c_out : (i + 1) * c_out]
    parts += [part[most - start :][:number] for start in near]
  return (jnp.concatenate(parts, axis=1),)


_add_moved.defvjp(
  lambda products, *static: (_add_moved(products, *static), len(products)),
  _add_moved_backward,
)


def _init(rng, shape, fan_in, bias):
  rng_kernel, rng_bias = jax.random.split(rng)
  bound = fan_in**-0.5
  uniform = lambda rng, shape: jax.random.uniform(
    rng, shape, jnp.float32, -bound, bound
  )
  params = {"kernel": uniform(rng_kernel, shape)}
  return params | ({"bias": uniform(rng_bias, shape[-1:])} if bias else {})
