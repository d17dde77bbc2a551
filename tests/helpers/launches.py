"""The small run, with a record of how its training steps are launched.

python -m tests.helpers.launches --workdir=DIR [arguments of small_run]

Writes DIR/launches_<process>.json: for each step whether the step before it was
finished when it was launched, and how often the host has waited for a device
since then.
"""

import json
import pathlib
import sys

import jax
from jax.experimental import multihost_utils

from tests.helpers import small_run
from zsad_jax import train
from zsad_jax.runtime import processes

records, waits = [], []


def counted(function):
  """Return a function whose calls are counted."""

  def wrapper(*args, **kwargs):
    waits.append(function.__name__)
    return function(*args, **kwargs)

  return wrapper


def recorded(update):
  """Return the training step, with a record of each launch."""
  losses = []

  def wrapper(*args):
    if losses:
      records.append({"ready": losses[-1].is_ready(), "waits": [*waits]})
    state, found = update(*args)
    losses[:] = [found["loss"]]
    waits.clear()
    return state, found

  return wrapper


def main():
  jit = jax.jit

  def watched(function, **options):
    compiled = jit(function, **options)
    named_update = getattr(function, "__name__", "") == "update"
    return recorded(compiled) if named_update else compiled

  jax.jit = watched
  for module, name in (
    (jax, "block_until_ready"),
    (jax, "device_get"),
    (multihost_utils, "process_allgather"),
    (multihost_utils, "sync_global_devices"),
  ):
    setattr(module, name, counted(getattr(module, name)))
  train._finish = lambda *_: None
  folder = next(a for a in sys.argv if a.startswith("--workdir="))[10:]
  try:
    small_run.command()
  finally:
    path = pathlib.Path(folder) / f"launches_{processes.index()}.json"
    path.write_text(json.dumps(records))


if __name__ == "__main__":
  main()
