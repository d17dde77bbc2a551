"""Methods, one file per paper."""

import importlib
import pkgutil
import types


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
