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
    # A transposed convolution's is (in, out, height, width).
    "transposed_conv": (
        lambda x: x.transpose(2, 3, 0, 1),
        lambda x: x.transpose(2, 3, 0, 1),
    ),
    # Prompt learners keep one or two leading axes of size 1.
    "lead1": (lambda x: x[0], lambda x: x[None]),
    "lead2": (lambda x: x[0, 0], lambda x: x[None, None]),
}
_AXES = {"conv": 4, "transposed_conv": 4, "linear": 2, "lead1": 1, "lead2": 2}


class Rule(NamedTuple):
  r"""How one kind of parameter is called, there and here, and stored there."""

  pattern: str  # Regular expression of the whole name in the source.
  path: str  # Ours, such as r"visual/\1/kernel"; \1 is a group.
  layout: str = "same"  # Key of `LAYOUTS`.


Table = tuple[Rule, ...]


def norm(pattern: str, path: str) -> Table:
  """Rules of any normalisation: our scale is torch's weight."""
  return (
      Rule(rf"{pattern}\.weight", f"{path}/scale"),
      Rule(rf"{pattern}\.bias", f"{path}/bias"),
  )


def batch_norm_stats(pattern: str, path: str) -> Table:
  """Rules of a BatchNorm's running statistics."""
  return (
      Rule(rf"{pattern}\.running_mean", f"{path}/mean"),
      Rule(rf"{pattern}\.running_var", f"{path}/var"),
      Rule(rf"{pattern}\.num_batches_tracked", f"{path}/count"),
  )


def linear(pattern: str, path: str) -> Table:
  """Rules of a Linear with its bias."""
  return (
      Rule(rf"{pattern}\.weight", f"{path}/kernel", "linear"),
      Rule(rf"{pattern}\.bias", f"{path}/bias"),
  )


def invert(path: str, table: Table) -> tuple[str, str] | None:
  """Returns the torch name and the layout of one of our paths.

  A rule can be inverted when its pattern is literal but for its groups.
  """
  for pattern, ours, layout in table:
    groups = re.findall(r"\([^()]*\)", pattern)
    reverse = re.sub(r"\\(\d)", lambda m: groups[int(m[1]) - 1], ours)
    if match := re.fullmatch(reverse, path):
      name = re.sub(r"\([^()]*\)", "{}", pattern).replace("\\.", ".")
      return name.format(*match.groups()), layout
  return None


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
    fits = x.ndim >= _AXES.get(layout, 0)
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
