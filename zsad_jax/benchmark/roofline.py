"""FLOPs and bytes of a program, counted in its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax

# Products of cuDNN's fused attention; backward recomputes the weights.
FUSED = {
  "dot_product_attention_fwd_wrapper": 2,
  "dot_product_attention_bwd_wrapper": 5,
}


def flops(function: Callable[..., Any], *arguments: Any) -> int:
  """Count the FLOPs of a function's matrix products and convolutions.

  A multiplication and an addition are two. Of branches the most expensive one
  counts, of a loop every iteration; a loop of unknown length counts once.
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr, _flops)


def moved(function: Callable[..., Any], *arguments: Any) -> int:
  """Count the bytes these products read and write; loops as in `flops`."""
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr, _bytes)


def _count(jaxpr, measure) -> int:
  return sum(_of_equation(equation, measure) for equation in jaxpr.eqns)


def _of_equation(equation, measure) -> int:
  name, params = equation.primitive.name, equation.params
  if name in ("dot_general", "conv_general_dilated", *FUSED):
    return measure(equation)
  inner = [_count(jaxpr, measure) for jaxpr in _programs(params.values())]
  if name == "cond":
    return max(inner)
  return sum(inner) * _times(name, params)


def _times(name, params) -> int:
  """Return how often an equation runs its programs."""
  if name == "scan":
    return params["length"]
  if name == "pallas_call":  # Once for each block.
    return math.prod(params["grid_mapping"].grid)
  return params["mesh"].size if name == "shard_map" else 1


def _programs(values):
  """Yield the jaxprs among an equation's parameters."""
  for value in values:
    if isinstance(value, tuple):
      yield from _programs(value)
    elif hasattr(value, "eqns"):
      yield value
    elif hasattr(value, "jaxpr"):
      yield value.jaxpr


def _flops(equation) -> int:
  """Count two per term of each sum in the result."""
  name = equation.primitive.name
  left, right = (x.aval for x in equation.invars[:2])
  if name in FUSED:  # (b t h d) and (b s h d).
    return 2 * FUSED[name] * left.size * right.shape[1]
  dimensions = equation.params["dimension_numbers"]
  if name == "dot_general":
    (summed, _), _ = dimensions
    number = math.prod(left.shape[i] for i in summed)
  else:
    number = right.size // right.shape[dimensions.rhs_spec[0]]
  return 2 * equation.outvars[0].aval.size * number


def _bytes(equation) -> int:
  arrays = (x.aval for x in (*equation.invars, *equation.outvars))
  return sum(x.size * x.dtype.itemsize for x in arrays)
