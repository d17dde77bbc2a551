"""Batch size of a run: on any number of devices, and its scale."""

import logging

from zsad_jax import types
from zsad_jax.datasets import rows

_log = logging.getLogger(__name__)


def scaled(config: types.Config) -> types.Config:
  """Return a configuration with batch size and learning rates multiplied.

  All by `config.batch_scale`, the rates of a schedule and of groups of
  parameters included: the linear scaling rule of Goyal et al.,
  arXiv:1706.02677, whose warm-up is left out. A factor of 1 changes nothing.

  Args:
    config: see configs/common.py. It is not changed.
  """
  factor = config.get("batch_scale", 1)
  if factor == 1:
    return config
  new = config.copy_and_resolve_references()
  with new.unlocked():
    new.batch_size = factor * config.batch_size
    new.optax.learning_rate = factor * config.optax.learning_rate
    if "schedule" in new:
      new.schedule.warmup_learning_rate *= factor
      if "end_learning_rate" in new.schedule:
        new.schedule.end_learning_rate *= factor
    for group in new.get("param_groups", {}).values():
      if "learning_rate" in group:
        group.learning_rate *= factor
  _log.info(
    f"config.batch_scale is {factor}: the batch size is {new.batch_size} "
    f"({factor} x {config.batch_size}), the learning rate "
    f"{new.optax.learning_rate:g} ({factor} x {config.optax.learning_rate:g})."
  )
  return new


def log_padding(batch_size: int, num_devices: int) -> None:
  """Log how a batch is padded that the devices cannot divide evenly.

  Args:
    batch_size: images per step, over all devices.
    num_devices: number of devices of all processes.
  """
  padding = rows.spread(batch_size, num_devices).count(None)
  if padding:
    _log.info(
      f"The batch size is {batch_size}, on {num_devices} devices: each step "
      f"also computes {padding} rows of padding, of weight 0. The losses are "
      f"those of a batch of {batch_size}."
    )
