"""Frozen backbones, one folder each; a folder needs no entry elsewhere.

A folder has a module `load` that implements `Loader`. A backbone is a pytree
that implements `types.ImageBackbone`, and `types.TextBackbone` as well if it
has a text encoder. If its weights are published, `load` also has a sequence
`PUBLISHED` and functions `fetch` and `identify`, see `clip.load`. A module with
a sequence `CONVERTIBLE` of names has a function `convert`, see `sam.load`.
"""

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import jax

from zsad_jax import types
from zsad_jax.backbones.published_weights import Published
from zsad_jax.layers import kernels
from zsad_jax.runtime import copies, digests

DTYPES = ("float32", "bfloat16")  # Of the matrix products.


@runtime_checkable
class Loader(Protocol):
  """Interface of the module `load` in a backbone's folder.

  Attributes:
    NAMES: values of `config.backbone.name` that the module loads.
    NOTES: remarks to print with the results, by name; names may be left out.
  """

  NAMES: Sequence[str]
  NOTES: Mapping[str, str]

  def load(self, name: str, path: str, dtype: str) -> types.ImageBackbone:
    """Return the backbone of this name; see `backbones.load`."""
    ...


def names() -> list[str]:
  """Return all values that `config.backbone.name` can have."""
  return [*_loaders()]


def note(name: str) -> str:
  """Return the remark to print with results of a backbone, "" if none."""
  loader = _loaders().get(name)
  return loader.NOTES.get(name, "") if loader else ""


def load(
  name: str, path: str, dtype: str = "float32", attention: str = "exact"
) -> types.ImageBackbone:
  """Load a frozen backbone; the arguments are the fields of `config.backbone`.

  Args:
    name: one of `names()`.
    path: file of converted weights, or its URL; "" for weights that the
      package ships.
    dtype: data type of matrix products, one of `DTYPES`.
    attention: "exact", or "flash" for the kernel of TPUs, which has not been
      run on one; only for backbones that have `with_attention`.

  Returns:
    The backbone. If it has a text encoder, it is a `types.Backbone`.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: the name, the data type or the attention is unknown, or the
      weights in the file do not fit the name.
  """
  if dtype not in DTYPES:
    raise ValueError(
      f"config.backbone.dtype is one of {', '.join(DTYPES)}, got {dtype!r}."
    )
  if attention not in kernels.ATTENTION:
    raise ValueError(
      f"config.backbone.attention is one of {', '.join(kernels.ATTENTION)}, "
      f"got {attention!r}."
    )
  loaders = _loaders()
  if name not in loaders:
    raise ValueError(
      f"config.backbone.name: no model {name!r}; known: {', '.join(loaders)}."
    )
  backbone = loaders[name].load(name, copies.local(path), dtype)
  if attention == "exact":
    return backbone
  choose = getattr(backbone, "with_attention", None)
  if choose is None:
    raise ValueError(
      f"config.backbone.attention is {attention!r}, but {name} has no choice "
      'of attention: set "exact".'
    )
  return choose(attention)


def published() -> dict[str, Published]:
  """Return the published weights of all backbones, by their name."""
  found = {}
  for loader in dict.fromkeys(_loaders().values()):
    for entry in getattr(loader, "PUBLISHED", ()):
      if entry.name in found:
        raise ValueError(
          f"Two folders of zsad_jax/backbones publish {entry.name!r}: rename "
          "one of them."
        )
      found[entry.name] = entry
  return found


def fetch(entry: Published, output: str, *, offline: bool = False) -> str:
  """Fetch published weights and convert them; return a summary.

  Args:
    entry: of `published`.
    output: file to write, for `config.backbone.path`.
    offline: use no network, only what was downloaded before.

  Raises:
    OSError: the weights cannot be fetched, or the file cannot be written.
    ValueError: a download is corrupt, or of another model.
  """
  loader: Any = _loaders()[entry.backbone]
  return loader.fetch(entry, output, offline=offline)


def convertible() -> list[str]:
  """Return the models that `convert` reads: those of `CONVERTIBLE`."""
  found = []
  for loader in dict.fromkeys(_loaders().values()):
    found += getattr(loader, "CONVERTIBLE", ())
  return found


def convert(source: str, output: str, *, model: str) -> str:
  """Convert weights of a backbone whose folder has `CONVERTIBLE`.

  Args:
    source: file, directory or name on the hub, see the folder's `convert`.
    output: file to write, for `config.backbone.path`.
    model: one of `convertible()`.

  Returns:
    A summary in several lines.

  Raises:
    OSError: a file is missing or cannot be read or written.
    ValueError: the source is corrupt, or of another model.
  """
  loader: Any = _loaders()[model]
  return loader.convert(source, output, model=model)


def identify(name: str, path: str) -> Published | None:
  """Return the published weights that a converted file was made from.

  Args:
    name: `config.backbone.name`.
    path: `config.backbone.path`.

  Returns:
    None for weights of the package, and where the origin is not certain.
  """
  find = getattr(_loaders()[name], "identify", None)
  return find(name, copies.local(path)) if find and path else None


def digest(backbone: types.ImageBackbone) -> str:
  """Return the SHA-256 of names, shapes and values of all parameters."""
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  flat, _ = jax.tree_util.tree_flatten_with_path(backbone)
  return digests.of_arrays((name(path), leaf) for path, leaf in flat)


def _loaders() -> dict[str, Loader]:
  """Import every folder's `load`; return the modules by name of backbone."""
  found = {}
  for folder in sorted(
    m.name for m in pkgutil.iter_modules(__path__) if m.ispkg
  ):
    loader = cast(
      Loader, importlib.import_module(f"{__package__}.{folder}.load")
    )
    if twice := sorted(set(loader.NAMES) & set(found)):
      raise ValueError(
        f"Two folders of zsad_jax/backbones load {twice[0]!r}: {folder} and "
        f"{found[twice[0]].__name__.split('.')[-2]}. Rename one of them."
      )
    found |= dict.fromkeys(loader.NAMES, loader)
  return found
