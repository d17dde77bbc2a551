"""The methods, one file each.

A file has a class `Method` and, in its docstring, a table of the paper's
equations. Optional are PAPER_NAME (the method's name in the papers' tables),
PAPER_VARIANTS (names of its ablations there) and TINY (settings for a backbone
of three blocks of width 64, for tests).
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


def tiny_settings(name: str) -> dict[str, Any]:
  """Return the settings of a method for the small backbone of the tests."""
  return dict(vars(module(name)).get("TINY", {}))
