"""What a number was measured with."""

import datetime
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


def _commit():
  """The commit of the source, "" where it is not known."""
  root = pathlib.Path(__file__).parent.parent
  if not (root / ".git").exists() or not shutil.which("git"):
    return ""
  done = subprocess.run(
      ["git", "describe", "--always", "--dirty"],
      cwd=root, capture_output=True, text=True,
  )  # fmt: skip
  return done.stdout.strip()
