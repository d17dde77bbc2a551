"""Convolutions as plain trees, initialised as torch does. Channels last."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def init(rng, c_in: int, c_out: int, side: int, *, bias: bool):
  """Kernel (side, side, c_in, c_out), uniform in +-1/sqrt(fan in) (torch)."""
  return _init(rng, (side, side, c_in, c_out), c_in * side**2, bias)


def init_transposed(rng, c_in: int, c_out: int, side: int):
  """The same with a bias; torch takes c_out for the fan in here."""
  return _init(rng, (side, side, c_in, c_out), c_out * side**2, bias=True)


def apply(params, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
  """Convolution of stride 1, padded with zeros to keep the size."""
  y = jax.lax.conv_general_dilated(
      x,
      params["kernel"],
      window_strides=(1, 1),
      padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y + params.get("bias", 0.0)


def apply_transposed(
    params, x: Float[Array, "b h w c"]
) -> Float[Array, "b h2 w2 c2"]:
  """Transposed convolution whose stride is its kernel's side.

  Each pixel becomes a block of its own: no block overlaps another, and the
  kernel is not reversed (torch's ConvTranspose2d).
  """
  b, h, w, _ = x.shape
  side, _, _, c_out = params["kernel"].shape
  blocks = jnp.einsum("bhwi,yxio->bhywxo", x, params["kernel"])
  return blocks.reshape(b, h * side, w * side, c_out) + params["bias"]


def _init(rng, shape, fan_in, bias):
  rng_kernel, rng_bias = jax.random.split(rng)
  bound = fan_in**-0.5
  uniform = lambda rng, shape: jax.random.uniform(
      rng, shape, jnp.float32, -bound, bound
  )
  params = {"kernel": uniform(rng_kernel, shape)}
  return params | ({"bias": uniform(rng_bias, shape[-1:])} if bias else {})
