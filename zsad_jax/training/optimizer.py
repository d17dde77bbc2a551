"""Optimizer: one optax transformation of the trainable parameters."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zsad_jax import types


def from_config(
  config: types.Config, trainable: Any, steps_per_epoch: int
) -> optax.GradientTransformation:
  """Build the optimizer of a configuration.

  Args:
    config: see configs/common.py. Configurations of older versions can lack
      `schedule`, `l2_weight_decay` and `param_groups`.
    trainable: see `make`.
    steps_per_epoch: steps between two learning rates of a schedule.

  Raises:
    ValueError: see `make`.
  """
  section = lambda name: dict(config.get(name, {}).items())
  return make(
    config.optax_name,
    config.optax.to_dict(),
    trainable,
    l2_weight_decay=config.get("l2_weight_decay", 0.0),
    schedule=section("schedule"),
    groups={k: dict(v.items()) for k, v in section("param_groups").items()},
    epochs=config.epochs,
    steps_per_epoch=steps_per_epoch,
  )


def make(
  name: str,
  settings: Mapping[str, Any],
  trainable: Any,
  *,
  l2_weight_decay: float = 0.0,
  schedule: Mapping[str, Any] | None = None,
  groups: Mapping[str, Mapping[str, Any]] | None = None,
  epochs: int = 1,
  steps_per_epoch: int = 1,
) -> optax.GradientTransformation:
  """Build an optimizer of optax for the trainable parameters.

  Args:
    name: an optimizer of optax, such as "adamw".
    settings: its keyword arguments.
    trainable: tree of bools with the structure of the parameters. Leaves that
      are False do not change, not even by weight decay, as torch treats a
      parameter that receives no gradient.
    l2_weight_decay: factor of the parameters that are added to their
      gradients before anything else, which is the weight decay of torch's SGD
      and Adam.
    schedule: see `learning_rates`; None for a constant learning rate.
    groups: by name: "params", a regular expression that matches the whole path
      of a parameter, such as "layers/.*/bias", and settings that these
      parameters have instead of `settings` and `l2_weight_decay`.
    epochs: number of epochs of the schedule.
    steps_per_epoch: steps of an epoch.

  Returns:
    The optimizer.

  Raises:
    ValueError: optax has no such optimizer, or a group has no parameter that
      is trainable and in no other group.
  """
  if not hasattr(optax, name):
    raise ValueError(f"config.optax_name: optax has no optimizer {name!r}.")

  def build(given: Mapping[str, Any]) -> optax.GradientTransformation:
    given = dict(given)
    l2 = given.pop("l2_weight_decay")
    rates = learning_rates(given["learning_rate"], schedule or {}, epochs)
    if (rates != given["learning_rate"]).any():
      given["learning_rate"] = _by_epoch(rates, steps_per_epoch)
    tx = getattr(optax, name)(**given)
    return optax.chain(optax.add_decayed_weights(l2), tx) if l2 else tx

  shared = {**settings, "l2_weight_decay": l2_weight_decay}
  transforms: dict[Any, optax.GradientTransformation] = {
    "train": build(shared),
    "keep": optax.set_to_zero(),
  }
  for group, own in (groups or {}).items():
    own = {key: value for key, value in own.items() if key != "params"}
    transforms[f"group {group}"] = build({**shared, **own})
  return optax.partition(transforms, _labels(trainable, groups or {}))


def learning_rates(
  base: float, schedule: Mapping[str, Any], epochs: int
) -> np.ndarray:
  """Compute the learning rate of each epoch.

  Args:
    base: learning rate after the warm-up.
    schedule: "name", "constant" or "cosine" (default "constant"), and
      "warmup_epochs" (default 0), the first epochs, which have the learning
      rate "warmup_learning_rate" (default 0). As in Dassl
      (`ConstantWarmupScheduler`), a warm-up of w epochs delays the cosine by w
      epochs and does not shorten its period: epoch e has the rate
      base (1 + cos(pi (e - w) / epochs)) / 2, which does not reach 0. Where
      there is an "end_learning_rate" (default 0), the cosine falls from the
      base to it instead, as in torch's `CosineAnnealingLR`.
    epochs: number of epochs.

  Returns:
    (max(epochs, 1),) in float64.
  """
  warmup = schedule.get("warmup_epochs", 0)
  epoch = np.arange(max(epochs, 1)) - warmup
  rates = np.full(len(epoch), base, np.float64)
  if schedule.get("name", "constant") == "cosine":
    end = schedule.get("end_learning_rate", 0.0)
    cosine = (1 + np.cos(np.pi * epoch / len(epoch))) / 2
    rates = end + (base - end) * cosine
  return np.where(epoch < 0, schedule.get("warmup_learning_rate", 0.0), rates)


def _by_epoch(rates: np.ndarray, steps_per_epoch: int) -> optax.Schedule:
  """Return the learning rate of a step; the last one after all epochs."""
  table = jnp.asarray(rates, jnp.float32)

  def rate(step: Any) -> jax.Array:
    return table[jnp.minimum(step // steps_per_epoch, len(rates) - 1)]

  return rate


def _labels(trainable: Any, groups: Mapping[str, Mapping[str, Any]]) -> Any:
  """Return the transformation of each parameter: its group, "train", "keep"."""
  unused = set(groups)

  def label(path: Any, used: bool) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    found = [k for k, g in groups.items() if re.fullmatch(g["params"], name)]
    if not used:
      return "keep"
    if len(found) > 1:
      raise ValueError(
        f"config.param_groups: the parameter {name} is in the groups "
        f"{' and '.join(found)}; it can be in one only."
      )
    unused.difference_update(found)
    return f"group {found[0]}" if found else "train"

  labels = jax.tree_util.tree_map_with_path(label, trainable)
  if unused:
    known = jax.tree_util.tree_flatten_with_path(trainable)[0]
    names = [
      jax.tree_util.keystr(path, simple=True, separator="/")
      for path, used in known
      if used
    ]
    first = min(unused)
    raise ValueError(
      f"config.param_groups.{first}.params is {groups[first]['params']!r}, "
      "which matches no trainable parameter; there are "
      f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}."
    )
  return labels
