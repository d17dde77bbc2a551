"""How the cost of a prediction grows: with batch, image size and devices.

Devices are those at hand; XLA_FLAGS=--xla_force_host_platform_device_count=4
makes four of a CPU, which shows that results stay the same, not a speed. Needs
neither TensorFlow nor ml_collections.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zsad_jax.benchmark import roofline
from zsad_jax.benchmark.methods import (
  METHODS,
  Case,
  Clock,
  define_model_flags,
  define_rounds,
  random_backbone,
)
from zsad_jax.runtime import environment, files


def define_flags():
  """The command's flags; defined only when it is run."""
  define_model_flags()
  define_rounds()
  flags.DEFINE_list("methods", list(METHODS), "To be measured.")
  flags.DEFINE_list("sizes", ["112", "224", "336"], "Sides of the images.")
  flags.DEFINE_list("batches", ["1", "2", "4", "8"], "Images at a time.")


def points(sizes, batches, devices: int):
  """What is measured: (batch, size, devices), one of them changing at a time.

  Several devices share the largest batch, where they can share it equally.
  """
  small, most = sizes[0], max(batches)
  found = {(batch, small, 1) for batch in batches}
  found |= {(batches[0], size, 1) for size in sizes}
  counts = [2**i for i in range(devices.bit_length()) if 2**i <= devices]
  return sorted(found | {(most, small, n) for n in counts if most % n == 0})


def run(name, backbone, point):
  """A compiled prediction with its arguments on so many devices."""
  batch, size, devices = point
  mesh = jax.make_mesh(
    (devices,),
    ("data",),
    devices=jax.devices()[:devices],
    axis_types=(jax.sharding.AxisType.Auto,),
  )
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (batch, size, size, 3))
  case = Case(name, backbone, jnp.asarray(pixels, jnp.uint8))
  function, (model, clip_, aux, given, memory) = case.inference(0)
  everywhere = NamedSharding(mesh, P())
  model, clip_, aux = jax.device_put((model, clip_, aux), everywhere)
  given = jax.device_put(given, NamedSharding(mesh, P("data")))
  return function, (model, clip_, aux, given, memory)


def main(options):
  backbone = random_backbone(options)
  whole = lambda values: sorted(map(int, values))
  chosen = points(
    whole(options.sizes), whole(options.batches), jax.device_count()
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


def difference(scores) -> float:
  """Largest difference of what one device and several say of an image."""
  alone = {point[:2]: s for point, s in scores.items() if point[2] == 1}
  return max(
    float(np.abs(s - alone[point[:2]]).max()) for point, s in scores.items()
  )
