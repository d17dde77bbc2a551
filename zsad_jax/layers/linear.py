"""Linear layers as plain trees, initialised as torch does."""

import jax
import jax.numpy as jnp


def init(rng, c_in: int, c_out: int, *, bias: bool = True):
  """Kernel (c_in, c_out) and bias, uniform in +-1/sqrt(c_in) (torch)."""
  rng_kernel, rng_bias = jax.random.split(rng)
  bound = c_in**-0.5
  uniform = lambda rng, *shape: jax.random.uniform(
    rng, shape, jnp.float32, -bound, bound
  )
  params = {"kernel": uniform(rng_kernel, c_in, c_out)}
  return params | ({"bias": uniform(rng_bias, c_out)} if bias else {})


def apply(params, x):
  """(..., c_in) -> (..., c_out)."""
  return jnp.matmul(x, params["kernel"]) + params.get("bias", 0.0)
