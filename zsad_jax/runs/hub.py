"""Runs on the Hugging Face hub, hf:owner/name, as `zsad push` uploads them."""

import functools
import logging
import os
from collections.abc import Iterable

from zsad_jax.runs import model_file
from zsad_jax.runtime import hub

CONFIG = "config.json"
_PATTERNS = (
  CONFIG,
  model_file.FILE,
  "threshold.json",
  "threshold_few_shot.json",
  "calibrations/*",
  "README.md",
)
_log = logging.getLogger(__name__)


def local(workdir: str | os.PathLike[str]) -> str | os.PathLike[str]:
  """Return the folder of a run; one on the hub is fetched once in a process.

  Args:
    workdir: folder or URL, which is returned unchanged, or hf:owner/name.

  Raises:
    ValueError: the name is invalid, or a file is corrupt.
    OSError: the run cannot be fetched, or is none.
  """
  name = os.fspath(workdir)
  return _fetched(name) if hub.split(name) else workdir


@functools.cache
def _fetched(name: str) -> str:
  found = fetch(name)
  _log.info("Run %s, commit %s.", name, found.commit)
  return str(found.path)


def fetch(name: str, *, offline: bool = False) -> hub.Snapshot:
  """Return the verified files of a run on the hub.

  Args:
    name: hf:owner/name or hf:owner/name@revision.
    offline: use no network, only what was downloaded before.

  Raises:
    ValueError: the name is invalid, or a file is corrupt.
    OSError: the run cannot be fetched, or is none.
  """
  found = hub.split(name)
  if not found:
    raise ValueError(f"{name} is no run on the hub; expected hf:OWNER/NAME.")
  repo, revision = found

  def choose(names: Iterable[str]) -> list[str]:
    listed = list(names)
    for file in (CONFIG, model_file.FILE):
      if file not in listed:
        raise hub.HubError(
          f"{name} is no run of `zsad push`: the repository has no {file}."
        )
    return hub.matching(listed, _PATTERNS)

  return hub.fetch(repo, choose, revision=revision, offline=offline)
