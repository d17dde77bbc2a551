"""Frozen backbones, one folder each.

A folder has a module `load` with

  NAMES             what `config.backbone.name` can be
  NOTES             by name, a sentence to print with results; optional names
  load(name, path, dtype)  the backbone, a pytree that implements
                           `types.ImageBackbone`, and `types.TextBackbone`
                           where it has a text encoder
"""

import importlib
import pkgutil
import types as pytypes

from zsad_jax import types

DTYPES = ("float32", "bfloat16")  # Of the matrix products.


def folders() -> list[str]:
  """Returns the names of all backbone folders."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg)


def _module(folder: str) -> pytypes.ModuleType:
  return importlib.import_module(f"{__package__}.{folder}.load")


def names() -> list[str]:
  """Returns every value that `config.backbone.name` can have."""
  return [name for folder in folders() for name in _module(folder).NAMES]


def note(name: str) -> str:
  """Returns the sentence to print with results of a backbone, "" for none."""
  for folder in folders():
    if name in _module(folder).NOTES:
      return _module(folder).NOTES[name]
  return ""


def load(name: str, path: str, dtype: str = "float32") -> types.ImageBackbone:
  """Returns the frozen backbone that `config.backbone` names.

  Args:
    name: one of `names()`.
    path: file of converted weights; "" where the package has them.
    dtype: of matrix products, one of `DTYPES`.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: unknown name or type, or the file holds a model of other sizes.
  """
  if dtype not in DTYPES:
    raise ValueError(
      f"config.backbone.dtype is one of {', '.join(DTYPES)}, got {dtype!r}."
    )
  for folder in folders():
    if name in _module(folder).NAMES:
      return _module(folder).load(name, path, dtype)
  raise ValueError(
    f"config.backbone.name: no model {name!r}; known: {', '.join(names())}."
  )
