"""The methods, one file each.

A file has a class `Method` and, in its docstring, a table of the paper's
equations. Optional constants:

  PAPER_NAME      the method's name in the papers' tables
  PAPER_VARIANTS  names of its ablations there, by variant of its configuration
  SUMMED_LOSSES   parts of the loss that are sums over images, not means
  TINY            settings for a backbone of three blocks of width 64, for tests
"""

import importlib
import pkgutil
import types
from collections.abc import Mapping
from typing import Any


def names() -> list[str]:
  """Return the names of all methods, which are those of their files."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def module(name: str) -> types.ModuleType:
  """Import the file of a method.

  Raises:
    ValueError: there is none of that name.
  """
  if name not in names():
    raise ValueError(
      f"There is no zsad_jax/methods/{name}.py; there are {', '.join(names())}."
    )
  return importlib.import_module(f"{__package__}.{name}")


def paper_name(name: str) -> str:
  """Return the name of a method in the papers' tables."""
  return vars(module(name)).get("PAPER_NAME", name)


def paper_variants(name: str) -> Mapping[str, str]:
  """Return the names in the papers' tables by variant of a method."""
  return vars(module(name)).get("PAPER_VARIANTS", {})


def summed_losses(name: str) -> tuple[str, ...]:
  """Return the parts of a method's loss that are sums over images."""
  return vars(module(name)).get("SUMMED_LOSSES", ())


def tiny_settings(name: str) -> dict[str, Any]:
  """Return the settings of a method for the small backbone of the tests."""
  return dict(vars(module(name)).get("TINY", {}))
