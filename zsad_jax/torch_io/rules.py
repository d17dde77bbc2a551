"""Names and layouts of torch parameters, translated by tables of rules."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from zsad_jax import types

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
_GROUP = re.compile(r"\([^()]*\)")  # Of a pattern.
_AXES = {"conv": 4, "transposed_conv": 4, "linear": 2, "lead1": 1, "lead2": 2}


class Rule(NamedTuple):
  r"""How one kind of parameter is called, there and here, and stored there."""

  pattern: str  # Regular expression of the whole name in the source.
  path: str  # Ours, such as r"visual/\1/kernel"; \1 is a group.
  layout: str = "same"  # Key of `LAYOUTS`.


Table = tuple[Rule, ...]


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
  """How the authors of a method store it; `released.py` reads and writes it.

  Attributes:
    names: of the parameters.
    stats: names of the running statistics.
    groups: the parts of a file that are dicts of their own, first words of
      all names; none where the file is one flat dict.
    unused: of a method and a backbone, the shapes by name of what is stored
      but never used.
    buffers: likewise, arrays by name that follow from the frozen backbone.
    copies: of a method and a name, the other names of the same tensor.
  """

  names: Table
  stats: Table = ()
  groups: tuple[str, ...] = ()
  unused: Callable[
    [types.Method, types.Backbone], Mapping[str, tuple[int, ...]]
  ] = lambda method, backbone: {}
  buffers: Callable[
    [types.Method, types.Backbone], Mapping[str, np.ndarray]
  ] = lambda method, backbone: {}
  copies: Callable[[types.Method, str], Iterable[str]] = lambda method, name: ()


def prefixed(prefix: str, table: Table) -> Table:
  """The rules for names that all begin with `prefix`."""
  return tuple(r._replace(pattern=re.escape(prefix) + r.pattern) for r in table)


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

  A rule can be inverted when its pattern is literal but for its groups, and
  its path has them all in the same order.
  """
  for pattern, ours, layout in table:
    reverse = ours
    for i, group in enumerate(_GROUP.findall(pattern), start=1):
      reverse = reverse.replace(f"\\{i}", group)
    if match := re.fullmatch(reverse, path):
      name = _GROUP.sub("{}", pattern).replace("\\.", ".")
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
