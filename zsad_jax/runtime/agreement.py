"""Agreement of the processes of a run about what they compute.

Processes that differ would wait for one another for ever, or give wrong
results. They compare short texts through the coordination service.
"""

import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import pathlib
import secrets
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from absl import flags

import zsad_jax
from zsad_jax.runtime import files, processes

_ROOT = pathlib.Path(zsad_jax.__file__).parent
_PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "flax", "optax")
_TIMEOUT = 300.0  # Seconds; one process may read its files more slowly.
_SHARED_TIMEOUT = 15.0  # Seconds until a file is seen by other hosts.
_NOTE = 15.0  # Seconds after which the missing processes are named.
_SHOWN = 3  # Differences in a message.
_numbers = itertools.count()

_log = logging.getLogger(__name__)


def check(stage: str, values: Mapping[str, object], advice: str) -> None:
  """Check that all processes have the same values; all have to call it.

  Args:
    stage: what is checked, such as "data".
    values: texts or numbers by name.
    advice: what to do if they differ.

  Raises:
    ValueError: they differ, or a process does not call it. The message, the
      same in all processes, names them and the values.
  """
  if processes.count() == 1:
    return
  client = processes.client()
  key = f"zsad_jax/agreement/{next(_numbers)}"
  own = {"stage": stage, **{name: str(v) for name, v in values.items()}}
  client.key_value_set(f"{key}/values/{processes.index()}", json.dumps(own))
  if processes.index() == 0:
    verdict = _verdict(_collect(client, f"{key}/values/", stage), advice)
    client.key_value_set(f"{key}/verdict", json.dumps(verdict))
  else:
    limit = int(1000 * (_TIMEOUT + _NOTE))
    verdict = json.loads(client.blocking_key_value_get(f"{key}/verdict", limit))
  if verdict:
    raise ValueError(f"The processes of this run {verdict}")


def _collect(client, prefix, stage) -> dict[int, dict[str, str]]:
  """Return the values of each process that has sent them in time."""
  start, noted = time.monotonic(), False
  while True:
    found = client.key_value_dir_get(prefix)
    values = {int(k.rpartition("/")[2]): json.loads(v) for k, v in found}
    missing = sorted({*range(processes.count())} - values.keys())
    waited = time.monotonic() - start
    if not missing or waited > _TIMEOUT:
      return values
    if waited > _NOTE and not noted:
      noted = True
      _log.info(f"Waiting for {_named(missing)} ({stage}).")
    time.sleep(min(0.01 + waited / 10, 0.5))


def _verdict(values: Mapping[int, Mapping[str, str]], advice: str) -> str:
  """Return the end of the message for values that differ, "" for none."""
  if missing := sorted({*range(processes.count())} - values.keys()):
    return (
      f"have not all come to the check of the {values[0]['stage']}: process 0 "
      f"has waited {_TIMEOUT:.0f} seconds for {_named(missing)}. Start all of "
      "them again."
    )
  differences, own = [], values[0]
  for name in sorted({name for each in values.values() for name in each}):
    other = [i for i in sorted(values) if values[i].get(name) != own.get(name)]
    if other:
      rest = f" ({_named(other[1:])} too)" if other[1:] else ""
      differences.append(
        f"{name} is {_short(own.get(name))} in process 0 and "
        f"{_short(values[other[0]].get(name))} in process {other[0]}{rest}"
      )
  if not differences:
    return ""
  more = len(differences) - _SHOWN
  also = f"; and {more} more" if more > 0 else ""
  text = "; ".join(differences[:_SHOWN])
  return f"differ: {text}{also}. {advice}"


def _named(numbers: Iterable[int]) -> str:
  """Return the names of processes."""
  names = [str(i) for i in numbers]
  shown = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
  return f"process{'es' * (len(names) > 1)} {shown}"


def _short(text: str | None) -> str:
  if text is None:
    return "missing"
  return text if len(text) <= 80 else f"{text[:77]}..."


def check_command(options: flags.FlagValues) -> None:
  """Check that all processes run the same command with the same software.

  Raises:
    ValueError: versions, the package's source, or flags differ.
  """
  if processes.count() == 1:
    return
  found = {f"version of {name}": _version(name) for name in _PACKAGES}
  check(
    "software",
    {
      "version of zsad_jax": f"{zsad_jax.__version__} ({_source_digest()})",
      **found,
      "JAX's platforms": getattr(jax.config, "jax_platforms", ""),
    },
    "Install the same versions on every host.",
  )
  check(
    "command",
    {"command": _command(), **_flag_values(options)},
    "Start the same command on every host.",
  )


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "none"


def _source_digest() -> str:
  """Return a digest of the package's Python files."""
  digest = hashlib.sha256()
  for path in sorted(_ROOT.rglob("*.py")):
    digest.update(str(path.relative_to(_ROOT)).encode() + path.read_bytes())
  return digest.hexdigest()[:8]


def _command() -> str:
  """Return the name of the command, however it was started."""
  main = sys.modules.get("__main__")
  spec = getattr(main, "__spec__", None)
  return spec.name if spec else os.path.basename(sys.argv[0])


def _flag_values(options: flags.FlagValues) -> dict[str, str]:
  """Return the values of the command's flags, each field of configurations."""
  found = {}
  for module, defined in options.flags_by_module_dict().items():
    if module.split(".")[0] == "absl":
      continue  # Logging and debugging.
    for flag in defined:
      found |= describe(f"--{flag.name}", flag.value)
  return found


def describe(name: str, value: Any) -> dict[str, str]:
  """Return a value as text by name, the fields of a configuration each."""
  if not hasattr(value, "items"):  # A ConfigDict is no Mapping.
    return {name: str(value)}
  found = {}
  for field, content in value.items():
    found |= describe(f"{name}.{field}", content)
  return found


def check_shared(folder: pathlib.Path) -> None:
  """Check that all processes see the same folder; all have to call it.

  Process 0 writes a file, which the others look for, and removes it.

  Args:
    folder: exists for process 0.

  Raises:
    ValueError: some processes do not see the file.
  """
  if processes.count() == 1:
    return
  client, key = processes.client(), f"zsad_jax/shared/{next(_numbers)}"
  if processes.index() == 0:
    name = f".shared-{secrets.token_hex(8)}"
    files.write_text(folder / name, "Written to compare folders of hosts.\n")
    client.key_value_set(key, name)
  else:
    name = client.blocking_key_value_get(key, int(1000 * _TIMEOUT))
  try:
    found = "found" if _appears(folder / name) else "missing"
    check(
      "shared folder",
      {f"the new file in {folder}": found},
      "Give a --workdir on a file system that all hosts share.",
    )
  finally:
    if processes.index() == 0:
      (folder / name).unlink(missing_ok=True)


def _appears(path: pathlib.Path) -> bool:
  """Return whether a file exists; shared file systems may show it late."""
  end = time.monotonic() + _SHARED_TIMEOUT
  while not path.exists():
    if time.monotonic() > end:
      return False
    time.sleep(0.2)
  return True
