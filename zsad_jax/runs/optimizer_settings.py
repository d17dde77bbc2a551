"""Settings of the optimizer, checked before anything is read."""

import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import optax

from zsad_jax.runs import settings as settings_lib

# Rules of the settings of a group of parameters, by name.
_GROUP_RULES = {
  name.removeprefix("optax."): rule
  for name, rule in settings_lib.OPTIMIZER.items()
}


def check(
  name: str,
  settings: Mapping[str, Any],
  groups: Any = None,
) -> None:
  """Check that an optimizer of optax takes the settings.

  Args:
    name: `config.optax_name`.
    settings: `config.optax`.
    groups: `config.param_groups`.

  Raises:
    ValueError: there is no such optimizer, it has no such setting, a number
      is not finite or out of range, or a group has no regular expression.
  """
  function = getattr(optax, name, None)
  if not inspect.isfunction(function):
    raise ValueError(f"config.optax_name: optax has no optimizer {name!r}.")
  known = inspect.signature(function).parameters
  for field, value in settings.items():
    if field not in known:
      raise ValueError(
        f"config.optax.{field} is unknown; the settings of {name} are "
        f"{', '.join(known)}."
      )
    if isinstance(value, float) and not math.isfinite(value):
      raise ValueError(f"config.optax.{field} is {value}, but must be finite.")
  for group, own in (groups or {}).items():
    _check_group(f"config.param_groups.{group}", own, name, known)


def _check_group(
  prefix: str, own: Any, name: str, known: Mapping[str, Any]
) -> None:
  """Check the settings of a group of parameters; see `check`."""
  own = dict(own.items()) if hasattr(own, "items") else {}
  expression: Any = own.get("params")
  try:
    re.compile(expression)
  except (re.error, TypeError) as error:
    raise ValueError(
      f"{prefix}.params is {settings_lib.shown(expression)}, but must be a "
      f"regular expression of paths of parameters: {error}."
    ) from error
  for field, value in own.items():
    if field not in ("params", "l2_weight_decay", *known):
      raise ValueError(
        f"{prefix}.{field} is unknown; the settings of a group are params, "
        f"l2_weight_decay and those of {name}: {', '.join(known)}."
      )
    rule = _GROUP_RULES.get(field)
    if rule and (problem := rule.problem(value)):
      raise ValueError(
        f"{prefix}.{field} is {settings_lib.shown(value)}, but {problem}."
      )
