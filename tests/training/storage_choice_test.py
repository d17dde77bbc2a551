"""Choice of a storage: the nearest one with room, the same everywhere."""

import jax
import jax.numpy as jnp
import pytest

from zsad_jax.runtime import distributed
from zsad_jax.training import feature_store, storage_choice

ROW = {"patches": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
COUNT, SIZE = 8, 4
READS = [(4,), (4, 2)]  # 4 + 8 rows are in memory together.
ROW_BYTES = 4 * 64 * 128


class Device:
  """A device of a given free memory."""

  def __init__(self, free):
    self.free = free

  def memory_stats(self):
    return {"bytes_limit": self.free + 7, "bytes_in_use": 7}


def choose(monkeypatch, frees, host, others=()):
  """Return the choice for devices and a host of some free memory."""
  devices = [Device(free) for free in frees]
  on_devices = feature_store.Device(ROW, COUNT, distributed.make_mesh(), SIZE)
  monkeypatch.setattr(jax, "local_devices", lambda: devices)
  monkeypatch.setattr(distributed, "free_memory", lambda: host)
  gather = lambda value: [value, *others]
  monkeypatch.setattr(distributed, "all_gather_object", gather)
  num_bytes = COUNT * ROW_BYTES
  return storage_choice.nearest_storage(num_bytes, on_devices, READS)


@pytest.mark.parametrize(
  "rows, host, storage",
  [
    (2 * (COUNT + 12) - 1, 1000, "host"),  # Stored rows fit, those read not.
    (2 * (COUNT + 3 * 12), 1000, "device"),
    (2 * COUNT - 1, 1000, "host"),
    (2 * COUNT - 1, 2 * COUNT - 1, "disk"),
  ],
)
def test_auto_is_the_nearest_storage_with_room(
  rows, host, storage, monkeypatch
):
  frees = [1000 * ROW_BYTES, rows * ROW_BYTES]  # The fullest one decides.
  assert choose(monkeypatch, frees, host * ROW_BYTES) == storage


def test_all_processes_choose_what_fits_in_each(monkeypatch):
  frees, host = [1000 * ROW_BYTES], 1000 * ROW_BYTES
  assert choose(monkeypatch, frees, host) == "device"
  little = COUNT * ROW_BYTES
  assert choose(monkeypatch, frees, host, others=[little]) == "host"


def test_the_host_is_the_memory_of_simulated_devices(monkeypatch):
  monkeypatch.setattr(Device, "memory_stats", lambda self: None)
  assert choose(monkeypatch, [0], 2 * COUNT * ROW_BYTES) == "host"
  assert choose(monkeypatch, [0], COUNT * ROW_BYTES) == "disk"
  # Several processes have no memory in common but that of all devices.
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  assert choose(monkeypatch, [0], 1000 * ROW_BYTES) == "device"
