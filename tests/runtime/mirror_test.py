"""Remote folders of results: uploads, interruption, locks, flags."""

import contextlib
import json
import os
import pathlib
import random
import shutil

import pytest
from absl import flags

from tests.helpers import remote_folder
from zsad_jax.runs import lock
from zsad_jax.runtime import copies, environment, mirror, urls

URL = "gs://b/runs/a"


class Killed(BaseException):
  """The process ends: nothing after it is executed."""


@pytest.fixture
def store(tmp_path, monkeypatch):
  monkeypatch.setattr(urls, "_PAUSE", 0.0)
  monkeypatch.setattr(mirror, "_SETTLE", 0.0)
  monkeypatch.setattr(mirror, "_INTERVAL", 0.0)
  monkeypatch.setattr(copies, "_origins", {})
  monkeypatch.setattr(copies, "_fetched", set())
  monkeypatch.setattr(mirror, "_active", {})
  monkeypatch.setenv("EPATH_USE_TF", "1")
  monkeypatch.setenv(environment.CACHE, str(tmp_path / "cache"))
  with remote_folder.registered(tmp_path / "store") as store:
    yield store


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """Return a context in which the cache is that of another machine."""

  @contextlib.contextmanager
  def enter(name="other"):
    with monkeypatch.context() as patch:
      patch.setenv(environment.CACHE, str(tmp_path / name))
      yield

  return enter


@contextlib.contextmanager
def opened(url=URL, **kwargs):
  found = mirror.Mirror(url)
  with found.opened(**kwargs):
    yield found.path


def remote(store):
  return remote_folder.files(store.root / "b/runs/a")


def write(folder, name, text):
  (folder / name).parent.mkdir(parents=True, exist_ok=True)
  (folder / name).write_text(text)


def checkpoint(folder, step, *, keep=2):
  """Write a checkpoint as Orbax does, and remove old ones."""
  draft = folder / f"checkpoints/{step}.orbax-checkpoint-tmp"
  for name in ("meta", "model/array", f"model/d/{step}"):
    write(draft, name, f"{name} {step}")
  draft.rename(folder / f"checkpoints/{step}")
  steps = sorted(int(p.name) for p in (folder / "checkpoints").iterdir())
  for old in steps[:-keep]:
    shutil.rmtree(folder / f"checkpoints/{old}")


def test_results_are_uploaded_and_downloaded_elsewhere(store, elsewhere):
  with opened() as path:
    write(path, "config.json", "{}")
    checkpoint(path, 1)
    write(path, "lock.json", "{}")
    write(path, ".x.tmp", "")
    expected = remote_folder.files(path)
  del expected["lock.json"]
  assert remote(store) == expected
  with elsewhere(), opened() as other:
    assert remote_folder.files(other) == expected
    store.requests.clear()
  assert store.requests.keys() <= {"stat", "list"}  # Nothing to send.


def test_the_remote_folder_equals_the_local_one_after_each_upload(store):
  """Random changes, as a run makes them."""
  rng = random.Random(0)
  found = mirror.Mirror(URL)
  with found.opened():
    for step in range(1, 30):
      action = rng.choice(["log", "log", "step", "result", "remove", "damage"])
      if action == "log":
        with contextlib.suppress(FileNotFoundError):
          write(found.path, "metrics.jsonl", "x" * step)
      elif action == "step":
        checkpoint(found.path, step)
      elif action == "result":
        write(found.path, f"evaluation/d{rng.randrange(3)}/t.csv", f"{step}")
      elif action == "remove":
        shutil.rmtree(found.path / "evaluation", ignore_errors=True)
      elif steps := sorted((found.path / "checkpoints").glob("[0-9]*")):
        target = found.path / "checkpoints.damaged" / steps[-1].name
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        steps[-1].rename(target)
      found.send()
      assert remote(store) == remote_folder.files(found.path), action
      assert found.send() == 0


def states(store, elsewhere, name):
  """Return the state that another machine would go on from."""
  with elsewhere(name):
    copy = mirror.Mirror(URL)
    with copy.locked():
      copy._receive()
    return remote_folder.files(copy.path)


def killed_after(number):
  """Return a function that refuses all requests after some."""
  count = iter(range(10**6))

  def before(name, path):
    if next(count) >= number:
      raise Killed

  return before


@pytest.mark.parametrize(
  "stride", [11, pytest.param(1, marks=pytest.mark.slow)]
)
def test_a_kill_at_any_request_leaves_complete_checkpoints(
  stride, store, elsewhere
):
  """The run is killed before its request n, for all n, and then resumed."""
  for number in range(0, 200, stride):
    shutil.rmtree(store.root, ignore_errors=True)
    store.before = None
    with elsewhere(f"here{number}"):
      found = mirror.Mirror(URL)
      assert found.path.parent.mkdir(parents=True) is None
      steps = iter((1, 2, 3, 4))
      store.before = killed_after(number)
      killed = False
      for step in steps:
        checkpoint(found.path, step, keep=1)
        write(found.path, "metrics.jsonl", "x" * step)
        try:
          found.send()
        except Killed:
          killed = True
          break
      store.before = None
      visible = states(store, elsewhere, f"other{number}")
      complete = {copies.unit_of(n) for n in visible} - {""}
      for unit in complete:
        step = unit.rpartition("/")[2]
        for name in ("meta", "model/array", f"model/d/{step}"):
          assert visible[f"{unit}/{name}"] == f"{name} {step}".encode(), number
      sent = json.loads((found.folder / "index.json").read_text())
      if any(copies.unit_of(n) for n in sent["files"]):
        assert complete, number  # The old one is removed after the new one.
      # The same machine goes on with its own files and loses none.
      expected = remote_folder.files(found.path)
      with opened() as path:
        assert remote_folder.files(path) == expected, number
      assert remote(store) == expected, number
    if not killed:
      assert number > 40
      return
  raise AssertionError("The run was killed each time.")


def test_a_download_that_is_killed_at_any_request_goes_on(
  store, elsewhere, capsys
):
  with opened() as path:
    write(path, "metrics.jsonl", "1")
    checkpoint(path, 1)
    expected = remote_folder.files(path)
  save = copies.Copy.save_index

  def save_before(self, index, **others):
    """Write the index before, but not after a download."""
    if others:
      save(self, index, **others)

  for number in range(100):
    with elsewhere(f"other{number}"):
      store.before, killed = killed_after(number), False
      try:
        with pytest.MonkeyPatch.context() as patch:
          patch.setattr(copies.Copy, "save_index", save_before)
          mirror.Mirror(URL)._receive()
      except Killed:
        killed = True
      store.before = None
      with opened() as path:
        assert remote_folder.files(path) == expected, number
      assert not [*path.parent.glob("a.unsent*")], number
    if not killed:
      return
  raise AssertionError("It was killed each time.")


def test_a_partial_checkpoint_of_a_killed_machine_is_replaced(store, elsewhere):
  with opened() as path:
    checkpoint(path, 1)
  write(store.root / "b/runs/a", "checkpoints/2/model/d/of_another", "")
  write(store.root / "b/runs/a", "checkpoints/2.incomplete", "")
  write(store.root / "b/runs/a", "checkpoints/9/meta", "")
  write(store.root / "b/runs/a", "checkpoints/9.incomplete", "")
  with elsewhere(), opened() as path, lock.hold(path):
    assert [p.name for p in (path / "checkpoints").iterdir()] == ["1"]
    checkpoint(path, 2)
    expected = remote_folder.files(path)
    del expected["lock.json"]
  assert remote(store) == expected


def test_what_was_removed_remotely_is_removed_here(store):
  with opened() as path:
    write(path, "config.json", "{}")
  shutil.rmtree(store.root)
  with opened() as path:
    assert remote_folder.files(path) == {}


def test_files_that_were_not_uploaded_are_set_aside_when_others_were(
  store, elsewhere, capsys
):
  with opened() as path:
    write(path, "metrics.jsonl", "1")
  write(path, "metrics.jsonl", "here")  # Killed before the upload.
  with elsewhere(), opened() as other:
    write(other, "metrics.jsonl", "there")
  os.utime(store.root / "b/runs/a/metrics.jsonl", (1, 1))
  with opened() as path:
    assert (path / "metrics.jsonl").read_text() == "there"
  (aside,) = path.parent.glob("a.unsent-*")
  assert (aside / "metrics.jsonl").read_text() == "here"
  assert str(aside) in capsys.readouterr().out


def test_a_failed_upload_keeps_the_results_and_names_both(store):
  with pytest.raises(OSError, match="Cannot write gs://b/runs/a/x") as error:
    with opened() as path:
      write(path, "x", "1")
      store.before = refuse_writing
  assert f"The results are in {path}" in str(error.value)
  assert (path / "x").read_text() == "1"
  store.before = None
  with opened():
    pass
  assert remote(store) == {"x": b"1"}


def refuse_writing(name, path):
  if name == "write":
    raise PermissionError("403")


def test_an_error_of_the_command_is_kept_and_its_results_are_uploaded(store):
  with pytest.raises(ValueError, match="^of the command$") as error:
    with opened() as path:
      write(path, "x", "1")
      raise ValueError("of the command")
  assert not hasattr(error.value, "__notes__")
  assert remote(store) == {"x": b"1"}
  with pytest.raises(ValueError, match="of the command") as error:
    with opened() as path:
      write(path, "x", "12")
      store.before = refuse_writing
      raise ValueError("of the command")
  assert "Cannot write gs://b/runs/a/x" in error.value.__notes__[0]


def test_uploads_in_the_background_are_reported_and_repeated(store, capsys):
  with opened() as path:
    found = mirror.of(path / "metrics.jsonl")
    write(path, "metrics.jsonl", "1")
    mirror.request(path / "metrics.jsonl")
    found._task.result()
    assert remote(store) == {"metrics.jsonl": b"1"}
    store.before = refuse_writing
    write(path, "metrics.jsonl", "12")
    mirror.request(path)
    assert found._task.exception()
    store.before = None
    mirror.request(path)
    found._task.result()
    assert remote(store) == {"metrics.jsonl": b"12"}
  assert "403). It is tried again later." in capsys.readouterr().out
  assert mirror.of(path) is None
  mirror.request(path)  # Not a mirror.


def test_a_second_command_here_uses_the_files_as_they_are(store):
  with opened() as path:
    write(path, "config.json", "{}")
    with opened() as other:
      assert other == path
      assert (other / "config.json").read_text() == "{}"
      write(other, "evaluation/t.csv", "1")
    mirror._active[path] = mirror.Mirror(URL)  # Of the outer one.
  assert remote(store).keys() == {"config.json", "evaluation/t.csv"}


# ---- Lock.


def test_the_remote_lock_refuses_another_machine(store, elsewhere):
  with opened() as path, lock.hold(path):
    held = json.loads(remote(store)["lock.json"])
    assert held["pid"] == os.getpid()
    held |= {"host": "h2", "machine": "m2", "boot": "b2"}
    lock_file = store.root / "b/runs/a/lock.json"
    lock_file.write_text(json.dumps(held))
    message = f"{URL} is in use by process .* on h2.*remove {URL}/lock.json"
    with elsewhere(), opened() as other:
      with pytest.raises(ValueError, match=message):
        with lock.hold(other):
          pass
      with pytest.raises(ValueError, match=message):
        lock.check(other)
  assert "lock.json" in remote(store)  # It is no longer that of this process.


def test_the_lock_is_held_until_the_results_are_uploaded(store):
  order = []

  def before(name, path):
    if name in ("write", "remove"):
      order.append((name, path.rpartition("/")[2]))

  with opened() as path:
    with lock.hold(path):
      write(path, "x", "1")
      store.before = before
  assert order[-2:] == [("write", "x"), ("remove", "lock.json")]
  assert remote(store) == {"x": b"1"}


def test_the_lock_of_a_killed_process_of_this_machine_is_replaced(store):
  with opened() as path:
    held = lock._identity() | {"pid": 2**22 + 1, "started": 1}
    write(store.root / "b/runs/a", "lock.json", json.dumps(held))
    with lock.hold(path):
      assert json.loads(remote(store)["lock.json"])["pid"] == os.getpid()
  assert remote(store) == {}


def test_a_run_that_changed_before_the_lock_was_held_is_read_again(
  store, elsewhere
):
  with opened() as path:
    with elsewhere(), opened() as other:
      write(other, "metrics.jsonl", "1")
    with lock.hold(path):
      assert (path / "metrics.jsonl").read_text() == "1"


def test_a_workdir_that_lost_its_slashes_is_refused():
  with pytest.raises(ValueError, match="workdir: gs:/b/a is a URL"):
    with lock.hold(pathlib.Path("gs://b/a")):
      pass


# ---- Flags.


def options(**values):
  found = flags.FlagValues()
  for name, value in values.items():
    define = flags.DEFINE_list if isinstance(value, list) else None
    (define or flags.DEFINE_string)(name, value, "", flag_values=found)
  found.mark_as_parsed()
  return found


def test_flags_of_written_folders_become_local(store):
  given = options(
    workdir=[URL, "local"], output="gs://b/out", data=["gs://b/d"], masks=None
  )
  with mirror.of_flags(given):
    write(pathlib.Path(given.workdir[0]), "x", "1")
    pathlib.Path(given.output).write_text("2")  # A file.
    assert given.workdir[1] == "local" and given.data == ["gs://b/d"]
  assert remote(store) == {"x": b"1"}
  assert (store.root / "b/out").read_bytes() == b"2"


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"workdir": "http://b/a"}, "--workdir: http://b/a: http:// is not supp"),
    ({"workdir": "hf://u/m/a"}, "--workdir: .*hf:// is only read"),
    ({"data": ["elpv", "ftp://b"]}, "--data: ftp://b: ftp:// is not support"),
    ({"arguments": ["a", "http://b/a.png"]}, "^http://b/a.png: http:// is"),
    ({"paper_results": "gs://b"}, "--paper_results: gs://b is a URL, but"),
    ({"references": ["gs:/b/a"]}, "--references: gs:/b/a: a URL has two sl"),
  ],
)
def test_refused_flags(values, message, store):
  with pytest.raises(ValueError, match=message):
    with mirror.of_flags(options(**values)):
      pass
  assert not store.requests


def test_an_output_that_cannot_be_written_is_refused_at_once(store):
  store.before = refuse_writing
  with pytest.raises(OSError, match="Cannot write gs://b/out"):
    with mirror.of_flags(options(output="gs://b/out")):
      raise AssertionError
