"""Methods, one file per paper."""

import dataclasses
import importlib
import pkgutil
import types
import typing

import ml_collections
from ml_collections import config_dict

from zsad_jax.types import choices


def names() -> list[str]:
  """Return the names of all methods, which are the names of their files."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def module(name: str) -> types.ModuleType:
  """Import the file of a method.

  Args:
    name: one of `names()`.

  Returns:
    The module.

  Raises:
    ValueError: there is no method of that name.
  """
  if name not in names():
    raise ValueError(
      f"There is no zsad_jax/methods/{name}.py; there are {', '.join(names())}."
    )
  return importlib.import_module(f"{__package__}.{name}")


def defaults(name: str) -> ml_collections.ConfigDict:
  """Return every hyperparameter of a method with its default.

  Fields whose type allows None accept both None and a value of their type.

  Args:
    name: of the method.

  Raises:
    ValueError: there is no such method.
  """
  cls = module(name).Method
  hints = typing.get_type_hints(cls)
  values = {field.name: field.default for field in dataclasses.fields(cls)}
  for name, value in values.items():
    if kind := _optional(hints[name]):
      values[name] = config_dict.FieldReference(value, field_type=kind)
  return ml_collections.ConfigDict(values)


def _optional(hint: typing.Any) -> typing.Any:
  """Return the type of values of `hint | None`; None for other hints."""
  parts = [p for p in typing.get_args(hint) if p is not type(None)]
  if type(None) not in typing.get_args(hint):
    return None
  known = choices(parts[0])
  return (type(known[0]) if known else parts[0]) | None
