"""Configuration files, by name or by path.

The project's own configurations are shipped with the package. They are given
by name, `adaclip` or `adaclip:paper,k40`, from any directory. Every other file
is given by its path, `configs/adaclip.py:paper`.
"""

import importlib.util
import pathlib
import types
from typing import NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from zsad_jax.runtime import environment, urls

_SHARED = "common"  # Used by the other files; no configuration by itself.


class Released(NamedTuple):
  """Checkpoints that the authors of a method have published.

  A configuration file has them as `RELEASED`.

  Attributes:
    page: where the authors publish them.
    files: for each file its name or description there, and the arguments of
      `zsad convert` for it, in addition to the method and the file.
    note: remark for the reader of a list, "" for none.
  """

  page: str
  files: tuple[tuple[str, str], ...]
  note: str = ""


class _NoneOr(flags.ArgumentParser):
  """Parser of an optional field: `None`, or a value for another parser."""

  def __init__(self, parser: flags.ArgumentParser):
    self._parser = parser

  def parse(self, argument):
    return None if argument in (None, "None") else self._parser.parse(argument)


class _ConfigParser(flags.ArgumentParser):
  """Parser of `--config`: loads the file and locks the configuration."""

  def parse(self, argument):
    return load(argument)

  def flag_type(self):
    return "configuration"


def define_flag(name: str = "config", *, required: bool = False) -> None:
  """Define a flag for a configuration and for each of its fields.

  Args:
    name: of the flag; `--<name>.field=value` sets a field.
    required: whether a command line without the flag is an error.
  """
  for kind, parser in (
    (int, flags.IntegerParser()),
    (float, flags.FloatParser()),
    (str, flags.ArgumentParser()),
  ):
    config_flags.register_flag_parser_for_type(kind | None, _NoneOr(parser))
  config_flags.DEFINE_config_file(
    name,
    help_string="Name of a configuration, or path of a file; :VARIANT follows.",
  )
  flags.FLAGS[name].parser = _ConfigParser()
  if required:
    flags.mark_flag_as_required(name)


def folder() -> pathlib.Path:
  """Return the folder of the project's own configurations."""
  return environment.resource_folder("configs")


def names() -> list[str]:
  """Return the names of the project's own configurations."""
  found = {path.stem for path in folder().glob("[a-z]*.py")}
  return sorted(found - {_SHARED})


def resolve(spec: str) -> tuple[pathlib.Path, str | None]:
  """Return the file and the variant of a configuration.

  Args:
    spec: name or path, with or without `:VARIANT`.

  Returns:
    The path of the file, and the variant; None where none is given.

  Raises:
    FileNotFoundError: there is no such name or file.
    ValueError: it is a URL.
  """
  urls.refuse(spec, "--config")
  given, colon, variant = spec.partition(":")
  path = pathlib.Path(given)
  if path.name == given and path.suffix != ".py":
    path = folder() / f"{given}.py"
    if given not in names():
      raise FileNotFoundError(
        f"There is no configuration {given!r} in {folder()}; there are "
        f"{', '.join(names())}. Other files are given by path, "
        "--config=FOLDER/FILE.py."
      )
  elif not path.is_file():
    raise FileNotFoundError(
      f"The configuration file {path} does not exist. The project's own "
      f"configurations are given by name: {', '.join(names())}."
    )
  return path, variant if colon else None


def load(spec: str) -> ml_collections.ConfigDict:
  """Return the locked configuration of a name or path.

  Args:
    spec: see `resolve`.

  Raises:
    FileNotFoundError: there is no such name or file.
    ValueError: the file has no such variant, or no `get_config`.
  """
  path, variant = resolve(spec)
  module = _execute(path)
  if not hasattr(module, "get_config"):
    raise ValueError(f"{path} does not define get_config().")
  arguments = () if variant is None else (variant,)
  return module.get_config(*arguments).lock()


def released(name: str) -> Released | None:
  """Return the authors' checkpoints that a configuration names, or None.

  Args:
    name: of a configuration of the project.
  """
  return getattr(_execute(resolve(name)[0]), "RELEASED", None)


def sibling(file: str, name: str) -> types.ModuleType:
  """Return the module `name` from the folder of another file.

  Configuration files are run by path and belong to no Python package: they
  load what they share by `common = sibling(__file__, "common")`.

  Args:
    file: path of the file that asks, `__file__`.
    name: of the other file, without `.py`.
  """
  return _execute(pathlib.Path(file).with_name(f"{name}.py"))


def _execute(path: pathlib.Path) -> types.ModuleType:
  """Run a file as a module that is not registered in `sys.modules`."""
  spec = importlib.util.spec_from_file_location(f"{path.stem}_config", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{path} is not a Python file; its name must end in .py.")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
