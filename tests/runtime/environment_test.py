"""Environment variables have checked values; errors are one line."""

import os
import subprocess
import sys

import pytest

from zsad_jax.runtime import cli, environment


@pytest.mark.parametrize(
  "name, value, message",
  [
    (
      "ZSAD_JAX_MAX_PIXELS",
      "1e9",
      "must be a whole number above 0, found '1e9'",
    ),
    ("ZSAD_JAX_MAX_PIXELS", "", "must be a whole number above 0, found ''"),
    ("ZSAD_JAX_MAX_PIXELS", "0", "must be a whole number above 0, found '0'"),
    ("ZSAD_JAX_MAX_PIXELS", "-1", "must be a whole number above 0, found '-1'"),
    ("ZSAD_DEBUG", "yes", "must be 0 or 1, found 'yes'"),
    ("ZSAD_JAX_CACHE", __file__, "must be a folder, but .* is a file"),
    ("ZSAD_JAX_DATA", __file__, "must be a folder, but .* is a file"),
  ],
)
def test_a_wrong_value_is_named(monkeypatch, name, value, message):
  monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match=f"{name} {message}"):
    environment.check()
  assert environment.max_pixels() == environment.DEFAULT_MAX_PIXELS


def test_right_values_are_used(monkeypatch, tmp_path):
  monkeypatch.setenv("ZSAD_JAX_MAX_PIXELS", "1000")
  monkeypatch.setenv("ZSAD_JAX_DATA", str(tmp_path))
  monkeypatch.setenv("ZSAD_DEBUG", "1")
  environment.check()
  assert environment.max_pixels() == 1000
  assert environment.data_root() == str(tmp_path)
  assert environment.debug()


@pytest.mark.parametrize(
  "chosen, text",
  [
    ("cuda", "install '.[cuda12]' or unset it"),
    ("tpu,cpu", "install '.[tpu]' or unset it"),
    ("nonsense", "there is no such device here; unset it"),
  ],
)
def test_a_platform_that_is_not_there_is_named(monkeypatch, chosen, text):
  def fail():
    raise RuntimeError("Unable to initialize backend")

  monkeypatch.setenv("JAX_PLATFORMS", chosen)
  monkeypatch.setattr(environment.jax, "devices", fail)
  with pytest.raises(ValueError) as error:
    environment.check_platform()
  assert str(error.value).startswith(
    f"JAX_PLATFORMS={chosen}: there is no such"
  )
  assert text in str(error.value)


def test_variables_are_read_in_one_module():
  root = os.path.dirname(os.path.dirname(cli.__file__))
  found = set()
  for folder, _, names in os.walk(root):
    for name in names:
      if name.endswith(".py"):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
          text = file.read()
        if "environ.get(" in text or "getenv(" in text:
          found.add(name)
  assert found == {"environment.py", "cluster.py", "cli.py"}


# ---- Errors of commands.


@pytest.mark.parametrize(
  "error, status, text",
  [
    (ValueError("a\nb"), 1, "error: a b"),
    (OSError(28, "No space left on device", "x"), 1, "error: No space left"),
    (MemoryError(), 1, "error: There is too little memory"),
    (KeyError("k"), 70, "internal error: KeyError: 'k' ("),
  ],
)
@pytest.mark.parametrize("debug", ["", "1"])
def test_an_error_is_one_line(monkeypatch, capsys, error, status, text, debug):
  monkeypatch.setenv("ZSAD_DEBUG", debug)
  fail = cli._fail if isinstance(error, (ValueError, OSError)) else None
  fail = fail or cli._fail_internally
  with pytest.raises(SystemExit) as end:
    try:
      raise error
    except type(error) as raised:
      fail(raised)
  lines = capsys.readouterr().err.splitlines()
  assert end.value.code == status
  assert lines[-1].startswith(text)
  assert (len(lines) > 1) == bool(debug)
  assert ("Traceback" in lines[0]) == bool(debug)
  if status == 70:
    assert lines[-1].endswith("ZSAD_DEBUG=1 shows the traceback.")


COMMAND = """
from zsad_jax.runtime import cli
def main(options):
  raise KeyError("k")
cli.run(main, lambda: None)
"""


def test_a_command_ends_without_a_traceback():
  command = [sys.executable, "-c", COMMAND]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 70
  assert done.stderr.startswith("internal error: KeyError: 'k' (")
  assert done.stderr.count("\n") == 1
