"""Values that processes send to each other."""

import json
import math
import pickle
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from zsad_jax.runtime import distributed, packing

DTYPES = st.sampled_from(
  "bool int8 int32 int64 uint8 float16 float32 float64".split()
)
ARRAYS = DTYPES.flatmap(
  lambda dtype: arrays.arrays(
    np.dtype(dtype), arrays.array_shapes(min_dims=0, min_side=0, max_side=3)
  )
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
  LEAVES | ARRAYS,
  lambda part: (
    st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3)
  ),
  max_leaves=8,
)


def check_equal(found, expected):
  assert type(found) is type(expected)
  if isinstance(expected, np.ndarray):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()
  elif isinstance(expected, list):
    assert len(found) == len(expected)
    for x, y in zip(found, expected):
      check_equal(x, y)
  elif isinstance(expected, dict):
    assert [*found] == [*expected]
    check_equal([*found.values()], [*expected.values()])
  elif isinstance(expected, float) and math.isnan(expected):
    assert math.isnan(found)
  else:
    assert found == expected


@given(VALUES)
@settings(max_examples=50, deadline=None)
def test_values_are_sent_unchanged(value):
  check_equal(packing.unpack(packing.pack(value)), value)


@given(VALUES, st.data())
@settings(max_examples=50, deadline=None)
def test_changed_bytes_are_a_value_or_a_value_error(value, data):
  sent = bytearray(packing.pack(value))
  for _ in range(data.draw(st.integers(1, 3))):
    sent[data.draw(st.integers(0, len(sent) - 1))] = data.draw(
      st.integers(0, 255)
    )
  sent = bytes(sent[: data.draw(st.integers(0, len(sent)))])
  try:
    packing.unpack(sent)
  except ValueError:
    pass


@pytest.mark.parametrize(
  "value",
  [
    np.array([None]),
    np.array(["a"]),
    {1: 2},
    b"bytes",
    {3},
    types.SimpleNamespace(a=1),
    [lambda: 0],
  ],
)
def test_other_types_are_refused(value):
  with pytest.raises(TypeError, match="not sent"):
    packing.pack(value)


def test_no_code_is_run(tmp_path):
  witness = tmp_path / "witness"

  class Command:
    def __reduce__(self):
      return witness.touch, ()

  header = {"value": {"array": 0}, "arrays": [["|O", [1]]]}
  text = json.dumps(header).encode()
  for data in (
    pickle.dumps(Command()),
    len(text).to_bytes(8, "little") + text + bytes(8),
  ):
    with pytest.raises(ValueError, match="Another process sent"):
      packing.unpack(data)
  assert not witness.exists()


def test_processes_gather_values_of_different_lengths(monkeypatch):
  values = ["a", {"x": np.arange(300)}, [None, 1.5]]
  data = [np.frombuffer(packing.pack(v), np.uint8) for v in values]

  def gather(array):
    if array.dtype == np.uint32:
      return np.array([len(x) for x in data], array.dtype)
    assert array.dtype == np.uint8 and array.shape[0] == 1
    return np.stack([np.pad(x, (0, array.shape[1] - len(x))) for x in data])

  monkeypatch.setattr(distributed.jax, "process_count", lambda: 3)
  monkeypatch.setattr(distributed, "all_gather", gather)
  found = distributed.all_gather_object(values[1])
  check_equal(found, values)
