"""Translation of torch parameters to our names and layouts, by rules.

A table lists rules; the first rule whose pattern matches the whole torch name
gives the path in our tree and the layout of the array.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# Changes of layout by name: (from torch to ours, from ours to torch). Our
# kernels are (in, out) and (height, width, in, out).
LAYOUTS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
  "same": (lambda x: x, lambda x: x),
  # The weight of a Linear is (out, in).
  "linear": (lambda x: x.T, lambda x: x.T),
  # The weight of a convolution is (out, in, height, width).
  "conv": (
    lambda x: x.transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1),
  ),
  # The weight of a transposed convolution is (in, out, height, width).
  "transposed_conv": (
    lambda x: x.transpose(2, 3, 0, 1),
    lambda x: x.transpose(2, 3, 0, 1),
  ),
  # The weight of a 1-D convolution is (out, in, width).
  "conv1d": (lambda x: x.transpose(2, 1, 0), lambda x: x.transpose(2, 1, 0)),
  # One of width 1 is a Linear.
  "pointwise": (lambda x: x[:, :, 0].T, lambda x: x.T[:, :, None]),
  # Prompt learners have one or two leading axes of size 1.
  "lead1": (lambda x: x[0], lambda x: x[None]),
  "lead2": (lambda x: x[0, 0], lambda x: x[None, None]),
}
_GROUP = re.compile(r"\([^()]*\)")  # A group of a pattern.
# Smallest number of axes that a change of layout needs.
_MIN_AXES = {
  "conv": 4,
  "transposed_conv": 4,
  "conv1d": 3,
  "pointwise": 3,
  "linear": 2,
  "lead1": 1,
  "lead2": 2,
}


class Rule(NamedTuple):
  r"""Name and layout of one kind of parameter.

  Attributes:
    pattern: regular expression for the whole torch name.
    path: our flat name, such as r"visual/\1/kernel"; \1 is a group of the
      pattern.
    layout: key of `LAYOUTS`.
  """

  pattern: str
  path: str
  layout: str = "same"


Table = tuple[Rule, ...]


@dataclasses.dataclass(frozen=True)
class CheckpointSpec:
  """Format of the checkpoints of a method's authors.

  `runs.authors_checkpoint` reads and writes them.

  Attributes:
    names: rules of the parameters.
    stats: rules of the running statistics.
    groups: keys of the file's nested dicts, which are also the first parts of
      the names of their tensors; all other tensors are not nested.
    unused: function of method and backbone that returns the shapes, by name,
      of tensors that are stored but never used.
    buffers: function of method and backbone that returns the arrays, by name,
      that are derived from the frozen backbone.
    copies: function of method and name that returns the other names of the
      same tensor.
  """

  names: Table
  stats: Table = ()
  groups: tuple[str, ...] = ()
  unused: Callable[[Any, Any], Mapping[str, tuple[int, ...]]] = (
    lambda method, backbone: {}
  )
  buffers: Callable[[Any, Any], Mapping[str, np.ndarray]] = (
    lambda method, backbone: {}
  )
  copies: Callable[[Any, str], Iterable[str]] = lambda method, name: ()


def prefixed(prefix: str, table: Table) -> Table:
  """Return the rules for the same names with a prefix."""
  return tuple(r._replace(pattern=re.escape(prefix) + r.pattern) for r in table)


def norm(pattern: str, path: str) -> Table:
  """Return the rules of a normalization layer."""
  return (
    Rule(rf"{pattern}\.weight", f"{path}/scale"),
    Rule(rf"{pattern}\.bias", f"{path}/bias"),
  )


def batch_norm_stats(pattern: str, path: str) -> Table:
  """Return the rules of the running statistics of a BatchNorm."""
  return (
    Rule(rf"{pattern}\.running_mean", f"{path}/mean"),
    Rule(rf"{pattern}\.running_var", f"{path}/var"),
    Rule(rf"{pattern}\.num_batches_tracked", f"{path}/count"),
  )


def linear(pattern: str, path: str) -> Table:
  """Return the rules of a Linear with bias."""
  return (
    Rule(rf"{pattern}\.weight", f"{path}/kernel", "linear"),
    Rule(rf"{pattern}\.bias", f"{path}/bias"),
  )


def conv1d(pattern: str, path: str) -> Table:
  """Return the rules of a 1-D convolution with bias."""
  return (
    Rule(rf"{pattern}\.weight", f"{path}/kernel", "conv1d"),
    Rule(rf"{pattern}\.bias", f"{path}/bias"),
  )


def pointwise(pattern: str, path: str) -> Table:
  """Return the rules of a 1-D convolution of width 1 with bias."""
  return (
    Rule(rf"{pattern}\.weight", f"{path}/kernel", "pointwise"),
    Rule(rf"{pattern}\.bias", f"{path}/bias"),
  )


def invert(path: str, table: Table) -> tuple[str, str] | None:
  """Return the torch name and the layout of one of our paths.

  A rule can be inverted if its pattern is literal except for its groups, and
  its path contains all groups in the same order.

  Args:
    path: flat name in our tree.
    table: the rules.

  Returns:
    The torch name and the key of `LAYOUTS`; None if no rule matches.
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
  """Return our path and the layout of a torch name; None if no rule matches."""
  for rule in table:
    if match := re.fullmatch(rule.pattern, name):
      return match.expand(rule.path), rule.layout
  return None


def rename(named: Mapping[str, Any], table: Table) -> dict[str, Any]:
  """Return the arrays under our flat names, in our layouts.

  A name that no rule matches is kept, and so is the layout of an array that
  has too few axes: the caller reports them.

  Args:
    named: arrays by torch name.
    table: the rules.
  """
  flat = {}
  for name, x in named.items():
    path, layout = find(name, table) or (name, "same")
    fits = x.ndim >= _MIN_AXES.get(layout, 0)
    flat[path] = LAYOUTS[layout][0](x) if fits else x
  return flat


def without(
  state: Mapping[str, np.ndarray], unused: str
) -> dict[str, np.ndarray]:
  """Return the arrays whose names do not match a regular expression."""
  return {n: x for n, x in state.items() if not re.fullmatch(unused, n)}


def fuse(
  flat: Mapping[str, Any], parts: Sequence[str], fused: str
) -> dict[str, Any]:
  """Join the outputs of linear layers of one input, where all of them fit.

  Args:
    flat: arrays by flat name.
    parts: names of the layers, such as q_proj, k_proj, v_proj.
    fused: name of the joined layer.
  """
  flat = dict(flat)
  for name in [name for name in flat if f"/{parts[0]}/" in name]:
    names = [name.replace(parts[0], part) for part in parts]
    shapes = {np.shape(flat[x]) if x in flat else None for x in names}
    if len(shapes) == 1:
      joined = [flat.pop(x) for x in names]  # Kernels are (in, out).
      flat[name.replace(parts[0], fused)] = np.concatenate(joined, axis=-1)
  return flat


def to_torch(
  flat: Mapping[str, Any], table: Table, names: Iterable[str]
) -> dict[str, Any]:
  """Return parameters under torch names, in torch's layouts.

  Args:
    flat: our arrays by flat name.
    table: the rules.
    names: the torch names.

  Raises:
    ValueError: no rule matches a name.
  """
  result = {}
  for name in names:
    found = find(name, table)
    if found is None:
      raise ValueError(f"Unknown parameter {name!r}.")
    path, layout = found
    result[name] = LAYOUTS[layout][1](jnp.asarray(flat[path]))
  return result
