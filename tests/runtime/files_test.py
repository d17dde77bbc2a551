"""Files and messages of one or several processes."""

import logging
import os

import pytest

from zsad_jax.runtime import cli, console, distributed, files


@pytest.fixture
def secondary(monkeypatch):
  """Acts as a process that is not the primary one."""
  monkeypatch.setattr(distributed, "is_primary", lambda: False)
  yield
  console.configure()


def test_a_file_is_complete_or_as_before(tmp_path, monkeypatch):
  path = tmp_path / "new" / "file.txt"
  files.write_text(path, "first\r\n")
  assert path.read_bytes() == b"first\r\n"

  def full(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  with pytest.raises(OSError, match="Cannot write the file: No space") as error:
    files.write_text(path, "second")
  assert error.value.filename == str(path)
  assert path.read_bytes() == b"first\r\n"
  assert list(path.parent.iterdir()) == [path]


def test_other_processes_write_local_files_only(secondary, tmp_path):
  files.write_text(tmp_path / "result", "x")
  files.write_local_bytes(tmp_path / "cache", b"x")
  assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_other_processes_show_errors_only(secondary, capsys):
  log = logging.getLogger("zsad_jax.module")
  with cli._console():
    print("result")
    log.info("progress")
    log.error("broken")
  print("after")
  out, err = capsys.readouterr()
  assert (out, err) == ("after\n", "broken\n")


def test_the_primary_process_prints_plain_messages(capsys):
  log = logging.getLogger("zsad_jax.module")
  with cli._console():
    print("result")
    log.info("progress of %s", "a pass")
    log.warning("warning: %d", 1)
    log.debug("detail")
  out, err = capsys.readouterr()
  assert (out, err) == ("result\nprogress of a pass\nwarning: 1\n", "")
