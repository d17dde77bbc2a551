"""A new data set is one entry: shown in a copy of the package."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from PIL import Image

import zsad_jax

ENTRY = '''
"""A data set in the plain layout."""

from zsad_jax.datasets.entries import Entry

ENTRIES = {
  "toy": Entry(
    title="Toy parts",
    folders=("toy", "toy_parts"),
    source="https://example.org/toy",
    licence="CC0",
    citation="Doe, 2024",
  )
}
'''


@pytest.fixture(scope="module")
def package(tmp_path_factory):
  """Folder with a copy of the package in which one file was added."""
  folder = tmp_path_factory.mktemp("copy")
  root = pathlib.Path(zsad_jax.__file__).parent
  ignored = shutil.ignore_patterns("*.safetensors", "__pycache__")
  shutil.copytree(root, folder / "zsad_jax", ignore=ignored)
  entry = folder / "zsad_jax" / "datasets" / "entries" / "toy.py"
  entry.write_text(ENTRY.lstrip())
  return folder


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
  """A data set in the plain layout: two normal, one anomalous image."""
  root = tmp_path_factory.mktemp("data")
  for name, color in (
    ("normal/0.png", "gray"),
    ("normal/1.png", "white"),
    ("anomalous/2.png", "blue"),
  ):
    write(root / "toy" / name, Image.new("RGB", (8, 8), color))
  mask = Image.new("L", (8, 8))
  mask.putpixel((3, 3), 255)
  write(root / "toy/masks/2_mask.png", mask)
  return root


def write(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path)


def run(package, *arguments):
  """Return the output of a Python process that imports the copy."""
  result = subprocess.run(
    [sys.executable, *arguments],
    cwd=package,
    env=os.environ | {"PYTHONPATH": str(package)},
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout


def data(package, *arguments):
  return run(package, "-m", "zsad_jax.data", *arguments)


@pytest.mark.slow
def test_it_is_listed(package, data_root):
  listed = data(package, "list", f"--data_root={data_root}")
  (line,) = [x for x in listed.splitlines() if x.startswith("toy ")]
  assert "Toy parts" in line and str(data_root / "toy") in line
  table = data(package, "list", "--markdown")
  assert "| `toy` | Toy parts |" in table


def test_it_is_verified(package, data_root):
  root = data_root / "toy"
  printed = data(package, "verify", "--dataset=toy", f"--root={root}")
  assert "toy: 0/2/1 images" in printed and "Complete." in printed


def test_it_is_opened_in_any_common_layout(package, data_root):
  code = (
    "from zsad_jax.datasets import registry\n"
    f"data = registry.open_dataset('toy', data_root={str(data_root)!r})\n"
    "names = registry.prompt_names(data)\n"
    "print(data.name, data.counts, data.class_names, data.notes, names)"
  )
  expected = "toy (0, 2, 1) ('toy',) () ('toy',)\n"
  assert run(package, "-c", code) == expected
  data(package, "index", "--dataset=toy", f"--root={data_root / 'toy'}")
  assert (data_root / "toy" / "meta.json").is_file()
  assert run(package, "-c", code) == expected


def test_a_name_is_registered_once(package):
  copy = package / "zsad_jax" / "datasets" / "entries" / "twice.py"
  copy.write_text(ENTRY.lstrip())
  code = (
    "try:\n"
    "  from zsad_jax.datasets import registry\n"
    "except ValueError as error:\n"
    "  print(error)"
  )
  try:
    printed = run(package, "-c", code)
  finally:
    copy.unlink()
  assert "twice: data set 'toy' is already registered" in printed
