"""The `zsad` program."""

import pathlib
import subprocess
import sys

import pytest

import zsad_jax
from zsad_jax.runtime import launcher

ROOT = pathlib.Path(__file__).parents[2]


def test_help_lists_every_command(capsys):
  assert launcher.main(["--help"]) == 0
  text = capsys.readouterr().out
  # Found independently: the modules that call the command runner.
  root = pathlib.Path(zsad_jax.__file__).parent
  files = [*root.glob("*.py"), *root.glob("*/__main__.py")]
  commands = {
    path.parent.name if path.stem == "__main__" else path.stem
    for path in files
    if "cli.run(" in path.read_text()
  }
  assert {"train", "parity", "benchmark"} < commands
  listed = [line.split()[0] for line in text.splitlines() if line[:2] == "  "]
  assert listed == sorted(commands)
  lines = launcher.commands()
  assert all(lines.values())


def test_version(capsys):
  assert launcher.main(["--version"]) == 0
  assert capsys.readouterr().out == f"zsad_jax {zsad_jax.__version__}\n"


@pytest.mark.parametrize(
  "name, hint", [("trian", "did you mean 'train'"), ("x", "zsad --help")]
)
def test_an_unknown_command_is_one_line(name, hint, capsys):
  assert launcher.main([name]) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ") and hint in line


def test_a_command_gets_its_arguments_and_returns_its_status():
  code = "from zsad_jax.runtime import launcher; launcher.main()"
  done = subprocess.run(
    [sys.executable, "-c", code, "train", "--config=adaklip"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  last = done.stderr.splitlines()[-1]
  assert last.startswith("error: There is no configuration 'adaklip'")
