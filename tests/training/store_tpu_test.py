"""The store on devices, compiled for TPU slices; needs no TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from tests.helpers import hlo
from zsad_jax.training import feature_store

pytest.importorskip("libtpu")
GIB = 2**30
# AdaptCLIP's features of an image of 518 pixels.
ROW = {
  "image": jax.ShapeDtypeStruct((768,), jnp.float32),
  "tokens": jax.ShapeDtypeStruct((1370, 768), jnp.float32),
  "patch_units": jax.ShapeDtypeStruct((4, 1369, 768), jnp.float32),
}


@pytest.mark.parametrize("topology, batch_size", [("v5e:2x4", 32)])
def test_a_read_moves_one_batch_and_copies_no_row_of_the_store(
  topology, batch_size, monkeypatch
):
  check(topology, batch_size, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
  "topology, batch_size", [("v5e:8x8", 256), ("v5p:2x2x4", 64)]
)
def test_a_read_moves_one_batch_on_larger_slices(
  topology, batch_size, monkeypatch
):
  check(topology, batch_size, monkeypatch)


def check(topology, batch_size, monkeypatch):
  """Compile a read of 2,800 rows, and check its exchanges and its memory."""
  monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # Not on a TPU's host.
  described = topologies.get_topology_desc(
    platform="tpu", topology_name=topology
  )
  devices = sorted(described.devices, key=lambda d: (d.process_index, d.id))
  mesh = jax.sharding.Mesh(
    np.array(devices), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  store = feature_store.Device(ROW, 2800, mesh, batch_size)
  compiled = store.lower_read((batch_size,)).compile()
  memory = compiled.memory_analysis()
  assert memory is not None
  found = hlo.collectives(compiled.as_text())
  exchanged = [x.num_bytes for x in found if x.kind == "all-to-all"]
  assert len(exchanged) == 1 and exchanged[0] <= 100e6
  # The compiler may gather the numbers, a few bytes, by another operation.
  others = [x.num_bytes for x in found if x.kind != "all-to-all"]
  assert sum(others) <= 4 * batch_size
  # Two batches, and the numbers of its rows.
  assert memory.temp_size_in_bytes <= 2 * exchanged[0] + 2**20
  assert memory.argument_size_in_bytes <= store.num_bytes + 4096
  free = 15.75 * GIB  # Of a v5e chip, the smallest.
  assert memory.peak_memory_in_bytes <= free / 2
