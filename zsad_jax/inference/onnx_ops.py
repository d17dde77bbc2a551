"""ONNX operators of JAX's elementwise, shape and reduction primitives.

A function receives the lowering, the step and the names of its inputs, and
returns the name of the result. Elementwise functions work on values that are
not broadcast to the step's shape yet, as ONNX's operators broadcast.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from zsad_jax.inference import onnx_graph
from zsad_jax.inference.onnx_graph import Graph, Unsupported

Op = Callable[..., Any]


def dtype_of(x: Any) -> np.dtype:
  """Return the type of the elements of an input of a step."""
  return np.dtype(x.dtype)


def _is_bool(step) -> bool:
  return dtype_of(step.inputs[0]).kind == "b"


def _same(kind: str) -> Op:
  """Return the function of a primitive that ONNX has, too."""
  return lambda g, step, *x: g.op(kind, *x)


def _number(g: Graph, step, value: float | int) -> str:
  """Return a constant of the type of the first input."""
  return g.constant(np.array(value, dtype_of(step.inputs[0])))


def _rsqrt(g: Graph, step, x: str) -> str:
  return g.op("Reciprocal", g.op("Sqrt", x))


def _erfc(g: Graph, step, x: str) -> str:
  return g.op("Sub", _number(g, step, 1), g.op("Erf", x))


def _round(g: Graph, step, x: str) -> str:
  if int(step.params["rounding_method"]) == 1:  # To even.
    return g.op("Round", x)
  down = g.op("Floor", g.op("Add", g.op("Abs", x), _number(g, step, 0.5)))
  return g.op("Mul", g.op("Sign", x), down)


def _is_finite(g: Graph, step, x: str) -> str:
  return g.op("Not", g.op("Or", g.op("IsInf", x), g.op("IsNaN", x)))


def _integer_pow(g: Graph, step, x: str) -> str:
  if step.params["y"] == 2:
    return g.op("Mul", x, x)
  return g.op("Pow", x, _number(g, step, step.params["y"]))


def _reduce_precision(g: Graph, step, x: str) -> str:
  bits = step.params["exponent_bits"], step.params["mantissa_bits"]
  if bits != (5, 10):
    raise Unsupported(f"rounding to {bits[0]} and {bits[1]} bits")
  half = g.op("Cast", x, to=10)  # float16
  return g.op("Cast", half, to=onnx_graph.element_type(np.float32))


def _convert(g: Graph, step, x: str) -> str:
  return g.cast(x, step.params["new_dtype"])


def _logical(kind: str) -> Op:
  """Return the function of a bitwise primitive, which is for bool here."""

  def lower(g: Graph, step, *x: str) -> str:
    if not _is_bool(step):
      raise Unsupported(f"{step.primitive.name} of whole numbers")
    return g.op(kind, *x)

  return lower


def _ne(g: Graph, step, x: str, y: str) -> str:
  return g.op("Not", g.op("Equal", x, y))


def _rem(g: Graph, step, x: str, y: str) -> str:
  return g.op("Mod", x, y, fmod=1)


def _extreme(kind: str, logical: str) -> Op:
  """Return the function of max or min, also of bool."""
  return lambda g, step, x, y: g.op(logical if _is_bool(step) else kind, x, y)


def _select(g: Graph, step, which: str, *cases: str) -> str:
  if not _is_bool(step):
    raise Unsupported("a choice of more than two cases")
  return g.where(which, cases[1], cases[0], step.inputs[1].dtype)


def _clamp(g: Graph, step, low: str, x: str, high: str) -> str:
  return g.op("Min", g.op("Max", x, low), high)


ELEMENTWISE: dict[str, Op] = {
  "abs": _same("Abs"),
  "add": _same("Add"),
  "add_any": _same("Add"),
  "and": _logical("And"),
  "ceil": _same("Ceil"),
  "clamp": _clamp,
  "convert_element_type": _convert,
  "cos": _same("Cos"),
  "div": _same("Div"),
  "eq": _same("Equal"),
  "erf": _same("Erf"),
  "erfc": _erfc,
  "exp": _same("Exp"),
  "floor": _same("Floor"),
  "ge": _same("GreaterOrEqual"),
  "gt": _same("Greater"),
  "integer_pow": _integer_pow,
  "is_finite": _is_finite,
  "le": _same("LessOrEqual"),
  "log": _same("Log"),
  "logistic": _same("Sigmoid"),
  "lt": _same("Less"),
  "max": _extreme("Max", "Or"),
  "min": _extreme("Min", "And"),
  "mul": _same("Mul"),
  "ne": _ne,
  "neg": _same("Neg"),
  "not": _logical("Not"),
  "optimization_barrier": _same("Identity"),
  "or": _logical("Or"),
  "pow": _same("Pow"),
  "reduce_precision": _reduce_precision,
  "rem": _rem,
  "round": _round,
  "rsqrt": _rsqrt,
  "select_n": _select,
  "sign": _same("Sign"),
  "sin": _same("Sin"),
  "sqrt": _same("Sqrt"),
  "square": lambda g, step, x: g.op("Mul", x, x),
  "sub": _same("Sub"),
  "tanh": _same("Tanh"),
  "xor": _logical("Xor"),
}


def _reduce(kind: str) -> Op:
  """Return the function of a reduction over the axes of a step."""
  return lambda g, step, x: g.op(
    kind, x, g.ints(step.params["axes"]), keepdims=0
  )


def _reduce_logical(kind: str) -> Op:
  """Return the function of a reduction of bool."""

  def lower(g: Graph, step, x: str) -> str:
    number = g.cast(x, np.int32)
    return g.cast(_reduce(kind)(g, step, number), bool)

  return lower


def _argument(kind: str) -> Op:
  """Return the function of argmax or argmin: the first index."""

  def lower(g: Graph, step, x: str) -> str:
    (axis,) = step.params["axes"]
    index = g.op(kind, x, axis=axis, keepdims=0)
    return g.cast(index, step.params["index_dtype"])

  return lower


def _transpose(g: Graph, step, x: str) -> str:
  return g.transpose(x, step.params["permutation"])


def _to_shape(g: Graph, step, x: str) -> str:
  """Reshape, for primitives that keep the order of the elements."""
  return g.reshape(x, step.outputs[0].shape)


def _reshape(g: Graph, step, x: str) -> str:
  axes = step.params["dimensions"]
  return _to_shape(g, step, x if axes is None else g.transpose(x, axes))


def _concatenate(g: Graph, step, *x: str) -> str:
  return g.op("Concat", *x, axis=step.params["dimension"])


def _stack(g: Graph, step, *x: str) -> str:
  axis = step.params["axis"]
  rows = []
  for name, each in zip(x, step.inputs):
    shape = [*each.shape]
    shape.insert(axis, 1)
    rows.append(g.reshape(name, tuple(shape)))
  return g.op("Concat", *rows, axis=axis)


def _split(g: Graph, step, x: str) -> list[str]:
  sizes = step.params["sizes"]
  return g.ops("Split", len(sizes), x, g.ints(sizes), axis=step.params["axis"])


def _unstack(g: Graph, step, x: str) -> list[str]:
  axis, shape = step.params["axis"], step.outputs[0].shape
  count = step.inputs[0].shape[axis]
  rows = g.ops("Split", count, x, g.ints([1] * count), axis=axis)
  return [g.reshape(row, shape) for row in rows]


def _slice(g: Graph, step, x: str) -> str:
  starts, stops = step.params["start_indices"], step.params["limit_indices"]
  steps = step.params["strides"] or (1,) * len(starts)
  for axis, size in enumerate(step.inputs[0].shape):
    part = starts[axis], stops[axis], steps[axis]
    if part != (0, size, 1):
      if not isinstance(size, int):
        raise Unsupported("a slice along the batch")
      x = g.slice(x, axis, *part)
  return x


def _rev(g: Graph, step, x: str) -> str:
  for axis in step.params["dimensions"]:
    x = g.slice(x, axis, -1, np.iinfo(np.int64).min, -1)
  return x


def _pad(g: Graph, step, x: str, value: str) -> str:
  config = step.params["padding_config"]
  if any(inner for _, _, inner in config):
    raise Unsupported("padding between elements")
  for axis, (low, high, _) in enumerate(config):
    size = step.inputs[0].shape[axis]
    if low < 0 or high < 0:
      x = g.slice(x, axis, max(-low, 0), size + min(high, 0))
  pads = [max(low, 0) for low, _, _ in config]
  pads += [max(high, 0) for _, high, _ in config]
  return g.op("Pad", x, g.ints(pads), value) if any(pads) else x


def _tile(g: Graph, step, x: str) -> str:
  return g.op("Tile", x, g.sizes(step.params["reps"]))


def _top_k(g: Graph, step, x: str) -> list[str]:
  axis = step.params.get("axis", -1)
  k = g.ints([step.params["k"]])
  # The lower one of two equal elements is first, as in JAX.
  values, index = g.ops("TopK", 2, x, k, axis=axis, largest=1, sorted=1)
  return [values, g.cast(index, step.outputs[1].dtype)]


def _cumsum(g: Graph, step, x: str) -> str:
  axis = g.constant(np.array(step.params["axis"], np.int64))
  return g.op("CumSum", x, axis, reverse=int(step.params["reverse"]))


OTHERS: dict[str, Op] = {
  "argmax": _argument("ArgMax"),
  "argmin": _argument("ArgMin"),
  "concatenate": _concatenate,
  "cumsum": _cumsum,
  "expand_dims": _to_shape,
  "pad": _pad,
  "reduce_and": _reduce_logical("ReduceMin"),
  "reduce_max": _reduce("ReduceMax"),
  "reduce_min": _reduce("ReduceMin"),
  "reduce_or": _reduce_logical("ReduceMax"),
  "reduce_prod": _reduce("ReduceProd"),
  "reduce_sum": _reduce("ReduceSum"),
  "reshape": _reshape,
  "rev": _rev,
  "slice": _slice,
  "split": _split,
  "squeeze": _to_shape,
  "stack": _stack,
  "tile": _tile,
  "top_k": _top_k,
  "transpose": _transpose,
  "unstack": _unstack,
}
