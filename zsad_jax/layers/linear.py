"""Linear layers as plain trees, initialized as in torch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.types import Params


def init(rng: jax.Array, c_in: int, c_out: int, *, bias: bool = True) -> Params:
  """Initialize a linear layer, uniform in +-1/sqrt(c_in) (torch).

  Args:
    rng: key.
    c_in: width of the input.
    c_out: width of the output.
    bias: if there is a bias.

  Returns:
    "kernel" (c_in, c_out) and "bias" (c_out,).
  """
  rng_kernel, rng_bias = jax.random.split(rng)
  bound = c_in**-0.5
  uniform = lambda rng, *shape: jax.random.uniform(
    rng, shape, jnp.float32, -bound, bound
  )
  params = {"kernel": uniform(rng_kernel, c_in, c_out)}
  return params | ({"bias": uniform(rng_bias, c_out)} if bias else {})


def apply(
  params: Params, x: Float[Array, "*b c_in"]
) -> Float[Array, "*b c_out"]:
  """Apply a linear layer to the last axis."""
  return jnp.matmul(x, params["kernel"]) + params.get("bias", 0.0)
