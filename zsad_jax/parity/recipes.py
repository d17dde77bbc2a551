"""Optimizer steps and learning rates as the compared methods' files store them.

The arrays are of Dassl's optimizers, alone or on a method's own gradients.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zsad_jax.parity import golden as golden_lib
from zsad_jax.training import optimizer

_OPTAX = ("momentum", "nesterov", "b1", "b2", "eps")  # Names in both.


def schedule(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Return the schedule of a description of the manifest."""
  if "eta_min" in settings:
    return {"name": "cosine", "end_learning_rate": settings["eta_min"]}
  return {
    "name": "cosine",
    "warmup_epochs": settings["warmup_epochs"],
    "warmup_learning_rate": settings["warmup_lr"],
  }


def learning_rates(settings: Mapping[str, Any]) -> np.ndarray:
  """Return the learning rate of each epoch of a description."""
  return optimizer.learning_rates(
    settings["lr"], schedule(settings), _epochs(settings)
  )


def _epochs(settings):
  """Return the period of the schedule."""
  return settings.get("T_max") or settings["epochs"]


def make(
  settings: Mapping[str, Any], params: Any
) -> optax.GradientTransformation:
  """Build the optimizer of a description, of one step per epoch.

  Raises:
    ValueError: the optimizer has a setting that ours has not.
  """
  if settings.get("dampening") or settings.get("weight_decay_kind") not in (
    None,
    "L2",
  ):
    raise ValueError(f"There is no optimizer with the settings {settings}.")
  given = {name: settings[name] for name in _OPTAX if name in settings}
  return optimizer.make(
    settings["opt"],
    {"learning_rate": settings["lr"], **given},
    jax.tree.map(lambda _: True, params),
    l2_weight_decay=settings["weight_decay"],
    schedule=schedule(settings),
    epochs=_epochs(settings),
  )


def steps(
  settings: Mapping[str, Any],
  params: Any,
  gradients: Callable[[int, Any], tuple[Any, Any]],
  count: int,
) -> tuple[list[Any], Any]:
  """Update parameters.

  Args:
    settings: description of the optimizer.
    params: initial parameters.
    gradients: (step, params) -> (loss, gradients).
    count: number of steps.

  Returns:
    The loss before each step, and the parameters after all.
  """
  return advance(make(settings, params), params, gradients, count)


def advance(
  tx: optax.GradientTransformation,
  params: Any,
  gradients: Callable[[int, Any], tuple[Any, Any]],
  count: int,
) -> tuple[list[Any], Any]:
  """Update parameters by an optimizer; see `steps`."""

  @jax.jit
  def update(grads, opt, params):
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt

  opt, history = jax.jit(tx.init)(params), []
  for step in range(count):
    loss, grads = gradients(step, params)
    history.append(loss)
    params, opt = update(grads, opt, params)
  return history, params


def _epsilon(name: str) -> dict[str, float]:
  """Return Adam's epsilon in a name such as "traj_eps1e-3"."""
  _, found, value = name.partition("_eps")
  return {"eps": float(value)} if found else {}


def trajectories(
  entry: golden_lib.Entry,
  params: Any,
  loss_and_grads: Callable[[Any], tuple[Any, Any]],
  named: Callable[[Any], Mapping[str, Any]],
  prefix: str = "",
) -> Iterator[tuple[str, Any]]:
  """Yield the trajectories of a method on one batch.

  Args:
    entry: the file.
    params: initial parameters.
    loss_and_grads: of parameters.
    named: parameters -> arrays by stored name.
    prefix: of the stored names.
  """
  found = {n.split("/")[0] for n in entry.under(f"{prefix}traj") if "/" in n}
  for suffix in sorted(found):
    name, start = f"traj{suffix}", named(params)
    settings = {**entry.config["traj"], **_epsilon(name)}
    history, after = steps(
      settings,
      params,
      lambda _, params: loss_and_grads(params),
      settings["steps"],
    )
    yield f"{prefix}{name}/losses", np.stack(history)
    for key, value in named(after).items():
      yield f"{prefix}{name}/{key}_after", value
      yield f"{prefix}{name}/delta/{key}", value - start[key]


def optimizers(entry: golden_lib.Entry) -> Iterator[tuple[str, Any]]:
  """Yield learning rates, and the steps of optimizers on given gradients."""
  traj = entry.config["traj"]
  yield "traj/lr", learning_rates(traj)
  for name in entry.under("lr/cosine_"):
    settings = {**traj, "epochs": int(name)}
    yield f"lr/cosine_{name}", learning_rates(settings)
  for group in sorted({n.split("/")[0] for n in entry.under("optim/")}):
    prefix = f"optim/{group}"
    read = lambda kind, prefix=prefix: {
      name: jnp.asarray(x, jnp.float32)
      for name, x in entry.under(f"{prefix}/{kind}").items()
    }
    params, grads = read("param"), read("grads")
    epochs = len(next(iter(grads.values())))
    own = entry.config.get(f"optim_{group}", {})
    settings = {**traj, **_epsilon(group), **own, "epochs": epochs}
    _, after = steps(
      settings,
      params,
      lambda step, _, grads=grads: (
        0.0,
        {n: g[step] for n, g in grads.items()},
      ),
      epochs,
    )
    yield f"{prefix}/lr", learning_rates(settings)
    for name, value in after.items():
      yield f"{prefix}/delta{name}", value - params[name]
