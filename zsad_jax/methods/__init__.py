"""Methods, one file per paper.

A file has a class `Method` and, in its docstring, a table of the paper's
equations. Optional constants:

  PAPER_NAME      the method's name in the papers' tables
  TITLE           its name in the project's own table, if not PAPER_NAME
  PAPER_VARIANTS  names of its ablations there, by variant of its configuration
  PAPER_ENSEMBLES number of runs, by the name of an ensemble of runs there
  VARIANT_BY_PAPER  the variant that a paper's tables show under PAPER_NAME,
                  where the papers differ
  SUMMED_LOSSES   parts of the loss that are sums over images, not means
  DEPTH           layers of the backbone that the defaults are for, if not 24
  TINY            settings for a backbone of three blocks of width 64, for tests
"""

import dataclasses
import importlib
import pkgutil
import types
import typing
from collections.abc import Mapping
from typing import Any

from zsad_jax.types import Config, choices


def names() -> list[str]:
  """Return the names of all methods, which are the names of their files."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def single_image_names() -> list[str]:
  """Return the methods that score each image alone, not a set together."""
  alone = lambda name: module(name).Method().min_set_size == 1
  return [name for name in names() if alone(name)]


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


def defaults(name: str) -> Config:
  """Return every hyperparameter of a method with its default.

  Fields whose type allows None accept both None and a value of their type.

  Args:
    name: of the method.

  Raises:
    ValueError: there is no such method.
  """
  # Not at the top: the benchmarks run without ml_collections.
  import ml_collections
  from ml_collections import config_dict

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


def paper_name(name: str) -> str:
  """Return the name of a method in the papers' tables."""
  return vars(module(name)).get("PAPER_NAME", name)


def title(name: str) -> str:
  """Return the name of a method in the project's own table."""
  return vars(module(name)).get("TITLE", paper_name(name))


def paper_variants(name: str) -> Mapping[str, str]:
  """Return the names in the papers' tables by variant of a method."""
  return vars(module(name)).get("PAPER_VARIANTS", {})


def paper_ensembles(name: str) -> Mapping[str, int]:
  """Return the number of runs by name of an ensemble in the papers' tables."""
  return vars(module(name)).get("PAPER_ENSEMBLES", {})


def variant_by_paper(name: str) -> Mapping[str, str]:
  """Return the variant of a method in the tables of each paper that differs."""
  return vars(module(name)).get("VARIANT_BY_PAPER", {})


def summed_losses(name: str) -> tuple[str, ...]:
  """Return the parts of a method's loss that are sums over images."""
  return vars(module(name)).get("SUMMED_LOSSES", ())


def depth(name: str) -> int:
  """Return the number of layers that a method's feature layers are for."""
  return vars(module(name)).get("DEPTH", 24)


def tiny_settings(name: str) -> dict[str, Any]:
  """Return the settings of a method for the small backbone of the tests."""
  return dict(vars(module(name)).get("TINY", {}))
