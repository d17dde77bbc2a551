"""What a number was measured with."""

import datetime
import os
import pathlib
import platform
import shutil
import subprocess

import jax
import numpy as np

import zsad_jax


def setting() -> dict[str, object]:
  """Versions, device and commit that a number was measured with."""
  return {
    "versions": {
      "zsad_jax": zsad_jax.__version__,
      "jax": jax.__version__,
      "numpy": np.__version__,
      "python": platform.python_version(),
    },
    "device": jax.devices()[0].device_kind,
    "commit": _commit(),
    "date": datetime.date.today().isoformat(),
  }


def default_cache_dir() -> str:
  """Returns the folder for what the package makes itself; not created."""
  chosen = os.environ.get("ZSAD_JAX_CACHE")
  if chosen:
    return os.path.abspath(chosen)
  base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return os.path.join(os.path.abspath(base), "zsad_jax")


def _commit():
  """The commit of the source, "" where it is not known."""
  root = pathlib.Path(__file__).parents[2]
  if not (root / ".git").exists() or not shutil.which("git"):
    return ""
  done = subprocess.run(
    ["git", "describe", "--always", "--dirty"],
    cwd=root,
    capture_output=True,
    text=True,
  )
  return done.stdout.strip()
