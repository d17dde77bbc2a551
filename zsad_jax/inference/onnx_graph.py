"""Graph of ONNX operators, which is built one operator at a time.

Constants are arrays until the graph is complete: an operator on a constant,
such as a transposition of weights, is computed here, and constants that no
operator uses are left out. Equal constants are one, and so are equal operators
on the same inputs, such as both passes through the vision tower of a method
with a memory bank.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]

# Operator set of ONNX 1.13, which onnxruntime 1.14 and later run.
OPSET = 18
IR_VERSION = 8

Size = Any  # An int, or a multiple of the symbolic batch size.
Shape = tuple[Size, ...]


class Unsupported(Exception):
  """An operation of the program cannot be converted; the message names it."""


class Graph:
  """Operators and constants; names are unique in it and its subgraphs.

  Attributes:
    nodes: the operators, in order.
  """

  def __init__(self, batch: Size, outer: "Graph | None" = None) -> None:
    """Begin a graph.

    Args:
      batch: symbol of the batch size.
      outer: graph that contains this one, whose values it may use.
    """
    self.nodes: list[Any] = []
    self._results: dict[Any, list[str]] = {}  # Of operators.
    self._batch = batch
    self._root = outer._root if outer else self
    if outer is None:
      self._arrays: dict[str, np.ndarray] = {}
      self._of_content: dict[Any, str] = {}
      # By id, with the object: an id may be used again after its end.
      self._of_object: dict[int, tuple[Any, str]] = {}
      self._count = 0
      self._batch_name = ""

  def subgraph(self) -> "Graph":
    """Return an empty graph that is part of an operator of this one."""
    return Graph(self._batch, self)

  def new_name(self) -> str:
    """Return a name that no value has."""
    self._root._count += 1
    return f"v{self._root._count}"

  def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
    """Add an operator with one result and return the result's name."""
    return self.ops(kind, 1, *inputs, **attributes)[0]

  def ops(
    self, kind: str, count: int, *inputs: str, **attributes: Any
  ) -> list[str]:
    """Add an operator with `count` results and return their names."""
    key = kind, count, inputs, repr(sorted(attributes.items()))
    if key in self._results and "body" not in attributes:
      return self._results[key]
    names = [self.new_name() for _ in range(count)]
    node = onnx.helper.make_node(kind, list(inputs), names, **attributes)
    self.nodes.append(node)
    self._results[key] = names
    return names

  def constant(self, value: Any) -> str:
    """Return the name of a constant."""
    root = self._root
    if id(value) in root._of_object:
      return root._of_object[id(value)][1]
    array = np.asarray(value)
    digest = hashlib.sha256(np.ascontiguousarray(array).data).digest()
    key = array.dtype.str, array.shape, digest
    if key not in root._of_content:
      root._of_content[key] = self.new_name()
      root._arrays[root._of_content[key]] = array
    name = root._of_content[key]
    root._of_object[id(value)] = value, name
    return name

  def ints(self, values: Sequence[Any]) -> str:
    """Return the name of a constant vector of integers."""
    return self.constant(np.array(values, np.int64).reshape(-1))

  def known(self, name: str) -> np.ndarray | None:
    """Return the value of a constant; None for results of operators."""
    return self._root._arrays.get(name)

  def set_batch(self, image: str) -> None:
    """Read the batch size from the first axis of an input."""
    shape = self.op("Shape", image)
    self._batch_name = self.op("Slice", shape, self.ints([0]), self.ints([1]))

  def sizes(self, shape: Sequence[Size]) -> str:
    """Return the name of a vector with the sizes of a shape."""
    shape = plain(shape)
    if is_static(shape):
      return self.ints(shape)
    parts = [self._size(size) for size in shape]
    return self.op("Concat", *parts, axis=0) if parts[1:] else parts[0]

  def _size(self, size):
    if isinstance(size, int):
      return self.ints([size])
    factor = size // self._batch
    if factor * self._batch != size:
      raise Unsupported(f"a size of {size} for a batch of {self._batch}")
    name = self._root._batch_name
    return name if factor == 1 else self.op("Mul", name, self.ints([factor]))

  def reshape(self, name: str, shape: Sequence[Size]) -> str:
    """Reshape a value."""
    shape = plain(shape)
    array = self.known(name)
    if array is not None and is_static(shape):
      return self.constant(array.reshape(shape))
    symbolic = [size for size in shape if not isinstance(size, int)]
    if len(symbolic) == 1 and 0 not in shape:
      fixed = [size if isinstance(size, int) else -1 for size in shape]
      return self.op("Reshape", name, self.ints(fixed))
    # Otherwise ONNX takes a size of 0 as that of the input.
    empty = int(0 in shape)
    return self.op("Reshape", name, self.sizes(shape), allowzero=empty)

  def transpose(self, name: str, axes: Sequence[int]) -> str:
    """Permute the axes of a value."""
    axes = list(axes)
    if axes == sorted(axes):
      return name
    array = self.known(name)
    if array is not None:
      return self.constant(array.transpose(axes))
    return self.op("Transpose", name, perm=axes)

  def cast(self, name: str, dtype: Any) -> str:
    """Convert a value to another type of elements."""
    array = self.known(name)
    if array is not None:
      return self.constant(array.astype(dtype))
    return self.op("Cast", name, to=element_type(dtype))

  def slice(
    self, name: str, axis: int, start: int, stop: int, step: int = 1
  ) -> str:
    """Return a part of one axis of a value."""
    array = self.known(name)
    if array is not None:
      index = [slice(None)] * array.ndim
      index[axis] = slice(start, stop, step)
      return self.constant(np.ascontiguousarray(array[tuple(index)]))
    ints = self.ints
    return self.op(
      "Slice", name, ints([start]), ints([stop]), ints([axis]), ints([step])
    )

  def where(self, mask: str, yes: str, no: str, dtype: Any) -> str:
    """Select elements; runtimes do so for numbers only."""
    if np.dtype(dtype) != bool:
      return self.op("Where", mask, yes, no)
    chosen = self.op("And", mask, yes)
    return self.op("Or", chosen, self.op("And", self.op("Not", mask), no))

  def initializers(self) -> dict[str, np.ndarray]:
    """Return the constants that operators use, by name."""
    used = set(_inputs(self.nodes))
    return {k: v for k, v in self._root._arrays.items() if k in used}


def _inputs(nodes):
  """Yield the names of all inputs of nodes and of their subgraphs."""
  for node in nodes:
    yield from node.input
    for attribute in node.attribute:
      if attribute.HasField("g"):
        yield from _inputs(attribute.g.node)
        yield from (each.name for each in attribute.g.output)


def plain(shape: Sequence[Size]) -> Shape:
  """Return a shape whose sizes are of Python's type, or symbolic."""
  return tuple(int(n) if isinstance(n, np.integer) else n for n in shape)


def is_static(shape: Sequence[Size]) -> bool:
  """Return whether no size of a shape is symbolic."""
  return all(isinstance(size, (int, np.integer)) for size in shape)


def product(sizes: Sequence[Size]) -> Size:
  """Return the product of sizes, at most one of which is symbolic."""
  return math.prod(sizes)


def element_type(dtype: Any) -> int:
  """Return ONNX's number of a type of elements.

  Raises:
    Unsupported: runtimes compute little or nothing with this type.
  """
  name = np.dtype(dtype).name
  if name not in ("bool", "uint8", "int32", "int64", "float32", "uint32"):
    raise Unsupported(f"numbers of the type {name}")
  return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def value_info(name: str, shape: Shape, dtype: Any) -> Any:
  """Return the declaration of an input or output."""
  sizes = [s if isinstance(s, int) else str(s) for s in plain(shape)]
  return onnx.helper.make_tensor_value_info(name, element_type(dtype), sizes)
