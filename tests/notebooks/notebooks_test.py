"""Rules about the committed notebooks; `notebooks/run.py` executes them."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

from tests.contract import docs_test, vocabulary_test

ROOT = pathlib.Path(__file__).parents[2]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COLAB = "https://colab.research.google.com"
LARGEST = 2**20  # Bytes of a notebook.
# Root folders of absolute paths; Colab's "/content" is no path of an author.
MACHINE = re.compile(
  r"(?<![\w.~:/])/(?:home|mnt|opt|private|root|tmp|usr|Users|var|work)/|[A-Z]:\\"
)


def load_runner():
  """Return `notebooks/run.py` as a module."""
  path = ROOT / "notebooks" / "run.py"
  spec = importlib.util.spec_from_file_location("notebooks_run", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def source(cell):
  return "".join(cell["source"])


def strings(value):
  """Yield all strings below a value of a JSON file, images left out."""
  if isinstance(value, dict):
    for key, child in value.items():
      if not key.startswith("image/"):
        yield from strings(child)
  elif isinstance(value, list):
    yield "".join(x for x in value if isinstance(x, str))
    for child in value:
      if not isinstance(child, str):
        yield from strings(child)
  elif isinstance(value, str):
    yield value


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
  return request.param


@pytest.fixture
def cells(path):
  return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.fixture
def code(cells):
  return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_six_notebooks():
  assert [path.name[:2] for path in PATHS] == [f"{i:02}" for i in range(1, 7)]


def test_the_format_is_valid(path):
  nbformat = pytest.importorskip("nbformat")
  nbformat.validate(nbformat.read(path, as_version=4))


def test_outputs_are_those_of_one_run_without_errors(code):
  counts = [cell["execution_count"] for cell in code]
  assert counts == list(range(1, len(code) + 1))
  outputs = [output for cell in code for output in cell["outputs"]]
  kinds = {output["output_type"] for output in outputs}
  assert "stream" in kinds
  assert kinds <= {"stream", "display_data", "execute_result"}


def test_files_are_small(path):
  assert path.stat().st_size <= LARGEST


def test_nothing_of_the_machine_is_stored(path, cells):
  notebook = json.loads(path.read_text(encoding="utf-8"))
  assert notebook["metadata"] == load_runner().METADATA
  for cell in cells:
    assert not cell["metadata"]
    for text in strings(cell.get("outputs", [])):
      assert not MACHINE.search(text), text
    assert not MACHINE.search(source(cell).replace("'/mnt/", ""))


def test_the_badge_opens_the_notebook(path, cells):
  address = re.search(
    r'REPOSITORY = "https://github.com/(.+)"', source(cells[2])
  )
  target = f"{COLAB}/github/{address[1]}/blob/main/notebooks/{path.name}"
  badge = f"[![Open In Colab]({COLAB}/assets/colab-badge.svg)]({target})\n"
  assert source(cells[0]).startswith(badge)


def test_all_notebooks_install_alike():
  first = [json.loads(p.read_text("utf-8"))["cells"][1:3] for p in PATHS]
  assert len({tuple(map(source, pair)) for pair in first}) == 1
  install = source(first[0][1])
  assert 'if "google.colab" in sys.modules:' in install
  assert "git+" in install and "cuda12" in install and "tpu" in install


def test_prose_comes_before_code_and_captions_after_figures(cells):
  assert cells[0]["cell_type"] == "markdown"
  assert re.search(r"^# \d\. ", source(cells[0]), re.M)
  number = 0
  for before, cell, after in zip(cells, cells[1:], [*cells[2:], {}]):
    if cell["cell_type"] == "code":
      assert before["cell_type"] == "markdown", source(cell)
    images = [o for o in cell.get("outputs", []) if "'image/" in str(o)]
    if images:
      number += 1
      assert source(after).startswith(f"*Figure {number}. ")


def test_commands_and_flags_exist(cells, monkeypatch):
  fences = [
    f"```\n{source(cell)}\n```"
    for cell in cells
    if source(cell).startswith("%%bash")
  ]
  prose = [source(cell) for cell in cells if cell["cell_type"] == "markdown"]
  for command, rest in docs_test.commands("\n".join([*fences, *prose])):
    assert importlib.util.find_spec(f"zsad_jax.{command}"), command
    arguments = [a for a in rest.split() if not a.startswith("-")]
    found = re.findall(r"(?<!\S)--(\w+)", rest)
    if not found:
      continue
    known = docs_test.defined_flags(command, arguments, monkeypatch)
    assert not set(found) - known - {"help"}, command


def test_relative_links_exist(path, cells):
  for cell in cells:
    if cell["cell_type"] == "markdown":
      for link in re.findall(r"\]\(([^)\s]+)\)", source(cell)):
        if not re.match("[a-z]+:", link):
          assert (path.parent / link.partition("#")[0]).exists(), link


def test_files_of_the_package_are_not_replaced(cells):
  text = "\n".join(source(cell) for cell in cells)
  written = re.findall(r"^%%writefile (?:project/)?(\S+)", text, re.M)
  assert not [name for name in written if (ROOT / name).exists()]


def test_words_are_the_fields_terms(cells, tmp_path):
  prose = [source(cell) for cell in cells if cell["cell_type"] == "markdown"]
  page = tmp_path / "page.md"
  page.write_text("\n\n".join(prose), encoding="utf-8")
  assert not vocabulary_test.hits(page, tmp_path)


def test_the_kernel_opens_no_device_before_the_last_command(code):
  """A TPU serves one process at a time: the commands need it first."""
  commands = [
    i for i, c in enumerate(code) if re.search(r"^zsad ", source(c), re.M)
  ]
  opening = [i for i, c in enumerate(code) if "zsad_jax.load(" in source(c)]
  assert not opening or min(opening) > max(commands)


def test_paths_progress_and_metadata_are_removed(tmp_path):
  runner = load_runner()
  output = {
    "output_type": "stream",
    "name": "stdout",
    "text": f"{tmp_path}/runs/a\n  Evaluation: 8/700 images, 0:09 left",
  }
  more = {**output, "text": f"\nin {tmp_path}\n"}
  shown = {
    "output_type": "display_data",
    "data": {
      "text/plain": f"<{ROOT}/data>",
      "image/png": "AAAAA",
      "image/jpeg": "AAAA",
    },
    "metadata": {"image/png": {"width": 3}},
  }
  cell = {
    "cell_type": "code",
    "metadata": {"execution": {"iopub.status.busy": "now"}},
    "outputs": [output, more, {**output, "text": ""}, shown],
  }
  notebook = {"metadata": {"widgets": {}}, "cells": [cell]}
  runner.clean(notebook, runner.replacements(tmp_path))
  assert notebook["metadata"] == runner.METADATA and cell["metadata"] == {}
  stream, image = cell["outputs"]
  assert stream["text"] == "runs/a\nin .\n"
  assert image["data"] == {
    "text/plain": "<zsad_jax/data>",
    "image/jpeg": "AAAA",
  }
  assert image["metadata"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("notebook", PATHS, ids=lambda path: path.stem)
def test_the_cells_run(notebook):
  pytest.importorskip("nbclient")
  command = [sys.executable, ROOT / "notebooks/run.py", notebook.name]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_cell_that_fails_is_an_error(tmp_path):
  nbformat = pytest.importorskip("nbformat")
  pytest.importorskip("nbclient")
  runner = load_runner()
  for text, runs in (("false", False), ("true", True)):
    cell = nbformat.v4.new_code_cell(f"%%bash\n{text}")
    path = tmp_path / "notebook.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    assert runner.run(path, write=False, timeout=60) is runs
