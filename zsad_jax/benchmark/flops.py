"""Arithmetic of a program, counted in what JAX traces of it."""

import math

import jax


def count(function, *arguments) -> int:
  """FLOPs of the matrix products and convolutions of a function.

  A multiplication and an addition are two. Of branches the dearest counts, of
  a loop every round; a loop of unknown length counts once.
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> int:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _dot(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  inner = [_count(jaxpr) for jaxpr in _programs(params.values())]
  if name == "cond":
    return max(inner)
  return sum(inner) * (params["length"] if name == "scan" else 1)


def _programs(values):
  """The programs among an equation's parameters."""
  for value in values:
    if isinstance(value, tuple):
      yield from _programs(value)
    elif hasattr(value, "eqns"):
      yield value
    elif hasattr(value, "jaxpr"):
      yield value.jaxpr


def _dot(equation) -> int:
  left, _ = (x.aval.shape for x in equation.invars)
  (summed, _), _ = equation.params["dimension_numbers"]
  return 2 * equation.outvars[0].aval.size * math.prod(left[i] for i in summed)


def _convolution(equation) -> int:
  kernel = equation.invars[1].aval
  out_axis = equation.params["dimension_numbers"].rhs_spec[0]
  per_number = kernel.size // kernel.shape[out_axis]
  return 2 * equation.outvars[0].aval.size * per_number
