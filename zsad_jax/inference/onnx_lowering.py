"""Conversion of the steps of a program to a model of ONNX.

Loops of a fixed number of steps are unrolled before; those that end when a
condition is met, such as k-means, are ONNX's Loop.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]

from zsad_jax.inference import (
  folding,
  onnx_graph,
  onnx_ops,
  onnx_products,
)
from zsad_jax.inference.onnx_graph import Graph, Unsupported

Shape = tuple[Any, ...]


def to_model(
  folded: folding.Folded, names: Sequence[str], batch: Any
) -> onnx.ModelProto:
  """Convert a program of one input.

  Args:
    folded: the program, with unrolled loops.
    names: of the input and the outputs.
    batch: symbol of the batch size.

  Raises:
    Unsupported: an operation cannot be converted; the message names it.
  """
  g = Graph(batch)
  (x,) = folded.inputs
  g.set_batch(names[0])
  lowering = _Lowering(g, {x: (names[0], x.shape)})
  results = lowering.run(folded)
  for name, result in zip(names[1:], results, strict=True):
    node = onnx.helper.make_node("Identity", [result], [name])
    g.nodes.append(node)
  info = onnx_graph.value_info
  outputs = [
    info(name, each.shape, each.dtype)
    for name, each in zip(names[1:], folded.outputs)
  ]
  graph = onnx.helper.make_graph(
    g.nodes,
    "zsad_jax",
    [info(names[0], x.shape, x.dtype)],
    outputs,
    [
      onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
      for name, array in g.initializers().items()
    ],
  )
  return onnx.helper.make_model(
    graph,
    producer_name="zsad_jax",
    ir_version=onnx_graph.IR_VERSION,
    opset_imports=[onnx.helper.make_opsetid("", onnx_graph.OPSET)],
  )


class _Lowering:
  """Converts steps to operators.

  Values are kept by name with the shape that they have: an axis of size 1 may
  have to be repeated to the size that the step defines.
  """

  def __init__(self, g: Graph, values: dict[Any, tuple[str, Shape]]):
    self._g = g
    self._values = values

  def run(self, folded: folding.Folded) -> list[str]:
    """Add the operators of all steps and return the names of the results."""
    for step in folded.steps:
      self._add(step)
    return [self._full(x) for x in folded.outputs]

  def _raw(self, x) -> tuple[str, Shape]:
    """Return the name of a value and the shape that it has."""
    if isinstance(x, folding.Var):
      return self._values[x]
    return self._g.constant(np.asarray(x)), np.shape(x)

  def _full(self, x) -> str:
    """Return the name of a value in its complete shape."""
    name, shape = self._raw(x)
    if not isinstance(x, folding.Var) or shape == x.shape:
      return name
    # The same expanded value for all steps.
    name = self._g.op("Expand", name, self._g.sizes(x.shape))
    self._values[x] = name, x.shape
    return name

  def _add(self, step: folding.Step) -> None:
    """Add the operators of a step."""
    primitive = step.primitive.name
    if primitive in onnx_ops.ELEMENTWISE:
      raw = [self._raw(x) for x in step.inputs]
      shape = _broadcast_shapes([shape for _, shape in raw], step)
      lower = onnx_ops.ELEMENTWISE[primitive]
      name = lower(self._g, step, *(name for name, _ in raw))
      self._values[step.outputs[0]] = name, shape
      return
    if primitive == "broadcast_in_dim":
      name = self._full(step.inputs[0])
      found = onnx_products.broadcast(self._g, step, name)
      self._values[step.outputs[0]] = found
      return
    names = [self._full(x) for x in step.inputs]
    results = self._lower(primitive, step, names)
    results = [results] if isinstance(results, str) else results
    for output, name in zip(step.outputs, results, strict=True):
      self._values[output] = name, output.shape

  def _lower(self, primitive, step, names):
    if primitive == "while":
      return self._while(step, names)
    if primitive == "iota":
      return self._iota(step)
    known = {**onnx_ops.OTHERS, **onnx_products.OTHERS}
    if primitive not in known:
      raise Unsupported(f"the operation {primitive}")
    return known[primitive](self._g, step, *names)

  def _iota(self, step):
    """Return 0, 1, ... along an axis, for a symbolic shape."""
    g, shape = self._g, step.outputs[0].shape
    axis = step.params["dimension"]
    number = lambda n: g.constant(np.array(n, np.int64))
    size = g.op("Squeeze", g.sizes((shape[axis],)), g.ints([0]))
    numbers = g.op("Range", number(0), size, number(1))
    numbers = g.cast(numbers, step.params["dtype"])
    line = tuple(n if i == axis else 1 for i, n in enumerate(shape))
    return g.op("Expand", g.reshape(numbers, line), g.sizes(shape))

  def _while(self, step, names) -> list[str]:
    """Return the results of a loop that ends when its condition is false."""
    g, params = self._g, step.params
    condition, body = params["cond_nconsts"], params["body_nconsts"]
    constants = step.inputs[:condition], step.inputs[condition:][:body]
    carry, first = step.inputs[condition + body :], names[condition + body :]
    variables = [folding.Var(x.shape, x.dtype) for x in step.outputs]

    def call(jaxpr, fixed, graph, given: list[str]):
      """Add the operators of a function of the carried values."""
      folded = folding.fold_jaxpr(
        jaxpr, [*fixed, *variables], tuple(variables), unroll=True
      )
      given_values = {v: (n, v.shape) for v, n in zip(variables, given)}
      return _Lowering(graph, self._values | given_values).run(folded)

    (start,) = call(params["cond_jaxpr"], constants[0], g, list(first))
    inner = g.subgraph()
    number, unused = g.new_name(), g.new_name()
    given = [g.new_name() for _ in carry]
    found = call(params["body_jaxpr"], constants[1], inner, given)
    # An input or a constant cannot be a result of a subgraph.
    found = [inner.op("Identity", name) for name in found]
    (going,) = call(params["cond_jaxpr"], constants[0], inner, found)
    going = inner.op("Identity", going)
    info = onnx_graph.value_info
    declare = lambda names: [
      info(n, v.shape, v.dtype) for n, v in zip(names, variables)
    ]
    graph = onnx.helper.make_graph(
      inner.nodes,
      "body",
      [info(number, (), np.int64), info(unused, (), bool), *declare(given)],
      [info(going, (), bool), *declare(found)],
    )
    return g.ops("Loop", len(carry), "", start, *first, body=graph)


def _broadcast_shapes(shapes, step) -> Shape:
  """Return the shape of an elementwise operator's result."""
  result = []
  for axis, full in enumerate(step.outputs[0].shape):
    sizes = [shape[axis] for shape in shapes if shape]
    ones = all(isinstance(n, int) and n == 1 for n in sizes)
    result.append(1 if ones else full)
  return tuple(result)
