"""Stores of rows: every kind returns the values that were written."""

import errno
import json
import os
import pathlib
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.runtime import distributed
from zsad_jax.training import feature_store, tiles

ROOT = pathlib.Path(__file__).parents[2]
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


def on_eight_devices(*arguments):
  """Return what tests.helpers.store_programs prints on simulated devices."""
  flags = "--xla_force_host_platform_device_count=8"
  flags += " --xla_backend_optimization_level=0"
  done = subprocess.run(
    [sys.executable, "-m", "tests.helpers.store_programs", *arguments],
    cwd=ROOT,
    env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


@pytest.fixture(scope="module")
def programs():
  found = on_eight_devices()
  assert found["devices"] == 8
  return found


def test_devices_return_the_bits_of_any_rows_in_any_order(programs):
  assert np.all([all(x) for x in programs["equal"]])


@pytest.mark.slow
def test_devices_return_the_bits_of_random_rows():
  equal = on_eight_devices("12")["equal"]
  assert len(equal) == 13 and all(all(x) for x in equal)


@pytest.mark.parametrize(
  "name, rows", [("write", 16), ("read", 16), ("references", 32)]
)
def test_devices_exchange_the_rows_of_a_batch_once(name, rows, programs):
  found = programs[name]["collectives"]
  exchanged = [size for kind, size in found if kind == "all-to-all"]
  assert len(exchanged) == 3  # Items of 4, 2 and 1 bytes.
  capacity = 208  # Rows in 13 batches.
  assert sum(exchanged) == programs["num_bytes"] * rows // capacity
  others = [size for kind, size in found if kind != "all-to-all"]
  numbers = [] if name == "write" else [4 * rows]  # All-gather of int32.
  assert others == numbers


@pytest.mark.parametrize(
  "name, rows", [("write", 16), ("read", 16), ("references", 32)]
)
def test_devices_do_not_copy_the_store(name, rows, programs):
  found, stored = programs[name], programs["num_bytes"]
  assert found["temporaries"] <= 2 * stored * rows // 208
  assert found["temporaries"] <= stored / 4
  assert found["alias"] == (stored if name == "write" else 0)


@pytest.mark.parametrize("devices", [1, 3, 64])
def test_tiles_are_the_items_and_little_padding(devices):
  shape = jax.ShapeDtypeStruct
  row = [shape((4, 1369, 768), jnp.bfloat16), shape((768,), jnp.float32)]
  layout = tiles.Tiles(row, devices)
  sizes = {k: 2048 if k == "uint16" else 1024 for k in layout.shapes}
  items = {k: x[0] * x[1] * x[2] for k, x in layout.shapes.items()}
  assert all(x[0] % devices == 0 for x in layout.shapes.values())
  real = {"uint16": 4 * 1369 * 768, "uint32": 768}
  for bits, size in sizes.items():
    padding = items[bits] - real[bits]
    assert 0 <= padding < 0.006 * real[bits] + (devices + 1) * size
