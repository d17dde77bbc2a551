"""Environment of a run: versions, device, commit, folders."""

import datetime
import os
import pathlib
import platform
import shutil
import subprocess

import jax
import numpy as np

import zsad_jax

_PACKAGE = pathlib.Path(__file__).parents[1]


def setting() -> dict[str, object]:
  """Return the versions, device and commit that results are stored with."""
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
  """Return the folder for files that can be computed again.

  It is $ZSAD_JAX_CACHE, or zsad_jax in the user's cache folder. It is not
  created.
  """
  chosen = os.environ.get("ZSAD_JAX_CACHE")
  if chosen:
    return os.path.abspath(chosen)
  base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return os.path.join(os.path.abspath(base), "zsad_jax")


def resource_folder(path: str) -> pathlib.Path:
  """Return a folder of files that the project ships outside its modules.

  An installed wheel holds it inside the package, see `package_dir` in
  setup.py; a checkout and an editable installation have it next to the package.

  Args:
    path: of the folder in a checkout, such as "data/paper_results".
  """
  installed = _PACKAGE / pathlib.Path(path).name
  return installed if installed.is_dir() else _PACKAGE.parent / path


def _commit() -> str:
  """Return the commit of the source; "" where it is not known."""
  root = _PACKAGE.parent
  if not (root / ".git").exists() or not shutil.which("git"):
    return ""
  done = subprocess.run(
    ["git", "describe", "--always", "--dirty"],
    cwd=root,
    capture_output=True,
    text=True,
  )
  return done.stdout.strip()
