"""Names and layouts of torch parameters, translated by tables of rules."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

# Layout in torch -> (change to ours, change back).
LAYOUTS = {
    "same": (lambda x: x, lambda x: x),
    # A Linear's weight is (out, in).
    "linear": (lambda x: x.T, lambda x: x.T),
    # A convolution's is (out, in, height, width).
    "conv": (
        lambda x: x.transpose(2, 3, 1, 0),
        lambda x: x.transpose(3, 2, 0, 1),
    ),
}


class Rule(NamedTuple):
  r"""How one kind of parameter is called, there and here, and stored there."""

  pattern: str  # Regular expression of the whole name in the source.
  path: str  # Ours, such as r"visual/\1/kernel"; \1 is a group.
  layout: str = "same"  # Key of `LAYOUTS`.


Table = tuple[Rule, ...]


def norm(pattern: str, path: str) -> Table:
  """Rules of a LayerNorm: our scale is torch's weight."""
  return (
      Rule(rf"{pattern}\.weight", f"{path}/scale"),
      Rule(rf"{pattern}\.bias", f"{path}/bias"),
  )


def linear(pattern: str, path: str) -> Table:
  """Rules of a Linear with its bias."""
  return (
      Rule(rf"{pattern}\.weight", f"{path}/kernel", "linear"),
      Rule(rf"{pattern}\.bias", f"{path}/bias"),
  )


def find(name: str, table: Table) -> tuple[str, str] | None:
  """Returns our path and the layout of one torch name, None if unknown."""
  for rule in table:
    if match := re.fullmatch(rule.pattern, name):
      return match.expand(rule.path), rule.layout
  return None


def rename(named: Mapping[str, Any], table: Table) -> dict[str, Any]:
  """Returns the arrays under our flat names, in our layout.

  A name that no rule knows stays as it is, and so does an array that has not
  the axes of its layout: for the caller to report.
  """
  flat = {}
  for name, x in named.items():
    path, layout = find(name, table) or (name, "same")
    fits = layout != "conv" or x.ndim == 4
    flat[path] = LAYOUTS[layout][0](x) if fits else x
  return flat


def to_torch(
    flat: Mapping[str, Any], table: Table, names: Iterable[str]
) -> dict[str, Any]:
  """Returns our flat leaves under the given torch names, in torch's layout.

  Raises:
    ValueError: a name that no rule knows.
  """
  result = {}
  for name in names:
    found = find(name, table)
    if found is None:
      raise ValueError(f"Unknown parameter {name!r}.")
    path, layout = found
    result[name] = LAYOUTS[layout][1](jnp.asarray(flat[path]))
  return result
