"""The lock of a workdir: live, stale, foreign and corrupt holders."""

import fcntl
import json
import os

import hypothesis
import pytest
from hypothesis import strategies as st

from zsad_jax.runs import lock
from zsad_jax.runtime import files


def write(folder, **changes):
  """Write the lock of another process; return its path."""
  holder = lock._identity() | changes
  path = folder / lock.FILE
  path.write_text(json.dumps(holder), encoding="utf-8")
  return path


def test_it_names_the_process_and_is_removed(tmp_path):
  workdir = tmp_path / "new"
  with lock.hold(workdir):
    found = json.loads((workdir / lock.FILE).read_text())
    assert found["pid"] == os.getpid() and found["host"]
    with lock.hold(workdir):  # `main` and `train` of the same process.
      lock.check(workdir)
    assert (workdir / lock.FILE).exists()
  assert not workdir.exists()  # Nothing was written: it is removed again.
  with lock.hold(workdir):
    (workdir / "config.json").touch()
  assert [p.name for p in workdir.iterdir()] == ["config.json"]


def test_it_is_released_after_an_error(tmp_path):
  with pytest.raises(KeyboardInterrupt), lock.hold(tmp_path):
    raise KeyboardInterrupt
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  "act", [lock.check, lambda w: lock.hold(w).__enter__()]
)
def test_a_live_process_is_respected(tmp_path, act):
  path = write(tmp_path)
  with open(path) as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match=f"process {os.getpid()} on"):
      act(tmp_path)
  assert path.exists()


def test_a_live_process_is_respected_without_kernel_locks(
  tmp_path, monkeypatch
):
  path = write(tmp_path)
  monkeypatch.setattr(files, "is_free", lambda path: None)
  with pytest.raises(ValueError, match="is in use by"):
    lock.check(tmp_path)
  path.unlink()
  write(tmp_path, pid=2**22 + 1, started=5)  # Above the largest number.
  lock.check(tmp_path)


@pytest.mark.parametrize(
  "changes",
  [
    {"pid": 2**22 + 1},
    {"started": 1},  # The number was given to another process.
    {"boot": "before"},
    {"namespace": "pid:[1]"},  # A container that was started again.
    {"host": "container"},  # The same kernel.
  ],
  ids=str,
)
def test_a_stale_lock_of_this_machine_is_replaced(tmp_path, changes):
  write(tmp_path, **changes)
  lock.check(tmp_path)
  with lock.hold(tmp_path):
    found = json.loads((tmp_path / lock.FILE).read_text())
    assert found["pid"] == os.getpid()
    assert found["started"] == lock._started(os.getpid())
  assert not any(tmp_path.iterdir())


def test_a_lock_of_another_host_is_left_and_named(tmp_path):
  path = write(tmp_path, host="node7", machine="m", boot="b", pid=1)
  with pytest.raises(ValueError, match="process 1 on node7.*remove") as error:
    with lock.hold(tmp_path):
      raise AssertionError
  assert str(path) in str(error.value) and path.exists()


@hypothesis.given(st.binary(max_size=40))
@hypothesis.settings(
  max_examples=25,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
def test_a_corrupt_lock_is_named_and_left(tmp_path, data):
  path = tmp_path / lock.FILE
  path.write_bytes(data)
  with pytest.raises(ValueError, match="corrupt|in use") as error:
    with lock.hold(tmp_path):
      raise AssertionError
  assert str(path) in str(error.value) and path.read_bytes() == data


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
  def link(source, target):
    raise PermissionError(1, "Operation not permitted")

  monkeypatch.setattr(lock.os, "link", link)
  with lock.hold(tmp_path):
    lock._held.clear()  # As another process sees it.
    with pytest.raises(ValueError, match="is in use by"):
      with lock.hold(tmp_path):
        raise AssertionError
  assert not any(tmp_path.iterdir())


def test_a_lock_that_replaced_this_one_is_kept(tmp_path):
  with lock.hold(tmp_path):
    (tmp_path / lock.FILE).unlink()  # By the user.
    path = write(tmp_path)
  assert path.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(OSError, match="file"):
    with lock.hold(tmp_path / "file" / "run"):
      raise AssertionError


def test_only_the_primary_process_of_a_job_locks(tmp_path, monkeypatch):
  monkeypatch.setattr(lock.distributed, "is_primary", lambda: False)
  with lock.hold(tmp_path):
    assert not any(tmp_path.iterdir())
