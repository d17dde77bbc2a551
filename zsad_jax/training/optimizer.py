"""Optimizer: one optax transformation of the trainable parameters."""

from collections.abc import Mapping
from typing import Any

import jax
import optax


def make(
  name: str, settings: Mapping[str, Any], trainable: Any
) -> optax.GradientTransformation:
  """Build an optimizer of optax for the trainable parameters.

  Args:
    name: an optimizer of optax, such as "adamw".
    settings: its keyword arguments.
    trainable: tree of bools with the structure of the parameters. Leaves that
      are False do not change, not even by weight decay, as torch treats a
      parameter that receives no gradient.

  Raises:
    ValueError: optax has no such optimizer.
  """
  if not hasattr(optax, name):
    raise ValueError(f"config.optax_name: optax has no optimizer {name!r}.")
  labels = jax.tree.map(lambda used: "train" if used else "keep", trainable)
  return optax.partition(
    {"train": getattr(optax, name)(**settings), "keep": optax.set_to_zero()},
    labels,
  )
