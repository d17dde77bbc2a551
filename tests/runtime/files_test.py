"""Files and messages of one or several processes."""

import concurrent.futures
import logging
import os
import signal
import subprocess
import sys

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


def test_writers_of_one_number_do_not_collide(tmp_path, monkeypatch):
  """As threads of a process, or processes of hosts that share a folder."""
  monkeypatch.setattr(os, "getpid", lambda: 1)
  path, contents = tmp_path / "file", [bytes([i]) * 2**16 for i in range(16)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda c: files.write_local_bytes(path, c), contents * 4))
  assert path.read_bytes() in contents
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["set", "[a]*", "x" * 200, "\u00e4" * 100])
def test_only_drafts_of_killed_processes_are_removed(tmp_path, name):
  target = tmp_path / name
  code = "import pathlib, sys, time; from zsad_jax.runtime import files\n"
  code += "with files.draft(pathlib.Path(sys.argv[1])) as draft:\n"
  code += "  print(draft, flush=True)\n  time.sleep(600)"
  process = subprocess.Popen(
    [sys.executable, "-c", code, target], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout
  other = process.stdout.readline().strip()
  with files.draft(target) as draft:
    assert {str(p) for p in tmp_path.iterdir()} == {str(draft), other}
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert [str(p) for p in tmp_path.iterdir()] == [other]
  with files.draft(target) as draft:
    (draft / "file").write_text("complete")
    assert [*tmp_path.iterdir()] == [draft]
    os.rename(draft, target)
  assert [p.name for p in tmp_path.rglob("*")] == [name, "file"]


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
