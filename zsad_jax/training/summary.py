"""What a run is: its size and its first lines."""

from collections.abc import Sequence

import jax

from zsad_jax import backbones
from zsad_jax.datasets import index
from zsad_jax.runs import authors_checkpoint
from zsad_jax.runs import run as run_lib


def start(config, datasets: Sequence[index.Dataset], method, backbone, params):
  """Prints what is about to be trained, on what and where."""
  devices = jax.devices()
  print(f"Method: {config.method_name}, config {config.name}")
  if note := backbones.note(config.backbone.name):
    print(note)
  for dataset in datasets:
    normal, anomalous = dataset.counts[1:]
    print(
      f"Training on {dataset.name}: {normal} normal and {anomalous} "
      f"anomalous images of {len(dataset.class_names)} categories"
    )
    for note in dataset.notes:
      print(f"  note: {note}")
  print(
    f"Parameters: {run_lib.count_trained(method, params):,} trainable, "
    f"{authors_checkpoint.stored_parameters(method, backbone, params):,} in "
    "the authors' checkpoint, "
    f"{run_lib.count(backbone):,} frozen ({config.backbone.name})"
  )
  print(
    f"Devices: {len(devices)} x {devices[0].device_kind}, jax "
    f"{jax.__version__}; selection of parameters: {config.selection}",
    flush=True,
  )
