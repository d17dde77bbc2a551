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
      onnx.numpy_helper.from_array(_contiguous(array), name)
      for name, array in g.initializers().items()
    ],
  )
  return onnx.helper.make_model(
    graph,
    producer_name="zsad_jax",
    ir_version=onnx_graph.IR_VERSION,
    opset_imports=[onnx.helper.make_opsetid("", onnx_graph.OPSET)],
  )


def _contiguous(array):
  """Return an array in C order; NumPy's function adds an axis to a scalar."""
  return np.ascontiguousarray(array) if array.ndim else array


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
    return self._g.constant(x), np.shape(x)

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
    results = self._lower(primitive, step)
    results = [results] if isinstance(results, str) else results
    for output, name in zip(step.outputs, results, strict=True):
      self._values[output] = name, output.shape

  def _lower(self, primitive, step):
    if primitive == "iota":
      return self._iota(step)
    if primitive == "dim_as_value":
      return self._dimension(step)
    known = {**onnx_ops.OTHERS, **onnx_products.OTHERS}
    if primitive not in (*known, "while"):
      raise Unsupported(f"the operation {primitive}")
    names = [self._full(x) for x in step.inputs]
    if primitive == "while":
      return self._while(step, names)
    return known[primitive](self._g, step, *names)

  def _dimension(self, step):
    """Return a symbolic size as a number."""
    size = self._g.sizes((step.params["dim"],))
    number = self._g.op("Squeeze", size, self._g.ints([0]))
    return self._g.cast(number, step.outputs[0].dtype)

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
    """Return the results of a loop that ends when its condition is false.

    The condition of a batch of loops is one for each: the loop goes on while
    one is true, and those for which it is false keep their values.
    """
    g, params = self._g, step.params
    condition, body = params["cond_nconsts"], params["body_nconsts"]
    constants = step.inputs[:condition], step.inputs[condition:][:body]
    first = names[condition + body :]
    variables = [folding.Var(x.shape, x.dtype) for x in step.outputs]

    def going(graph, given):
      (found,) = self._call(
        graph, params["cond_jaxpr"], constants[0], variables, given
      )
      return found

    is_batch = bool(params["cond_jaxpr"].out_avals[0].shape)
    start = going(g, first)
    inner = g.subgraph()
    number, unused, *given = (g.new_name() for _ in (0, 0, *first))
    found = self._call(
      inner, params["body_jaxpr"], constants[1], variables, given
    )
    if is_batch:
      mask = going(inner, given)
      found = [
        _keep(inner, mask, new, old, v)
        for new, old, v in zip(found, given, variables)
      ]
    # An input or a constant cannot be a result of a subgraph.
    found = [inner.op("Identity", name) for name in found]
    more = going(inner, found)
    if is_batch:
      start, more = _any(g, start), _any(inner, more)
    more = inner.op("Identity", more)
    graph = _body(
      inner.nodes, variables, (number, unused, given), (more, found)
    )
    return g.ops("Loop", len(first), "", start, *first, body=graph)

  def _call(self, graph, jaxpr, fixed, variables, given) -> list[str]:
    """Add the operators of a function of a loop's values to a graph."""
    folded = folding.fold_jaxpr(
      jaxpr, [*fixed, *variables], tuple(variables), unroll=True
    )
    values = {v: (name, v.shape) for v, name in zip(variables, given)}
    return _Lowering(graph, self._values | values).run(folded)


def _body(nodes, variables, inputs, outputs):
  """Return the graph of a loop's body."""
  info = onnx_graph.value_info
  declare = lambda names: [
    info(name, v.shape, v.dtype) for name, v in zip(names, variables)
  ]
  (number, unused, given), (more, found) = inputs, outputs
  return onnx.helper.make_graph(
    nodes,
    "body",
    [info(number, (), np.int64), info(unused, (), bool), *declare(given)],
    [info(more, (), bool), *declare(found)],
  )


def _any(g: Graph, mask: str) -> str:
  """Return whether an element of a vector is true."""
  return g.cast(g.op("ReduceMax", g.cast(mask, np.int32), keepdims=0), bool)


def _keep(g: Graph, mask: str, new: str, old: str, variable) -> str:
  """Return the new rows where the mask is true, else the old ones."""
  shape = (variable.shape[0], *[1] * (len(variable.shape) - 1))
  return g.where(g.reshape(mask, shape), new, old, variable.dtype)


def _broadcast_shapes(shapes, step) -> Shape:
  """Return the shape of an elementwise operator's result."""
  result = []
  for axis, full in enumerate(step.outputs[0].shape):
    sizes = [shape[axis] for shape in shapes if shape]
    ones = all(isinstance(n, int) and n == 1 for n in sizes)
    result.append(1 if ones else full)
  return tuple(result)
