"""Programs and values of the store on devices, as JSON.

python -m tests.helpers.store_programs [NUMBER OF RANDOM ROWS]
XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates eight devices.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import hlo
from zsad_jax.runtime import distributed
from zsad_jax.training import feature_store

COUNT, SIZE = 203, 16
ROW = {
  "patches": jax.ShapeDtypeStruct((2, 33, 150), jnp.float32),
  "half": jax.ShapeDtypeStruct((70, 5), jnp.bfloat16),
  "pixels": jax.ShapeDtypeStruct((20, 20, 3), jnp.uint8),
  "unit": jax.ShapeDtypeStruct((130,), jnp.float32),
  "label": jax.ShapeDtypeStruct((), jnp.int32),
  "flag": jax.ShapeDtypeStruct((3,), bool),
}


def drawn(row, count, seed):
  """Return rows of random bits: also NaN of every payload, and -0.0."""
  rng = np.random.default_rng(seed)

  def draw(x):
    if x.dtype == bool:
      return rng.random((count, *x.shape)) < 0.5
    size = count * x.size * x.dtype.itemsize
    values = np.frombuffer(rng.bytes(size), x.dtype)
    return values.reshape(count, *x.shape)

  return jax.tree.map(draw, row)


def draw_row(rng):
  """Return a row of random leaves."""
  dtypes = [np.float32, jnp.bfloat16, np.float16, np.int32, np.uint8, bool]
  return [
    jax.ShapeDtypeStruct(
      tuple(rng.integers(1, 40, size=rng.integers(4)).tolist()),
      np.dtype(dtypes[rng.integers(len(dtypes))]),
    )
    for _ in range(rng.integers(1, 5))
  ]


def same_bits(row, count, batch_size, mesh, rng, shapes):
  """Return whether a filled store gives the rows of random numbers."""
  store = feature_store.Device(row, count, mesh, batch_size)
  values = drawn(row, count, seed=rng.integers(1000))
  fill(store, values, count, batch_size, mesh)
  draws = [rng.integers(-1, count, size=shape) for shape in shapes]
  return [equal_bits(store.read(n), values, n) for n in draws]


def fill(store, values, count, batch_size, mesh):
  """Write all rows, and padding of any rows after the last one."""
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  for first in range(0, count, batch_size):
    numbers = np.arange(first, first + batch_size) % count
    part = jax.tree.map(lambda x, n=numbers: x[n], values)
    store.write(numbers, jax.device_put(part, split))


def equal_bits(found, values, numbers):
  """Return whether rows have the bits of the values of their numbers."""
  same = jax.tree.map(
    lambda x, y: np.asarray(x).tobytes() == y[numbers].tobytes(), found, values
  )
  return all(jax.tree.leaves(same))


def program(lowered):
  """Return the collectives and the memory of a program."""
  compiled = lowered.compile()
  memory = compiled.memory_analysis()
  assert memory is not None
  return {
    "collectives": hlo.collectives(compiled.as_text()),
    "arguments": memory.argument_size_in_bytes,
    "alias": memory.alias_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "output": memory.output_size_in_bytes,
  }


def main(num_random="1"):
  mesh, rng = distributed.make_mesh(), np.random.default_rng(1)
  shapes = [(16,), (16,), (16, 2)]
  equal = [same_bits(ROW, COUNT, SIZE, mesh, rng, shapes)]
  for _ in range(int(num_random)):
    count, size = int(rng.integers(1, 40)), int(rng.integers(1, 4)) * mesh.size
    shape = (mesh.size, *rng.integers(1, 4, size=rng.integers(3)))
    equal.append(same_bits(draw_row(rng), count, size, mesh, rng, [shape]))
  store = feature_store.Device(ROW, COUNT, mesh, SIZE)
  found = {
    "devices": mesh.size,
    "num_bytes": store.num_bytes,
    "equal": equal,
    "write": program(store.lower_write()),
    "read": program(store.lower_read((16,))),
    "references": program(store.lower_read((16, 2))),
  }
  print(json.dumps(found))


if __name__ == "__main__":
  main(*sys.argv[1:])
