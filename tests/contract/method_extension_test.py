"""A method is two files: methods/NAME.py and configs/NAME.py.

The tests copy the project, add a method under a new name and change nothing
else. The method is AnomalyCLIP, so that only its name is new.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NAME, PAPER_NAME = "toy_clip", "ToyCLIP"
ORIGINAL = "anomalyclip"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
  """A copy of the project with one more method."""
  folder = tmp_path_factory.mktemp("project")
  caches = shutil.ignore_patterns("__pycache__")
  for name in ("zsad_jax", "configs"):
    shutil.copytree(ROOT / name, folder / name, ignore=caches)
  (folder / "data").symlink_to(ROOT / "data")
  (folder / "tests").mkdir()
  for name in ("__init__.py", "conftest.py", "learning.py"):
    shutil.copy(ROOT / "tests" / name, folder / "tests")
  (folder / "tests" / "goldens").symlink_to(ROOT / "tests" / "goldens")
  for name in ("contract", "helpers"):
    source = ROOT / "tests" / name
    shutil.copytree(source, folder / "tests" / name, ignore=caches)
  for part in ("zsad_jax/methods", "configs"):
    text = (folder / part / f"{ORIGINAL}.py").read_text(encoding="utf-8")
    text = re.sub(rf"\b{ORIGINAL}\b", NAME, text)
    text = text.replace(
      'PAPER_NAME = "AnomalyCLIP"', f'PAPER_NAME = "{PAPER_NAME}"'
    )
    (folder / part / f"{NAME}.py").write_text(text, encoding="utf-8")
  return folder


def run(project, *arguments):
  """Run Python in the copy; return its output."""
  done = subprocess.run(
    [sys.executable, *arguments],
    cwd=project,
    env={**os.environ, "PYTHONPATH": str(project)},
    capture_output=True,
    text=True,
  )
  output = done.stdout + done.stderr
  assert done.returncode == 0, output
  return output


@pytest.mark.slow
def test_a_new_method_passes_the_contract(project):
  options = ("-q", "-p", "no:cacheprovider", "-k", NAME)
  tests = ("methods_test.py", "structure_test.py")
  paths = [f"tests/contract/{name}" for name in tests]
  output = run(project, "-m", "pytest", *options, *paths)
  # The contract (8), equation table, length and configurations.
  assert int(re.search(r"(\d+) passed", output)[1]) >= 11, output


LISTED = f"""
import pathlib, sys
import zsad_jax
assert pathlib.Path(zsad_jax.__file__).parent.parent == pathlib.Path.cwd()
from zsad_jax import methods
assert {NAME!r} in methods.names()
assert methods.paper_name({NAME!r}) == {PAPER_NAME!r}
assert methods.tiny_settings({NAME!r})

from zsad_jax.evaluation import paper_results
name = paper_results.method_name
assert name("{NAME}_paper", few_shot=False) == {PAPER_NAME!r}
assert name("{NAME}", few_shot=True) == "{PAPER_NAME}+"
assert name("{NAME}_paper_e8", few_shot=False) == "{NAME}_paper_e8"

from zsad_jax.backbones.clip import config, model
from zsad_jax.benchmark import epochs, methods as benchmark
sizes = config.ClipConfig(32, 28, 14, 64, 24, 64, 12)
backbone = model.random_clip(sizes, 0)
assert {NAME!r} in epochs.caching_methods(backbone, 28)
assert benchmark.make_method({NAME!r}, 12).feature_layers == (12,)

from zsad_jax.runs import run
try:
  run.make_method("none", {{}})
except ValueError as error:
  assert {NAME!r} in str(error)

from tests import learning
assert {NAME!r} not in learning.METHODS  # Nothing is recorded.
"""


@pytest.mark.slow
def test_a_new_method_is_listed_everywhere(project):
  run(project, "-c", LISTED)


def test_a_new_method_is_in_the_help_of_benchmarks(project):
  arguments = ("-m", "zsad_jax.benchmark", "breakdown", "--help")
  done = subprocess.run(
    [sys.executable, *arguments], cwd=project, capture_output=True, text=True
  )
  assert NAME in done.stdout
