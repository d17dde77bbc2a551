"""A training step of AdaCLIP, with and without rematerialization.

Its gradient goes through the vision tower; the other methods train from cached
features. The unit is one plain pass of the tower over the same images. Memory
is that of the compiled program without its arguments. Needs neither TensorFlow
nor ml_collections.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from zsad_jax.backbones.clip import model as clip
from zsad_jax.benchmark.clock import Clock
from zsad_jax.benchmark.methods import (
  Case,
  define_rounds,
  define_size_flags,
  examine,
  plain,
  random_backbone,
)
from zsad_jax.runtime import distributed, environment, files

RESERVE = 2 * 2**30  # Bytes to leave free.


def define_flags() -> None:
  """Define the command's flags."""
  define_size_flags()
  define_rounds()
  flags.DEFINE_list("batches", ["1", "4"], "Batch sizes.")


def free_bytes() -> int:
  """Return the free memory of the device or, for a CPU, of its host."""
  stats = jax.local_devices()[0].memory_stats()
  if stats is None:
    return distributed.free_memory()
  return stats["bytes_limit"] - stats["bytes_in_use"]


def programs(
  backbone: clip.Clip, pixels: jax.Array
) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
  """Yield name, function and arguments of each program to compare."""
  yield "plain pass", plain, (backbone, pixels)
  recomputed, stored = (
    Case("adaclip", backbone, pixels, remat=remat) for remat in (True, False)
  )
  yield "forward", *stored.training(cached=True, gradient=False)
  yield "gradient, recomputed", *recomputed.training(cached=True)
  yield "gradient, stored", *stored.training(cached=True)


def measure(
  backbone: clip.Clip, batch: int, side: int, rounds: int
) -> dict[str, dict[str, Any]]:
  """Measure seconds, GiB and plain passes of each program for a batch."""
  drawn = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3))
  clock, rows = Clock(rounds), {}
  pixels = jnp.asarray(drawn, jnp.uint8)
  for name, function, arguments in programs(backbone, pixels):
    facts = examine(function, *arguments)
    rows[name] = {
      "batch": batch,
      "gib": facts["gib"],
      "gflop": facts["flops"] / batch / 1e9,
      "gbyte": facts["bytes"] / batch / 1e9,
      "seconds": None,
    }
    if facts["gib"] * 2**30 + RESERVE < free_bytes():
      clock.add(name, facts["program"], *arguments)
  for name, seconds in clock.medians().items():
    rows[name]["seconds"] = seconds
  for row in rows.values():
    if row["seconds"]:
      row["passes"] = row["seconds"] / rows["plain pass"]["seconds"]
  return rows


def main(options: Any) -> None:
  """Run the benchmark."""
  backbone = random_backbone(options)
  print(
    f"{options.model} at {options.image_size} px, AdaCLIP, its un-prompted "
    "embeddings cached"
  )
  found = []
  for batch in map(int, options.batches):
    rows = measure(backbone, batch, options.image_size, options.rounds)
    for name, row in rows.items():
      found.append({"name": name, **row})
      time = "not run: not enough free memory"
      if row["seconds"]:
        time = f"{row['seconds']:8.3f} s {row['passes']:6.2f} passes"
      print(
        f"batch {batch:3}  {name:22} {row['gib']:7.2f} GiB "
        f"{row['gflop']:8.0f} GFLOP and {row['gbyte']:5.0f} GB an image  "
        f"{time}",
        flush=True,
      )
  if options.json:
    document = dict(
      model=options.model,
      dtype=options.dtype,
      image_size=options.image_size,
      rows=found,
      **environment.setting(),
    )
    files.write_text(options.json, json.dumps(document, indent=1) + "\n")
