"""Fixtures of all tests; jaxtyping checks shape annotations in every test."""

import importlib.metadata
import os
import pathlib
import tempfile

import hypothesis
import jaxtyping
import numpy as np
import pytest

# Compiled programs are shared by tests and by the commands they start.
_cache = tempfile.TemporaryDirectory()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Most of the tests' time is compilation; their arrays are tiny. Commands set
# the second flag themselves: programs compiled here have to be the same.
_flags = "--xla_backend_optimization_level=0"
_flags += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
if importlib.metadata.version("jaxlib").startswith("0.10."):
  # An unknown flag aborts the process; later versions have no such flag.
  _flags += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _flags)

# Busy machines are slow.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# Before the hook: modules imported under the hook are compiled without cache.
import flax  # noqa: E402, F401
import optax  # noqa: E402, F401
import orbax.checkpoint  # noqa: E402, F401
import scipy.ndimage  # noqa: E402, F401
import tensorflow  # noqa: E402, F401
import transformers  # noqa: E402, F401

# Before anything imports the package.
jaxtyping.install_import_hook("zsad_jax", "beartype.beartype")

GOLDENS = pathlib.Path(__file__).parent / "goldens"


def pytest_addoption(parser):
  parser.addoption("--slow", action="store_true", help="Run slow tests, too.")


def pytest_configure(config):
  config.addinivalue_line("markers", "slow: run with --slow only")


def pytest_collection_modifyitems(config, items):
  """Skip slow tests, whose code others run as well, unless asked for."""
  if not config.getoption("--slow"):
    for item in items:
      if item.get_closest_marker("slow"):
        item.add_marker(pytest.mark.skip(reason="slow; needs --slow"))


@pytest.fixture(scope="session", autouse=True)
def console():
  """Print messages to standard output, as in commands."""
  from zsad_jax.runtime import console

  console.configure()


@pytest.fixture(scope="session", autouse=True)
def highest_precision():
  """Compute matrix products in full float32 on every device."""
  import jax

  jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def tiny():
  """Return the state dict of the tiny CLIP, OpenAI's names, float16."""
  with np.load(GOLDENS / "clip_tiny.npz") as golden:
    return {
      name.removeprefix("w/"): golden[name]
      for name in golden.files
      if name.startswith("w/")
    }


@pytest.fixture(scope="session")
def small_clip():
  """Return a CLIP with random weights that compiles fast, 4 x 4 patches."""
  from zsad_jax.backbones.clip import config, model

  sizes = config.ClipConfig(
    embed_dim=32,
    image_size=32,
    patch_size=8,
    vision_width=64,
    vision_layers=3,
    text_width=64,
    text_layers=3,
  )
  return model.random_clip(sizes, 0)
