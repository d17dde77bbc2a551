r"""Orders of the devices of TPU slices, and a run in such an order.

Without a flag, print the orders of libtpu's topologies, which are stored in
tests/goldens/device_orders.json:

JAX_PLATFORMS=cpu python -m tests.helpers.device_orders

With flags, train, calibrate, evaluate and predict on simulated devices that
have the order of a slice, see `run`:

python -m tests.helpers.device_orders --data=DIR --workdir=DIR --order=v5e:4x8
"""

import glob
import json
import pathlib
import sys

import jax
import numpy as np
from absl import flags

from tests.helpers import small_run
from zsad_jax import train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.datasets import references
from zsad_jax.evaluation import calibration, evaluator
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import cli, distributed

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


def imitate(order: str) -> None:
  """Give the devices of two processes the order that they have in a slice.

  `jax.make_mesh` returns that order, or fails. The package, but not JAX, which
  relies on the order of `jax.devices()`, also gets the devices in that order.
  """
  processes = two_processes(order)
  waiting = {}
  for device in jax.devices():
    waiting.setdefault(device.process_index, []).append(device)
  # Where make_mesh fails the processes alternate.
  ordered = [waiting[p].pop() for p in processes or [0, 1] * 4]
  in_default_order = jax.devices

  def make_mesh(shape, names, *, axis_types=None):
    assert shape == (len(ordered),) and processes, "several slices"
    return jax.sharding.Mesh(np.array(ordered), names, axis_types=axis_types)

  def devices(*arguments):
    caller = sys._getframe(1).f_globals["__name__"]
    ours = caller.startswith("zsad_jax") and not arguments
    return list(ordered) if ours else in_default_order(*arguments)

  jax.make_mesh, jax.devices = make_mesh, devices


def run(workdir: pathlib.Path, data: str, method: str) -> None:
  """Train from stored features, calibrate, evaluate and predict.

  Args:
    workdir: receives the run and numbers.npz, which holds all results.
    data: folder of `small_run.write_mvtec`.
    method: "anomalyclip", or "adaptclip", which is trained with references.
  """
  clip_load.RANDOM_CONFIG = small_run.BACKBONE
  config = getattr(small_run, f"get_{method}_config")(data)
  config.batch_size = config.eval_batch_size = 8
  config.epochs = 5
  config.features.storage = "device"
  assert train.train(config.lock(), workdir)
  trained = run_lib.load(workdir)
  calibration.store(trained)
  numbers = {**_evaluated(trained, data), **_predicted(trained, data)}
  if distributed.is_primary():
    np.savez(workdir / "numbers.npz", **numbers)


def _evaluated(trained, data):
  """Return metrics and scores without and with references."""
  dataset = run_lib.open_dataset(trained.config, data)
  choices = references.NONE, references.sample(dataset, shots=3, seed=10)
  evaluation = evaluator.Evaluator.from_config(
    trained.config,
    trained.method,
    trained.backbone,
    distributed.make_mesh(),
    few_shot=True,
  )
  found = {}
  for category in evaluation.categories(
    trained.params, trained.stats, dataset, choices
  ):
    name = f"{category.name} {category.references.label}"
    found[f"{name} scores"] = category.pred_score
    found[f"{name} metrics"] = np.array([*category.compute().values()], float)
  return found


def _predicted(trained, data):
  """Return the results of a prediction with references."""
  images = sorted(glob.glob(f"{data}/*/test/*/*.png"))
  normal = sorted(glob.glob(f"{data}/nut/train/good/*.png"))
  results = detector_lib.Detector(trained).with_references(normal)(images)
  return {
    "predict scores": np.array([x.score for x in results]),
    "predict zero-shot scores": np.array([x.zero_shot_score for x in results]),
    "predict maps": np.stack([x.raw_map for x in results]),
    "predict thresholds": np.array([x.threshold for x in results]),
  }


def define_flags() -> None:
  """Define the flags of `run`."""
  flags.DEFINE_string("workdir", None, "Folder of the run.")
  flags.DEFINE_string("data", None, "Folder of small_run.write_mvtec.")
  flags.DEFINE_string("order", "", "Slice whose order the devices have.")
  flags.DEFINE_string("method", "anomalyclip", "Method to train.")


def main(options) -> None:
  """Run on simulated devices."""
  if options.order:
    imitate(options.order)
  run(pathlib.Path(options.workdir), options.data, options.method)


if __name__ == "__main__":
  if len(sys.argv) > 1:
    cli.run(main, define_flags)
  else:
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in describe().items()]
    print("{\n" + ",\n".join(lines) + "\n}")
