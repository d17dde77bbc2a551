"""Rounding to float16 that compilers keep."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

_SMALLEST_NORMAL = 2.0**-14
_SPACING = 2.0**-24  # Of float16's subnormal numbers.


@jax.custom_vjp
def to_float16(x: Float32[Array, "*s"]) -> Float32[Array, "*s"]:
  """Round values and gradients to the nearest float16, ties to even.

  `x.astype(float16).astype(float32)` is not enough: XLA removes pairs of
  conversions where it may compute with excess precision, as it does on GPUs.

  Args:
    x: any values. Above 65504 they become infinite, as in float16.
  """
  return _round(x)


def _round(x: Array) -> Array:
  # `reduce_precision` sets subnormal numbers to zero.
  subnormal = jnp.round(x / _SPACING) * _SPACING
  normal = jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)
  return jnp.where(jnp.abs(x) < _SMALLEST_NORMAL, subnormal, normal)


to_float16.defvjp(lambda x: (_round(x), None), lambda _, g: (_round(g),))
