"""Stores of rows: every kind returns the values that were written."""

import errno
import os
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.runtime import distributed
from zsad_jax.training import feature_store

COUNT, SIZE = 7, 4
ROW = {
  "patches": jax.ShapeDtypeStruct((3, 2), jnp.float32),
  "half": jax.ShapeDtypeStruct((5,), jnp.bfloat16),
  "label": jax.ShapeDtypeStruct((), jnp.int32),
}


def drawn():
  rng = np.random.default_rng(0)
  return {
    "patches": rng.standard_normal((COUNT, 3, 2)).astype(np.float32),
    "half": np.asarray(rng.standard_normal((COUNT, 5)), jnp.bfloat16),
    "label": rng.integers(9, size=COUNT).astype(np.int32),
  }


def fill(rows, values, numbers=range(COUNT)):
  numbers = list(numbers)
  for first in range(0, len(numbers), SIZE):
    chosen = numbers[first : first + SIZE]
    part = jax.tree.map(lambda x, c=chosen: x[c], values)
    if isinstance(rows, feature_store.Device):
      filled = np.resize(chosen, SIZE)  # The last batch has any padding.
      part = jax.tree.map(lambda x, c=filled: jnp.asarray(x[c]), values)
    rows.write(chosen, part)


def opened(kind, folder):
  if kind == "memory":
    return feature_store.Memory(ROW, COUNT)
  if kind == "disk":
    return feature_store.Disk(ROW, COUNT, folder / "rows")
  return feature_store.Device(ROW, COUNT, distributed.make_mesh(), SIZE)


@pytest.mark.parametrize("kind", ["memory", "disk", "device"])
def test_rows_come_back_in_any_order(kind, tmp_path):
  rows, values = opened(kind, tmp_path), drawn()
  assert rows.missing() == list(range(COUNT))
  fill(rows, values)
  assert rows.missing() == []
  for numbers in (np.array([5, 0, 5, 6]), np.array([[1], [4], [2], [2]])):
    found = rows.read(numbers)
    wanted = jax.tree.map(lambda x, n=numbers: x[n], values)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_disk_is_filled_where_it_was_left(tmp_path):
  values = drawn()
  fill(opened("disk", tmp_path), values, range(SIZE))
  again = opened("disk", tmp_path)
  assert again.missing() == list(range(SIZE, COUNT))
  fill(again, values, again.missing())
  third = opened("disk", tmp_path)
  assert third.missing() == []
  found = third.read(np.arange(COUNT))
  jax.tree.map(np.testing.assert_array_equal, found, values)


def test_a_corrupt_row_is_named(tmp_path):
  rows = opened("disk", tmp_path)
  fill(rows, drawn())
  path = max((tmp_path / "rows").glob("[0-9].npy"), key=os.path.getsize)
  with open(path, "r+b") as f:
    f.seek(-1, os.SEEK_END)
    last = f.read(1)
    f.seek(-1, os.SEEK_END)
    f.write(bytes([last[0] ^ 1]))
  corrupt = opened("disk", tmp_path)
  corrupt.read(np.array([0, 1]))
  with pytest.raises(ValueError, match=f"{path.name}: row 6 is corrupt"):
    corrupt.read(np.array([0, 6]))


def test_a_full_disk_is_an_error_before_anything_is_written(
  tmp_path, monkeypatch
):
  def full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, "posix_fallocate", full)
  with pytest.raises(OSError, match="No room for features: No space left"):
    opened("disk", tmp_path)
  assert not list((tmp_path / "rows").iterdir())


def test_only_one_at_a_time_fills(tmp_path):
  order = []

  def second():
    with feature_store.locked(tmp_path):
      order.append("second")

  thread = threading.Thread(target=second)
  with feature_store.locked(tmp_path):
    thread.start()
    thread.join(0.2)
    order.append("first")
  thread.join()
  assert order == ["first", "second"]
