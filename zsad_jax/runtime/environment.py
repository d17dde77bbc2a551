"""Environment of a run: variables, versions, device, commit, folders.

All environment variables of the package are read here and, those that connect
several processes, in `cluster`:

  ZSAD_JAX_CACHE       folder for files that can be computed again
  ZSAD_JAX_DATA        folder of the data sets, by default data/
  ZSAD_JAX_MAX_PIXELS  largest number of pixels of an image
  ZSAD_DEBUG           1: errors are shown with their traceback
  ZSAD_TOKEN           token that clients of `zsad serve` have to send
"""

import datetime
import os
import pathlib
import platform
import shutil
import subprocess

import jax
import numpy as np

import zsad_jax

CACHE, DATA = "ZSAD_JAX_CACHE", "ZSAD_JAX_DATA"
MAX_PIXELS, DEBUG = "ZSAD_JAX_MAX_PIXELS", "ZSAD_DEBUG"
TOKEN = "ZSAD_TOKEN"
PLATFORMS = "JAX_PLATFORMS"
_EPATH_USE_TF = "EPATH_USE_TF"
DEFAULT_MAX_PIXELS = 200_000_000
# Platform -> extra of the package that installs it.
_EXTRAS = {"cuda": "cuda12", "gpu": "cuda12", "tpu": "tpu"}
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


def check() -> None:
  """Check the variables that a user has set.

  Raises:
    ValueError: one has a value that cannot be used.
  """
  text = os.environ.get(MAX_PIXELS)
  if text is not None and not _is_count(text):
    raise ValueError(
      f"{MAX_PIXELS} must be a whole number above 0, found {text!r}."
    )
  if os.environ.get(DEBUG, "") not in ("", "0", "1"):
    found = os.environ[DEBUG]
    raise ValueError(f"{DEBUG} must be 0 or 1, found {found!r}.")
  for name in (CACHE, DATA):
    path = os.environ.get(name)
    if path and os.path.exists(path) and not os.path.isdir(path):
      raise ValueError(f"{name} must be a folder, but {path!r} is a file.")
  if "://" in os.environ.get(CACHE, ""):
    found = os.environ[CACHE]
    raise ValueError(f"{CACHE} is {found!r}, but must be a local folder.")


def check_platform() -> None:
  """Check that the devices that JAX_PLATFORMS names exist.

  Nothing is done where it is not set; else the devices are started.

  Raises:
    ValueError: there is no such device.
  """
  chosen = os.environ.get(PLATFORMS, "")
  if not chosen:
    return
  try:
    jax.devices()
  except (AssertionError, RuntimeError) as error:
    names = [name for name in chosen.split(",") if name in _EXTRAS]
    install = f"install '.[{_EXTRAS[names[0]]}]' or " if names else ""
    raise ValueError(
      f"{PLATFORMS}={chosen}: there is no such device here; {install}unset it."
    ) from error


def reads_with_tensorflow() -> bool:
  """Return whether epath reads URLs with TensorFlow, which it prefers."""
  return os.environ.get(_EPATH_USE_TF, "").lower() not in (
    "0",
    "false",
    "no",
    "f",
  )


def read_without_tensorflow() -> None:
  """Let epath read URLs with fsspec, unless it has read one before."""
  os.environ[_EPATH_USE_TF] = "0"


def debug() -> bool:
  """Return whether errors are shown with their traceback."""
  return os.environ.get(DEBUG, "") == "1"


def token() -> str:
  """Return the token of the HTTP service; "" for none."""
  return os.environ.get(TOKEN, "")


def max_pixels() -> int:
  """Return the largest number of pixels of an image.

  A value that is no number is an error of `check`, which every command and
  every loaded run calls; this function is called at import.
  """
  text = os.environ.get(MAX_PIXELS, "")
  return int(text) if _is_count(text) else DEFAULT_MAX_PIXELS


def _is_count(text: str) -> bool:
  return text.isascii() and text.isdecimal() and int(text) > 0


def data_root() -> str:
  """Return the folder of the registered data sets: $ZSAD_JAX_DATA or data."""
  return os.environ.get(DATA) or "data"


def default_cache_dir() -> str:
  """Return the folder for files that can be computed again.

  It is $ZSAD_JAX_CACHE, or zsad_jax in the user's cache folder. It is not
  created.
  """
  chosen = os.environ.get(CACHE)
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
