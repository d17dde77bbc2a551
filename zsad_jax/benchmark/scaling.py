"""Time of a prediction by batch size, image size and number of devices.

All devices are used; XLA_FLAGS=--xla_force_host_platform_device_count=4 makes
four of a CPU, which tests that results do not change, not the speed. Needs
neither TensorFlow nor ml_collections.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zsad_jax import methods
from zsad_jax.backbones.clip import model as clip
from zsad_jax.benchmark import roofline
from zsad_jax.benchmark.clock import Clock
from zsad_jax.benchmark.methods import (
  Case,
  define_model_flags,
  define_rounds,
  random_backbone,
)
from zsad_jax.runtime import distributed, environment, files

Point = tuple[int, int, int]  # Batch size, image size, devices.


def define_flags() -> None:
  """Define the command's flags."""
  define_model_flags()
  define_rounds()
  flags.DEFINE_list(
    "methods", methods.single_image_names(), "Methods to measure."
  )
  flags.DEFINE_list("sizes", ["112", "224", "336"], "Image sizes in pixels.")
  flags.DEFINE_list("batches", ["1", "2", "4", "8"], "Batch sizes.")


def points(
  sizes: Sequence[int], batches: Sequence[int], devices: int
) -> list[Point]:
  """Return the points to measure, varying one quantity at a time.

  Several devices are measured on the largest batch, where they divide it.
  """
  small, most = sizes[0], max(batches)
  found = {(batch, small, 1) for batch in batches}
  found |= {(batches[0], size, 1) for size in sizes}
  counts = [2**i for i in range(devices.bit_length()) if 2**i <= devices]
  return sorted(found | {(most, small, n) for n in counts if most % n == 0})


def run(
  name: str, backbone: clip.Clip, point: Point
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """Return a prediction and its arguments, placed on the point's devices."""
  batch, size, devices = point
  mesh = distributed.make_mesh(jax.devices()[:devices])
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (batch, size, size, 3))
  case = Case(name, backbone, jnp.asarray(pixels, jnp.uint8))
  function, (model, clip_, aux, given, memory) = case.inference(0)
  replicated = NamedSharding(mesh, P())
  model, clip_, aux, memory = jax.device_put(
    (model, clip_, aux, memory), replicated
  )
  given = jax.device_put(given, distributed.row_sharding(mesh))
  return function, (model, clip_, aux, given, memory)


def main(options: Any) -> None:
  """Run the benchmark."""
  backbone = random_backbone(options)
  integers = lambda values: sorted(map(int, values))
  chosen = points(
    integers(options.sizes), integers(options.batches), jax.device_count()
  )
  document = {
    "model": options.model,
    "dtype": options.dtype,
    "rows": [],
    "differences": {},
  }
  print(f"{options.model}: seconds (images per second)")
  for name in options.methods:
    clock, scores, work = Clock(options.rounds), {}, {}
    for point in chosen:
      function, arguments = run(name, backbone, point)
      clock.add(str(point), function, *arguments)
      work[point] = roofline.flops(function, *arguments) / point[0] / 1e9
      scores[point] = np.asarray(function(*arguments)["pred_score"])
    seconds = clock.medians()
    for point in chosen:
      batch, size, devices = point
      value = seconds[str(point)]
      print(
        f"{name:12} batch {batch:3}  {size:4} px  {devices} devices "
        f"{value:9.3f} ({batch / value:.1f})  {work[point]:7.0f} GFLOP an "
        "image",
        flush=True,
      )
      document["rows"].append(
        dict(
          method=name,
          batch=batch,
          image_size=size,
          devices=devices,
          seconds=value,
          gflop=work[point],
        )
      )
    if jax.device_count() > 1:
      document["differences"][name] = found = difference(scores)
      print(f"{name:12} with more devices scores differ by {found:.1e} at most")
  if options.json:
    text = json.dumps({**document, **environment.setting()}, indent=1) + "\n"
    files.write_text(options.json, text)


def difference(scores: Mapping[Point, np.ndarray]) -> float:
  """Return the largest difference of scores between one and more devices."""
  alone = {point[:2]: s for point, s in scores.items() if point[2] == 1}
  return max(
    float(np.abs(s - alone[point[:2]]).max()) for point, s in scores.items()
  )
