"""ONNX operators of JAX's products, convolutions and indexing primitives."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from zsad_jax.inference import onnx_graph
from zsad_jax.inference.onnx_graph import Graph, Unsupported
from zsad_jax.inference.onnx_ops import Op, dtype_of


def _dot_general(g: Graph, step, left: str, right: str) -> str:
  """Move batch axes first and multiply matrices."""
  (lc, rc), (lb, rb) = step.params["dimension_numbers"]
  shapes = [x.shape for x in step.inputs]
  dtypes = {dtype_of(x).name for x in (*step.inputs, *step.outputs)}
  if dtypes != {"float32"}:
    raise Unsupported(f"products of the types {', '.join(sorted(dtypes))}")
  lf = [i for i in range(len(shapes[0])) if i not in (*lc, *lb)]
  rf = [i for i in range(len(shapes[1])) if i not in (*rc, *rb)]
  of = lambda k, axes: [shapes[k][i] for i in axes]
  batch = of(0, lb)
  left = g.transpose(left, [*lb, *lf, *lc])
  right = g.transpose(right, [*rb, *rc, *rf])
  # Axes that are not first are multiplied without being joined.
  if len(lc) != 1 or (batch and len(lf) != 1) or not lf:
    rows = onnx_graph.product(of(0, lf))
    inner = onnx_graph.product(of(0, lc))
    left = g.reshape(left, (*batch, rows, inner))
  if len(rc) != 1 or len(rf) != 1:
    inner = onnx_graph.product(of(1, rc))
    columns = onnx_graph.product(of(1, rf))
    right = g.reshape(right, (*batch, inner, columns))
  found = g.op("MatMul", left, right)
  plain = len(rf) == 1 and (len(lf) == 1 if batch or len(lc) != 1 else lf)
  return found if plain else g.reshape(found, step.outputs[0].shape)


def _conv(g: Graph, step, x: str, kernel: str) -> str:
  """Convolve with channels first, and restore the order of the axes."""
  params = step.params
  numbers = params["dimension_numbers"]
  if any(n != 1 for n in params["lhs_dilation"]):
    raise Unsupported("a transposed convolution")
  if params["batch_group_count"] != 1:
    raise Unsupported("a convolution with groups of the batch")
  x = g.transpose(x, numbers.lhs_spec)
  kernel = g.transpose(kernel, numbers.rhs_spec)
  low, high = zip(*params["padding"])
  if min(*low, *high) < 0:
    raise Unsupported("a convolution with negative padding")
  found = g.op(
    "Conv",
    x,
    kernel,
    strides=list(params["window_strides"]),
    pads=[*low, *high],
    dilations=list(params["rhs_dilation"]),
    group=params["feature_group_count"],
  )
  return g.transpose(found, np.argsort(numbers.out_spec).tolist())


def _window_sum(g: Graph, step, x: str) -> str:
  """Add shifted parts, one axis after the other.

  Not by a product with ones and zeros: elements may be infinite.
  """
  params = step.params
  rank = len(step.inputs[0].shape)
  for name in ("window_strides", "base_dilation", "window_dilation"):
    if any(n != 1 for n in params[name]):
      raise Unsupported(f"sums of windows with {name}")
  pads = [p for side in zip(*params["padding"]) for p in side]
  if any(pads):
    zero = g.constant(np.zeros((), dtype_of(step.inputs[0])))
    x = g.op("Pad", x, g.ints(pads), zero)
  for axis in range(rank):
    size = params["window_dimensions"][axis]
    if size == 1:
      continue
    total = step.outputs[0].shape[axis]
    parts = [g.slice(x, axis, i, i + total) for i in range(size)]
    x = g.op("Sum", *parts)
  return x


def _gather(g: Graph, step, x: str, index: str) -> str:
  """Take elements or rows by index; see `jax.lax.gather`."""
  start = g.known(index)
  if start is not None and start.ndim == 1:
    return _part(g, step, x, start)
  operand, indices = step.inputs
  d, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
  batching = list(d.operand_batching_dims)
  index, taken = _taken(g, step, index)
  rest = [i for i in range(len(operand.shape)) if i not in (*batching, *taken)]
  if not all(_is_size(sizes[i], operand.shape[i]) for i in rest):
    raise Unsupported("a gather of parts of rows")
  if any(sizes[i] != 1 for i in taken):
    raise Unsupported("a gather of several elements for an index")
  _check_static([operand.shape[i] for i in taken])
  limits = [operand.shape[i] - 1 for i in taken]
  index, inside = _in_range(g, step, index, limits)
  x = g.transpose(x, [*batching, *taken, *rest])
  # Batch axes of the indices first, in the order of the operand's.
  axes = len(indices.shape) - 1
  first = list(d.start_indices_batching_dims)
  order = [*first, *(i for i in range(axes) if i not in first)]
  index = g.transpose(index, [*order, axes])
  found = g.op("GatherND", x, index, batch_dims=len(batching))
  # Where each axis is in the result; axes of size 1 are added by reshape.
  shape = step.outputs[0].shape
  outer = [i for i in range(len(shape)) if i not in d.offset_dims]
  gone = (*d.collapsed_slice_dims, *batching)
  inner = [i for i in range(len(operand.shape)) if i not in gone]
  place = dict(zip(inner, d.offset_dims, strict=True))
  now = [outer[i] for i in order] + [place[i] for i in rest]
  found = g.transpose(found, np.argsort(now).tolist())
  if len(now) < len(shape):
    found = g.reshape(found, shape)
  if inside is None:
    return found
  flags = dict(zip(outer, indices.shape))
  wide = tuple(flags.get(i, 1) for i in range(len(shape)))
  fill = g.constant(_fill(step))
  return g.where(g.reshape(inside, wide), found, fill, step.outputs[0].dtype)


def _taken(g: Graph, step, index: str) -> tuple[str, list[int]]:
  """Return the indices and their axes without those of whole axes."""
  d, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
  shape, axes = step.inputs[0].shape, list(map(int, d.start_index_map))
  keep = [
    k
    for k, axis in enumerate(axes)
    if axis in d.collapsed_slice_dims or not _is_size(sizes[axis], shape[axis])
  ]
  if len(keep) == len(axes):
    return index, axes
  # A slice of all elements begins at 0, whatever its index is.
  if "FILL" in str(step.params["mode"]) or not keep:
    raise Unsupported("a gather of whole axes")
  return g.op("Gather", index, g.ints(keep), axis=-1), [axes[k] for k in keep]


def _part(g: Graph, step, x: str, start: np.ndarray) -> str:
  """Return one part of a value that begins at constant positions."""
  d, sizes = step.params["dimension_numbers"], step.params["slice_sizes"]
  shape = step.inputs[0].shape
  _check_static([shape[axis] for axis in d.start_index_map])
  for axis, first in zip(d.start_index_map, start.tolist()):
    if not 0 <= first <= shape[axis] - sizes[axis]:
      raise Unsupported("a gather out of range")
    if not _is_size(sizes[axis], shape[axis]):
      x = g.slice(x, int(axis), first, first + int(sizes[axis]))
  return g.reshape(x, step.outputs[0].shape)


def _check_static(sizes) -> None:
  """Refuse an index of the batch axis: an image depends on itself only."""
  if not onnx_graph.is_static(sizes):
    raise Unsupported("a gather along the batch")


def _is_size(size, full) -> bool:
  return bool(size == full)


def _fill(step):
  """Return the value of elements whose index is out of range."""
  value, dtype = step.params["fill_value"], np.dtype(step.outputs[0].dtype)
  if value is None:
    value = {"f": np.nan, "b": True}.get(dtype.kind)
    if value is None:
      info = np.iinfo(dtype)
      value = info.min if dtype.kind == "i" else info.max
  return np.array(value, dtype)


def _in_range(
  g: Graph, step, index: str, limits: Sequence[int]
) -> tuple[str, str | None]:
  """Return indices that are in range, and whether they were.

  The second result is None where that is not needed.
  """
  known, mode = g.known(index), str(step.params["mode"])
  high = np.array(limits, np.int64)
  if known is not None:
    inside = ((known >= 0) & (known <= high)).all(-1)
    if inside.all():
      return g.constant(known.astype(np.int64)), None
  wide = g.cast(index, np.int64)
  safe = g.op("Min", g.op("Max", wide, g.ints([0])), g.constant(high))
  if "FILL" not in mode:
    return safe, None
  equal = g.cast(g.op("Equal", safe, wide), np.int32)
  every = g.op("ReduceMin", equal, g.ints([-1]), keepdims=0)
  return safe, g.cast(every, bool)


def _scatter(g: Graph, step, x: str, index: str, update: str) -> str:
  """Replace one row, whose index is the same for the whole batch."""
  operand, indices, _ = step.inputs
  d = step.params["dimension_numbers"]
  axes = list(d.scatter_dims_to_operand_dims)
  one = indices.shape == (1,) and len(axes) == 1
  if not one or tuple(d.inserted_window_dims) != tuple(axes):
    raise Unsupported("a scatter to several rows")
  (axis,) = axes
  shape = tuple(1 if i == axis else n for i, n in enumerate(operand.shape))
  update = g.reshape(update, shape)
  numbers = np.arange(operand.shape[axis], dtype=dtype_of(indices))
  position = [-1 if i == axis else 1 for i in range(len(shape))]
  chosen = g.op("Equal", g.constant(numbers.reshape(position)), index)
  return g.where(chosen, update, x, operand.dtype)


def _dynamic_slice(g: Graph, step, x: str, *starts: str) -> str:
  """Return a part of a fixed size that begins anywhere."""
  sizes, shape = step.params["slice_sizes"], step.inputs[0].shape
  for axis, (name, size) in enumerate(zip(starts, sizes)):
    if _is_size(size, shape[axis]):
      continue
    if not isinstance(shape[axis], int):
      raise Unsupported("a dynamic slice along the batch")
    wide = g.reshape(g.cast(name, np.int64), (1,))
    last = g.ints([shape[axis] - size])
    start = g.op("Min", g.op("Max", wide, g.ints([0])), last)
    stop = g.op("Add", start, g.ints([size]))
    x = g.op("Slice", x, start, stop, g.ints([axis]))
  return x


OTHERS: dict[str, Op] = {
  "conv_general_dilated": _conv,
  "dot_general": _dot_general,
  "dynamic_slice": _dynamic_slice,
  "gather": _gather,
  "reduce_window_sum": _window_sum,
  "scatter": _scatter,
}


def broadcast(g: Graph, step: Any, x: str) -> tuple[str, tuple[Any, ...]]:
  """Insert axes of size 1 for `broadcast_in_dim`.

  Returns:
    The name of the result and its shape, of which axes of size 1 are not
    repeated yet.
  """
  axes, operand = step.params["broadcast_dimensions"], step.inputs[0]
  shape: list[Any] = [1] * len(step.outputs[0].shape)
  for size, axis in zip(np.shape(operand) or operand.shape, axes):
    shape[axis] = size
  return g.reshape(x, tuple(shape)), tuple(shape)
