"""Values of JSON types and NumPy arrays as bytes, for other processes.

The bytes are data only: reading them runs no code. They are the length of a
header (8 bytes, little-endian), the header in JSON, and the arrays one after
the other. The header is {"value": ..., "arrays": [[dtype, shape], ...]}; in the
value, an array is {"array": number} and an object {"object": {...}}.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_LENGTH = 8  # Bytes of the header's length.
_KINDS = "biuf"  # Of NumPy: truth values, integers, floating-point numbers.


def pack(value: Any) -> bytes:
  """Return a value as bytes.

  Args:
    value: None, truth values, numbers, text and NumPy arrays of numbers, in
      lists, tuples and dicts with text as keys.

  Raises:
    TypeError: a part of the value is of another type.
  """
  arrays: list[np.ndarray] = []
  encoded = _encode(value, arrays)
  kinds = [[x.dtype.str, list(x.shape)] for x in arrays]
  header = json.dumps({"value": encoded, "arrays": kinds}).encode()
  parts = [len(header).to_bytes(_LENGTH, "little"), header]
  return b"".join(parts + [x.tobytes() for x in arrays])


def unpack(data: bytes) -> Any:
  """Return the value of `pack`; tuples are lists, arrays are read-only.

  Raises:
    ValueError: the bytes are none of `pack`.
  """
  try:
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    header = json.loads(data[_LENGTH:end])
    arrays, start = [], end
    for dtype, shape in header["arrays"]:
      x = _array(data, start, dtype, shape)
      arrays.append(x)
      start += x.nbytes
    if start != len(data):
      raise ValueError(f"{len(data)} bytes, expected {start}")
    return _decode(header["value"], arrays)
  except (IndexError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"Another process sent something else than a packed value: {error}."
    ) from error


def _array(data, start, dtype, shape):
  """Return the array at a position of the bytes."""
  kind = np.dtype(str(dtype))
  if kind.kind not in _KINDS:
    raise ValueError(f"arrays of {kind}")
  if not all(type(n) is int and n >= 0 for n in shape):
    raise ValueError(f"the shape {shape}")
  count = math.prod(shape)
  return np.frombuffer(data, kind, count, start).reshape(shape)


def _encode(value: Any, arrays: list[np.ndarray]) -> Any:
  """Return a value of JSON types; its arrays are appended to a list."""
  if isinstance(value, np.ndarray):
    if value.dtype.kind not in _KINDS:
      raise TypeError(f"Arrays of {value.dtype} are not sent, only numbers.")
    arrays.append(value)
    return {"array": len(arrays) - 1}
  if isinstance(value, np.generic):
    value = value.item()
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  if isinstance(value, Sequence) and not isinstance(value, bytes):
    return [_encode(x, arrays) for x in value]
  if isinstance(value, dict) and all(isinstance(key, str) for key in value):
    return {"object": {k: _encode(x, arrays) for k, x in value.items()}}
  raise TypeError(
    f"A {type(value).__name__} is not sent to other processes, only values of "
    "JSON types and arrays of numbers."
  )


def _decode(value: Any, arrays: list[np.ndarray]) -> Any:
  """Return the value that `_encode` was given."""
  if isinstance(value, list):
    return [_decode(x, arrays) for x in value]
  if isinstance(value, dict):
    ((kind, content),) = value.items()
    if kind == "array":
      return arrays[content]
    return {name: _decode(x, arrays) for name, x in content.items()}
  return value
