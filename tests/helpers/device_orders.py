"""Orders of the devices of TPU slices, and imitations of them.

The orders are those of libtpu's topologies. They are stored in
tests/goldens/device_orders.json, which this prints:

JAX_PLATFORMS=cpu python -m tests.helpers.device_orders
"""

import functools
import json
import os
import pathlib
import sys

import jax
import numpy as np

VARIABLE = "TEST_DEVICE_ORDER"  # Of the environment, see `imitate`.
FILE = pathlib.Path(__file__).parents[1] / "goldens" / "device_orders.json"
TOPOLOGIES = {  # Name and number of slices.
  "v5e:2x4": ("v5e:2x4", 1),
  "v5e:4x4": ("v5e:4x4", 1),
  "v5e:4x8": ("v5e:4x8", 1),
  "v5e:8x8": ("v5e:8x8", 1),
  "v6e:4x8": ("v6e:4x8", 1),
  "v5p:2x2x2": ("v5p:2x2x2", 1),
  "v5p:2x2x4": ("v5p:2x2x4", 1),
  "2 x v5p:2x2x1": ("v5p:2x2x1", 2),
  "2 x v5e:4x4": ("v5e:4x4", 2),
}


def read() -> dict:
  """Return the stored orders by the name of the slice.

  "devices" holds the id and the process of each device, in the order of
  `jax.devices()`; "make_mesh" the positions in it along the axis of
  `jax.make_mesh`, or the name of the exception that it raises.
  """
  return json.loads(FILE.read_text())


def describe() -> dict:
  """Return the orders of libtpu's topologies; see `read`."""
  from jax.experimental import topologies

  found = {}
  for key, (name, slices) in TOPOLOGIES.items():
    more = {"num_slices": slices} if slices > 1 else {}
    described = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **more
    )
    devices = list(described.devices)
    try:
      mesh = jax.make_mesh((len(devices),), ("data",), devices=devices)
      order = [devices.index(d) for d in mesh.devices.flat]
    except AssertionError as error:
      order = type(error).__name__
    pairs = [[d.id, d.process_index] for d in devices]
    found[key] = {"devices": pairs, "make_mesh": order}
  return found


def two_processes(order: str) -> list[int] | None:
  """Return a slice's order of the processes, of its first two alone.

  Each of them has four devices. None where `jax.make_mesh` fails.
  """
  found = read()[order]
  if isinstance(found["make_mesh"], str):
    return None
  processes = [found["devices"][i][1] for i in found["make_mesh"]]
  first = list(dict.fromkeys(processes))[:2]
  return [first.index(p) for p in processes if p in first]


def imitate(order: str | None = None) -> None:
  """Give the devices of two processes the order that they have in a slice.

  `jax.make_mesh` returns that order, or fails. The package, but not JAX, which
  relies on the order of `jax.devices()`, also gets the devices in that order.
  A single process keeps its order. Devices are asked for at the first use.

  Args:
    order: name of a slice; by default that in the environment, if any.
  """
  order = order or os.environ.get(VARIABLE, "")
  if not order:
    return
  processes, in_default_order = two_processes(order), jax.devices

  @functools.cache
  def ordered():
    if jax.process_count() == 1:
      return in_default_order()
    waiting = {}
    for device in in_default_order():
      waiting.setdefault(device.process_index, []).append(device)
    # Where make_mesh fails the processes alternate.
    return [waiting[p].pop() for p in processes or [0, 1] * 4]

  def make_mesh(shape, names, *, axis_types=None):
    assert shape == (len(ordered()),) and processes, "several slices"
    return jax.sharding.Mesh(np.array(ordered()), names, axis_types=axis_types)

  def devices(*arguments):
    caller = sys._getframe(1).f_globals["__name__"]
    ours = caller.startswith("zsad_jax") and not arguments
    return list(ordered()) if ours else in_default_order(*arguments)

  jax.make_mesh, jax.devices = make_mesh, devices


if __name__ == "__main__":
  lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in describe().items()]
  print("{\n" + ",\n".join(lines) + "\n}")
