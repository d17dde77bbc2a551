"""Choice of a storage for the features of training."""

from collections.abc import Sequence

import jax

from zsad_jax.runtime import distributed
from zsad_jax.training import feature_store

_MEMORY_SHARE = 0.5  # Of the free memory that features may take.


def nearest_storage(
  num_bytes: int,
  on_devices: feature_store.Device,
  reads: Sequence[tuple[int, ...]],
) -> str:
  """Return "device", "host" or "disk", the first with room for the features.

  On a device, rows and the programs that write and read them may take half of
  the free memory of the fullest one. All processes have the same answer.

  Args:
    num_bytes: bytes of all features.
    on_devices: the store to be used on the devices.
    reads: shapes of the numbers that a training step reads, of all processes.
  """
  stats = [device.memory_stats() for device in jax.local_devices()]
  if None in stats:  # A CPU's memory is the host's.
    free = distributed.free_memory() // jax.local_device_count()
    near = jax.process_count() > 1
  else:
    free = min(x["bytes_limit"] - x["bytes_in_use"] for x in stats)
    near = True
  # Agreed before anything is compiled, which processes may do together.
  room = _MEMORY_SHARE * min(distributed.all_gather_object(free))
  if near and on_devices.num_bytes <= room:
    if on_devices.needed_bytes(*reads) <= room:
      return "device"
  fits = num_bytes <= _MEMORY_SHARE * distributed.free_memory()
  return "host" if fits else "disk"
