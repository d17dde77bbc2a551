"""Pages of the commands: description and flags, read from the code."""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator
from unittest import mock

import prose
from absl import flags

from zsad_jax.runtime import launcher

_REQUIRED = "must have a value other than None"
_BENCHMARK = "benchmark"  # Its flags are those of the benchmark that is named.


def pages() -> Iterator[tuple[str, str]]:
  """Yield the name and the page of each command."""
  for name, line in launcher.commands().items():
    module = _module(name)
    text = inspect.cleandoc(module.__doc__ or "")
    parts = [f"# zsad {name}", prose.to_markdown(text or line)]
    if name == _BENCHMARK:
      for each in module.BENCHMARKS:
        parts += [f"## zsad {name} {each}", *_flags(module, each)]
    else:
      parts += ["## Flags", *_flags(module)]
    yield name, "\n\n".join(parts) + "\n"


def overview() -> str:
  """Return the page that lists the commands."""
  rows = [
    f"[`zsad {name}`](commands/{name}.myst)\n: {prose.escape_markdown(line)}"
    for name, line in launcher.commands().items()
  ]
  head = (
    "# Commands\n\nEvery command, with all its flags as `zsad COMMAND --help` "
    "prints them. `python -m zsad_jax.COMMAND` is the same as `zsad COMMAND`; "
    "`--a_flag` may be written as `--a-flag`."
  )
  toctree = "```{toctree}\n:hidden:\n:glob:\n\ncommands/*\n```"
  return "\n\n".join([head, *rows, toctree]) + "\n"


def _module(name):
  package = importlib.import_module(f"zsad_jax.{name}")
  if hasattr(package, "__path__"):
    return importlib.import_module(f"zsad_jax.{name}.__main__")
  return package


def _flags(module, *arguments: str) -> list[str]:
  """Return the entries of the flags of a command, the required ones first."""
  with defined(module, *arguments) as found:
    entries = [(not _is_required(f), f.name, _entry(f)) for f in found]
  return [entry for *_, entry in sorted(entries)]


@contextlib.contextmanager
def defined(module, *arguments: str) -> Iterator[list[flags.Flag]]:
  """Define the flags of a command, and remove them at the end.

  Args:
    module: of the command.
    *arguments: command line.
  """
  before = set(flags.FLAGS)
  try:
    with mock.patch.object(sys, "argv", [module.__name__, *arguments]):
      module.define_flags()
    yield [flags.FLAGS[name] for name in set(flags.FLAGS) - before]
  finally:
    for name in set(flags.FLAGS) - before:
      delattr(flags.FLAGS, name)


def _is_required(flag: flags.Flag) -> bool:
  return any(_REQUIRED in each.message for each in flag.validators)


def _entry(flag: flags.Flag) -> str:
  """Return the entry of a flag in a list of definitions."""
  text = prose.escape_markdown(" ".join((flag.help or "").split()))
  notes = []
  if values := getattr(flag.parser, "enum_values", None):
    notes.append(f"One of {', '.join(f'`{value}`' for value in values)}.")
  if _is_required(flag):
    notes.append("Required.")
  elif flag.default not in (None, "", [], False):
    value = flag.default
    value = ",".join(map(str, value)) if isinstance(value, list) else value
    notes.append(f"Default: `{value}`.")
  return f"`{_usage(flag)}`\n: {' '.join([text, *notes])}"


def _usage(flag: flags.Flag) -> str:
  if flag.boolean:
    return f"--[no]{flag.name}"
  kind = flag.flag_type()
  names = {"int": "NUMBER", "float": "NUMBER"}
  value = "A,B,..." if "list" in kind else names.get(kind, "TEXT")
  return f"--{flag.name}={value}"
