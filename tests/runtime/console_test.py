"""Streams of commands."""

import subprocess
import sys

import pytest

PRINTING = """
import pathlib, sys
from zsad_jax.runtime import cli
def main(options):
  for number in range(20_000):
    print("line", number)
    if number % 100 == 0:
      print("error", number, file=sys.stderr, flush=True)
  pathlib.Path(options.arguments[0]).write_text("complete")
cli.run(main, lambda: None, arguments=True, alone=True)
"""


@pytest.mark.parametrize("closed", ["stdout", "both"])
def test_a_command_is_completed_without_its_reader(closed, tmp_path):
  file = tmp_path / "result"
  process = subprocess.Popen(
    [sys.executable, "-c", PRINTING, str(file)],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT if closed == "both" else subprocess.PIPE,
  )
  assert process.stdout.readline().startswith((b"line", b"error"))
  process.stdout.close()
  printed = process.stderr.read().decode() if process.stderr else ""
  assert process.wait() == 0, printed
  assert "Broken" not in printed
  assert file.read_text() == "complete"
