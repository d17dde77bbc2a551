r"""Execute the notebooks, each in a new temporary folder.

python notebooks/run.py                 # all of them, with small settings
python notebooks/run.py 01 03           # those whose names begin so
python notebooks/run.py --full --write  # complete; stores the outputs

The exit status is 1 if a cell of any notebook fails. `--write` replaces the
outputs in the notebooks, without paths of this machine, progress lines,
colors and metadata of the editor. Needs `pip install -e ".[notebooks]"`.
"""

import argparse
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

FOLDER = pathlib.Path(__file__).resolve().parent
SMALL = "ZSAD_NOTEBOOK_SMALL"  # Read by the notebooks: 1 for small settings.
METADATA = {
  "kernelspec": {
    "display_name": "Python 3",
    "language": "python",
    "name": "python3",
  },
  # Cells with %%bash are highlighted as such in the documentation.
  "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}

_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_PROGRESS = re.compile(r"^ *[A-Z][^:\n]*: \d+/\d+ images.*\n", re.M)


def find(names: list[str]) -> list[pathlib.Path]:
  """Return the notebooks whose names begin with one of `names`, or all.

  Raises:
    SystemExit: a name fits no notebook.
  """
  paths = sorted(FOLDER.glob("*.ipynb"))
  for name in names:
    if not any(path.name.startswith(name) for path in paths):
      found = ", ".join(path.stem for path in paths)
      raise SystemExit(f"error: No notebook begins with {name}: {found}.")
  return [p for p in paths if not names or p.name.startswith(tuple(names))]


def execute(path: pathlib.Path, folder: pathlib.Path, timeout: int) -> Any:
  """Run all cells of a notebook.

  Args:
    path: of the notebook.
    folder: working directory of its kernel.
    timeout: of a cell, in seconds.

  Returns:
    The notebook with its outputs.

  Raises:
    nbclient.exceptions.CellExecutionError: a cell failed.
  """
  import nbclient
  import nbformat

  notebook = nbformat.read(path, as_version=4)
  for cell in notebook["cells"]:
    if cell["cell_type"] == "code":
      cell["outputs"], cell["execution_count"] = [], None
  client = nbclient.NotebookClient(
    notebook,
    timeout=timeout,
    kernel_name="python3",
    record_timing=False,
    extra_arguments=["--log-level=ERROR"],
    resources={"metadata": {"path": str(folder)}},
  )
  return client.execute()


def replacements(folder: pathlib.Path) -> dict[str, str]:
  """Return what is written instead of paths of this machine.

  Args:
    folder: working directory of the kernel.

  Returns:
    New text by path; a path comes before those that contain it.
  """
  cache = os.environ.get("ZSAD_JAX_CACHE")
  found = {
    f"{folder.resolve()}/": "",
    f"{folder}/": "",
    str(folder.resolve()): ".",
    str(folder): ".",
    str(cache or pathlib.Path.home() / ".cache/zsad_jax"): "CACHE",
    str(FOLDER.parent): "zsad_jax",
    sys.prefix: "PYTHON",
    sys.base_prefix: "PYTHON",
    str(pathlib.Path.home()): "~",
  }
  return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def clean(notebook: Any, paths: Mapping[str, str]) -> None:
  """Remove what differs between machines from a notebook, in place.

  Args:
    notebook: executed.
    paths: see `replacements`.
  """
  notebook["metadata"] = METADATA
  for cell in notebook["cells"]:
    cell["metadata"] = {}
    if "outputs" in cell:
      cell["outputs"] = _merge(cell["outputs"])
    for output in cell.get("outputs", []):
      if "metadata" in output:
        output["metadata"] = {}
      if "text" in output:
        output["text"] = _clean_text(output["text"], paths)
      _clean_data(output.get("data", {}), paths)


def _clean_data(data: Any, paths: Mapping[str, str]) -> None:
  for kind in [kind for kind in data if kind.startswith("text/")]:
    data[kind] = _clean_text(data[kind], paths)
  # Images of Pillow are stored in two formats.
  images = [kind for kind in data if kind.startswith("image/")]
  for kind in sorted(images, key=lambda kind: len(data[kind]))[1:]:
    del data[kind]


def _clean_text(text: str, paths: Mapping[str, str]) -> str:
  for path, new in paths.items():
    text = text.replace(path, new)
  return _PROGRESS.sub("", _COLORS.sub("", text))


def _merge(outputs: list[Any]) -> list[Any]:
  """Join successive outputs of the same stream; leave out empty ones."""
  merged: list[Any] = []
  for output in outputs:
    if output["output_type"] == "stream":
      if not output["text"]:
        continue
      last = merged[-1] if merged else {}
      if last.get("name") == output["name"]:
        last["text"] += output["text"]
        continue
    merged.append(output)
  return merged


def run(path: pathlib.Path, *, write: bool, timeout: int) -> bool:
  """Run a notebook and print its time, or its error.

  Args:
    path: of the notebook.
    write: store the outputs.
    timeout: of a cell, in seconds.

  Returns:
    Whether all cells ran.
  """
  import nbclient
  import nbformat

  start = time.perf_counter()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
    folder = pathlib.Path(name)
    try:
      notebook = execute(path, folder, timeout)
    except nbclient.exceptions.CellExecutionError as error:
      print(f"{path.name}: failed\n{error}", flush=True)
      return False
    if write:
      clean(notebook, replacements(folder))
      nbformat.validate(notebook)
      nbformat.write(notebook, path)
  print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
  return True


def main() -> int:
  """Run the notebooks that the command line names."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("names", nargs="*", help="such as 01; default: all")
  parser.add_argument("--full", action="store_true", help="complete settings")
  parser.add_argument("--write", action="store_true", help="store the outputs")
  parser.add_argument(
    "--timeout", type=int, default=3600, help="of a cell, in seconds"
  )
  options = parser.parse_args()
  os.environ[SMALL] = "0" if options.full else "1"
  done = [
    run(path, write=options.write, timeout=options.timeout)
    for path in find(options.names)
  ]
  return 0 if all(done) else 1


if __name__ == "__main__":
  sys.exit(main())
