"""The optimiser: one optax transformation over the trainable tree alone."""

import jax
import optax


def make(name: str, settings, trained) -> optax.GradientTransformation:
  """Builds the optimiser called `name` in optax.

  Args:
    name: an optimiser of optax, such as "adamw".
    settings: its keyword arguments.
    trained: tree of bools like the parameters. Where it is False, nothing
      changes, weight decay included, as torch treats a parameter that never
      receives a gradient.

  Raises:
    ValueError: optax has no such optimiser.
  """
  if not hasattr(optax, name):
    raise ValueError(f"config.optax_name: optax has no optimiser {name!r}.")
  labels = jax.tree.map(lambda used: "train" if used else "keep", trained)
  return optax.partition(
    {"train": getattr(optax, name)(**settings), "keep": optax.set_to_zero()},
    labels,
  )
