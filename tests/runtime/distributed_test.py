"""Meshes in process order."""

import dataclasses
import random

import jax
import numpy as np
import pytest

from tests.helpers import device_orders
from zsad_jax.runtime import distributed


@dataclasses.dataclass(frozen=True)
class Device:
  """Device of a process."""

  id: int
  process_index: int


@pytest.mark.parametrize("name", device_orders.read())
def test_the_mesh_is_in_process_order_on_every_slice(name):
  stored = device_orders.read()[name]
  devices = [Device(*pair) for pair in stored["devices"]]
  shuffled = random.Random(0).sample(devices, len(devices))
  mesh = distributed.make_mesh(shuffled)
  processes = [d.process_index for d in mesh.devices]
  assert processes == [i for i in range(max(processes) + 1) for _ in range(4)]
  for i in set(processes):  # Ids ascend within a process.
    ids = [d.id for d in mesh.devices if d.process_index == i]
    assert ids == sorted(ids)
  assert set(mesh.devices) == set(devices)
  assert distributed.row_sharding(mesh).mesh == mesh


@pytest.mark.parametrize(
  "name", ["v5e:4x4", "v5e:4x8", "v5e:8x8", "v6e:4x8", "v5p:2x2x2", "v5p:2x2x4"]
)
def test_another_order_is_refused(name):
  stored = device_orders.read()[name]
  devices = [Device(*stored["devices"][i]) for i in stored["make_mesh"]]
  mesh = jax.sharding.Mesh(np.array(devices), ("data",))
  with pytest.raises(ValueError, match="processes 0, .*: rows would be mixed"):
    distributed.row_sharding(mesh)


def test_processes_with_different_numbers_of_devices_are_refused():
  devices = [Device(0, 0), Device(1, 1), Device(2, 1)]
  with pytest.raises(ValueError, match=r"\(process 0: 1, process 1: 2\)"):
    distributed.make_mesh(devices)
