"""Convolutions as plain trees, initialized as in torch. Channels last.

These are the definitions. `fused_conv.py` computes the same functions faster.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.types import Params


def init(
  rng: jax.Array, c_in: int, c_out: int, side: int, *, bias: bool
) -> Params:
  """Initialize a convolution, uniform in +-1/sqrt(fan in) (torch).

  Args:
    rng: key.
    c_in: channels of the input.
    c_out: channels of the output.
    side: height and width of the kernel.
    bias: if there is a bias.

  Returns:
    "kernel" (side, side, c_in, c_out) and "bias" (c_out,).
  """
  return _init(rng, (side, side, c_in, c_out), c_in * side**2, bias)


def init_transposed(rng: jax.Array, c_in: int, c_out: int, side: int) -> Params:
  """Initialize a transposed convolution with bias; see `init`.

  Torch computes the fan in of a transposed convolution from c_out.
  """
  return _init(rng, (side, side, c_in, c_out), c_out * side**2, bias=True)


def apply(
  params: Params, x: Float[Array, "b h w c"]
) -> Float[Array, "b h w c2"]:
  """Convolve with stride 1, padded with zeros to keep the size."""
  y = jax.lax.conv_general_dilated(
    x,
    params["kernel"],
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y + params.get("bias", 0.0)


def apply_transposed(
  params: Params, x: Float[Array, "b h w c"]
) -> Float[Array, "b h2 w2 c2"]:
  """Enlarge by a transposed convolution whose stride is its kernel's side.

  Each pixel becomes a block of its own; the kernel is not reversed (torch).
  """
  b, h, w, _ = x.shape
  stride, _, _, c_out = params["kernel"].shape
  blocks = jnp.einsum("bhwi,pqio->bhpwqo", x, params["kernel"])
  return blocks.reshape(b, h * stride, w * stride, c_out) + params["bias"]


def _init(rng, shape, fan_in, bias):
  rng_kernel, rng_bias = jax.random.split(rng)
  bound = fan_in**-0.5
  uniform = lambda rng, shape: jax.random.uniform(
    rng, shape, jnp.float32, -bound, bound
  )
  params = {"kernel": uniform(rng_kernel, shape)}
  return params | ({"bias": uniform(rng_bias, shape[-1:])} if bias else {})
