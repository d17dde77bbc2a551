"""What a run is: its size and its first lines."""

from collections.abc import Sequence

import jax

from zsad_jax import api, released, runs
from zsad_jax.datasets import index


def count(params: api.Params) -> int:
  """Number of parameters in a tree."""
  return sum(x.size for x in jax.tree.leaves(params))


def trained_parameters(method: api.Method, params: api.Params) -> int:
  """Number of parameters that the loss reads."""
  used = jax.tree.map(
      lambda p, t: p.size if t else 0, params, method.trained(params)
  )
  return sum(jax.tree.leaves(used))


def start(
    config, datasets: Sequence[index.Dataset], method, backbone, params
):
  """Prints what is about to be trained, on what and where."""
  devices = jax.devices()
  print(f"Method: {config.method_name}, config {config.name}")
  if note := runs.BACKBONE_NOTES.get(config.backbone.name):
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
      f"Parameters: {trained_parameters(method, params):,} trainable, "
      f"{released.stored_parameters(method, backbone, params):,} in the "
      "authors' checkpoint, "
      f"{count(backbone.params):,} frozen ({config.backbone.name})"
  )
  print(
      f"Devices: {len(devices)} x {devices[0].device_kind}, jax "
      f"{jax.__version__}; selection of parameters: {config.selection}",
      flush=True,
  )
