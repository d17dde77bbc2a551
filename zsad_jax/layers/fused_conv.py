"""Faster forms of the convolutions in `conv.py`, equal up to rounding.

Convolutions are linear, which is used four times. Formulas are for one spatial
axis, k is the kernel K's side, and c = k // 2 is its centre.

1. A scale s and a shift t per channel before a convolution (`apply_scaled`):

     conv(K, s x + t) = conv(s K, x) + conv(K, t)

   The first term scales the kernel instead of the image: where the image
   contains no learned parameter, the backward pass needs no gradient of an
   image, which is a third of its work. The second term, the convolution of a
   constant image with zero padding, depends only on which positions of the
   kernel lie inside the image (`_constant_images`).

2. A transposed convolution of kernel U, stride n and bias u, followed by a
   convolution (`apply_after_transposed`). The transposed one maps pixel i to
   the block z[n i + r] = U[r] x[i] + u, 0 <= r < n. Without the bias, pixel p
   of output block i is

     y[n i + p] = sum_a K[a] z[n i + p + a - c]

   With p + a - c = n m + r this pixel of z is pixel r of block i + m, hence

     y[n i + p] = sum_m M[m, p] x[i + m],
     M[m, p] = sum over (a, r) with p + a - c = n m + r of K[a] U[r]

   One convolution with the merged kernel M at the low resolution computes all
   n pixels p of a block at once: nothing else is computed at the high
   resolution. `_indicator` is 1 at (p, a, m, r) where p + a - c = n m + r.
   The bias u is a constant image, as in 1.

3. A convolution on one CPU (`_convolve_by_products`):

     y[i] = sum_a K[a] x[i + a - c]

   All products K[a] x[j] are one matrix product of the pixels, which is then
   shifted by a - c and summed. On a CPU this is faster than XLA's
   convolution, above all its gradient. Products with blocks of M that are
   zero (no such (a, r)) are left out.

4. The gradient of shifted sums (`_sum_shifted`) is the gradient of the sums,
   shifted back. JAX would derive the same by adding padded arrays of zeros.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from zsad_jax.layers import kernels
from zsad_jax.types import Params


def apply_scaled(
  params: Params,
  x: Float[Array, "b h w c"],
  scale: Float[Array, " c"],
  shift: Float[Array, " c"],
) -> Float[Array, "b h w c2"]:
  """Compute conv.apply(params, scale * x + shift) for params without bias."""
  kernel = params["kernel"]
  shifted = _constant_images(kernel, shift, x.shape[0], x.shape[1:3])
  return _convolve(x, kernel * scale[:, None]) + shifted


def apply_after_transposed(
  up: Params, params: Params, x: Float[Array, "b h w c"]
) -> Float[Array, "b h2 w2 c2"]:
  """Compute conv.apply(params, conv.apply_transposed(up, x)).

  Args:
    up: of the transposed convolution, with bias.
    params: of the convolution, with or without bias.
    x: images.

  Returns:
    Images that are enlarged by the stride of `up`.
  """
  b, h, w, _ = x.shape
  stride = up["kernel"].shape[0]
  side, *_, c_out = params["kernel"].shape
  indicator = _indicator(side, stride)
  kernel = jnp.einsum(
    "pamr,qbns,rsce,abeo->mncpqo",
    indicator,
    indicator,
    up["kernel"],
    params["kernel"],
  )
  if kernels.one_cpu():
    blocks = _convolve_by_products(
      x, kernel, np.asarray(indicator.any((1, 3))).T
    )
  else:
    blocks = _convolve(x, kernel.reshape(*kernel.shape[:3], -1))
  blocks = blocks.reshape(b, h, w, stride, stride, c_out).swapaxes(2, 3)
  y = blocks.reshape(b, h * stride, w * stride, c_out)
  y += _constant_images(params["kernel"], up["bias"], b, y.shape[1:3])
  return y + params.get("bias", 0.0)


def _indicator(side, stride):
  """Return 1 where p + a - side // 2 = stride * m + r, indexed [p, a, m, r].

  m is counted from the lowest block that the kernel reaches.
  """
  reach = -(-(side // 2) // stride)
  result = np.zeros((stride, side, 2 * reach + 1, stride), np.float32)
  for p in range(stride):
    for a in range(side):
      block, r = divmod(p + a - side // 2, stride)
      result[p, a, reach + block, r] = 1.0
  return result


def _constant_images(kernel, value: Float[Array, " c"], b, size):
  """Convolve b images, b may be symbolic, that are `value`: (b, h, w, c2).

  All b are computed: the gradient of one image for all would be a sum over
  the batch, which is slower than a product.
  """
  side, *_, c_out = kernel.shape
  inside = jax.lax.conv_general_dilated_patches(
    jnp.ones((1, 1, *size)), (side, side), (1, 1), "SAME"
  )
  products = jnp.einsum("yxio,i->yxo", kernel, value).reshape(-1, c_out)
  inside = jnp.tile(inside.reshape(side**2, -1).T, (b, 1))
  return (inside @ products).reshape(b, *size, c_out)


def _convolve(x, kernel):
  """Convolve without bias; see `conv.apply`."""
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
  """Convolve by one matrix product and shifted sums.

  Args:
    x: images.
    kernel: merged kernel; each pixel becomes a block of p x p pixels.
    used: along one axis, if a kernel position contributes to a pixel of the
      block; the kernel is zero elsewhere.

  Returns:
    A block per pixel.
  """
  b, h, w, c = x.shape
  (side, block), reach, c_out = used.shape, len(used) // 2, kernel.shape[-1]
  # All pixels are in one axis, where each neighbour has a fixed offset: the
  # zeros after a row are also those before the next one.
  wide = w + reach
  x = jnp.pad(x, ((0, 0), (0, reach), (0, reach), (0, 0))).reshape(-1, c)
  length, margin = len(x), reach * wide + reach
  x = jnp.pad(x, ((margin, margin), (0, 0)))
  rows, columns = wide * np.arange(side), np.arange(side)
  starts = (rows[:, None] + columns).ravel()
  near = np.einsum("ip,jq->pqij", used, used).reshape(block**2, -1)
  starts = tuple(tuple(map(int, starts[positions])) for positions in near)
  flat = kernel.transpose(2, 3, 4, 0, 1, 5).reshape(c, near.size, c_out)
  flat = flat[:, np.flatnonzero(near)].reshape(c, -1)
  # The stub of custom_vjp does not know the type of the result.
  y = typing.cast(jax.Array, _sum_shifted(x @ flat, starts, length, c_out))
  y = y.reshape(b, h + reach, wide, block, block, c_out)
  return y[:, :h, :w]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _sum_shifted(
  products: Float[Array, "n m"], starts, length, c_out
) -> Float[Array, "l k"]:
  """Sum groups of columns, each group shifted to a row of its own.

  Args:
    products: c_out columns for each kernel position of each block pixel.
    starts: per pixel of a block, the first row of each position's columns.
    length: number of rows of a sum.
    c_out: see above.

  Returns:
    The sums, concatenated: (length, block pixels * c_out).
  """
  columns = iter(range(0, products.shape[1], c_out))
  shift = lambda start, i: products[start : start + length, i : i + c_out]
  sums = [sum(shift(start, next(columns)) for start in near) for near in starts]
  return jnp.concatenate(sums, axis=1)


def _sum_shifted_backward(starts, length, c_out, number, d_sums):
  most = number - length
  d_sums, parts = jnp.pad(d_sums, ((most, most), (0, 0))), []
  for i, near in enumerate(starts):
    part = d_sums[:, i * c_out : (i + 1) * c_out]
    parts += [part[most - start :][:number] for start in near]
  return (jnp.concatenate(parts, axis=1),)


_sum_shifted.defvjp(
  lambda products, *static: (_sum_shifted(products, *static), len(products)),
  _sum_shifted_backward,
)
