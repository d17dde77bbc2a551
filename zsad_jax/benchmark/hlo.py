"""Facts of a compiled program: memory, operations between devices."""

import collections
import math
import re
from typing import Any

import jax

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)
_BITS = re.compile(r"[a-z]+(\d+)")
_OPERATION = re.compile(
  r"^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z\-]+)\(", re.M
)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


def collectives(text: str) -> dict[str, dict[str, int]]:
  """Count the operations between devices in a compiled program.

  An operation in a loop counts once.

  Args:
    text: the program of one device, `compiled.as_text()`.

  Returns:
    "number" and "bytes", those of the results on one device, by operation.
  """
  found = collections.defaultdict(lambda: {"number": 0, "bytes": 0})
  for shape, name in _OPERATION.findall(text):
    # The end of an asynchronous operation has its result alone.
    kind = name.removesuffix("-done")
    if kind in COLLECTIVES:
      found[kind]["number"] += 1
      found[kind]["bytes"] += num_bytes(shape)
  return dict(found)


def num_bytes(shape: str) -> int:
  """Return the bytes of a shape, such as "(f32[2,3]{1,0}, s32[])"."""
  total = 0
  for dtype, sides in _ARRAY.findall(shape):
    bits = _BITS.match(dtype)
    size = int(bits[1]) if bits else 8  # "pred" has a byte.
    number = math.prod(int(side) for side in sides.split(",") if side)
    total += number * max(size // 8, 1)
  return total


def memory(compiled: Any) -> dict[str, int]:
  """Return the bytes of a program's memory on one device.

  Args:
    compiled: a `jax.stages.Compiled`.

  Returns:
    "arguments", "outputs" without those that replace arguments, "temporaries",
    and "peak", the largest sum in use at any time.
  """
  found = compiled.memory_analysis()
  return {
    "arguments": found.argument_size_in_bytes,
    "outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
    "temporaries": found.temp_size_in_bytes,
    "peak": found.peak_memory_in_bytes,
  }


def cost(compiled: Any) -> tuple[float, float]:
  """Return the FLOPs and the bytes of a program on one device.

  They are those of XLA's analysis, in which a loop counts once; zeros where
  the compiler has none, as for CUDA.
  """
  found = compiled.cost_analysis()
  found = found[0] if isinstance(found, list) else found
  found = found or {}
  return found.get("flops", 0.0), found.get("bytes accessed", 0.0)


def split_bytes(arguments: Any) -> int:
  """Return the bytes on one device of arguments that the devices share out.

  Args:
    arguments: tree of `jax.ShapeDtypeStruct` with shardings.
  """
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(arguments)
    if not x.sharding.is_fully_replicated
  )
