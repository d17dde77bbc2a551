"""The methods, one file each."""

import importlib
import pkgutil
import types


def names() -> list[str]:
  """Names of all methods, which are those of their files."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__))


def module(name: str) -> types.ModuleType:
  """The file of a method.

  Raises:
    ValueError: there is none of that name.
  """
  if name not in names():
    raise ValueError(
      f"There is no zsad_jax/methods/{name}.py; there are {', '.join(names())}."
    )
  return importlib.import_module(f"{__package__}.{name}")
