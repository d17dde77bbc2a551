"""First lines of a training run: method, data, parameters, devices."""

import logging
from collections.abc import Sequence

import jax

from zsad_jax import backbones, types
from zsad_jax.datasets import index
from zsad_jax.runs import authors_checkpoint
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import processes

_log = logging.getLogger(__name__)


def log(
  config: types.Config,
  datasets: Sequence[index.Dataset],
  method: types.Method,
  backbone: types.ImageBackbone,
  params: types.Params,
) -> None:
  """Log the method, the auxiliary data, the sizes and the devices of a run.

  Args:
    config: see configs/common.py.
    datasets: the auxiliary data sets.
    method: the method to train.
    backbone: the frozen backbone.
    params: the method's parameters.
  """
  devices = jax.devices()
  _log.info("Method: %s, config %s", config.method_name, config.name)
  if note := backbones.note(config.backbone.name):
    _log.info(note)
  for dataset in datasets:
    normal, anomalous = dataset.counts[1:]
    _log.info(
      f"Training on {dataset.name}: {normal} normal and {anomalous} "
      f"anomalous images of {len(dataset.class_names)} categories"
    )
    for note in dataset.notes:
      _log.info(f"  note: {note}")
  stored = authors_checkpoint.stored_parameters(method, backbone, params)
  in_file = f"{stored:,} in the authors' checkpoint, "
  _log.info(
    f"Parameters: {run_lib.count_trained(method, params):,} trainable, "
    f"{in_file if method.checkpoint_spec else ''}"
    f"{run_lib.count(backbone):,} frozen ({config.backbone.name})"
  )
  _log.info(
    f"Devices: {len(devices)} x {devices[0].device_kind}, jax "
    f"{jax.__version__}; selection of parameters: {config.selection}"
  )
  if processes.count() > 1:
    _log.info(
      f"Processes: {processes.count()}; compiled programs are stored in "
      f"{jax.config.jax_compilation_cache_dir} by process 0: "  # pyright: ignore[reportAttributeAccessIssue]
      "JAX_COMPILATION_CACHE_DIR names a folder that all hosts share."
    )
