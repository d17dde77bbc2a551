"""Local copies of remote inputs."""

import concurrent.futures
import os

import pytest

from tests.helpers import remote_folder
from zsad_jax.runtime import copies, environment, urls

URL = "gs://b/data/parts"


@pytest.fixture
def store(tmp_path, monkeypatch):
  monkeypatch.setattr(urls, "_PAUSE", 0.0)
  monkeypatch.setattr(copies, "_origins", {})
  monkeypatch.setattr(copies, "_fetched", set())
  monkeypatch.setenv("EPATH_USE_TF", "1")
  monkeypatch.setenv(environment.CACHE, str(tmp_path / "cache"))
  with remote_folder.registered(tmp_path / "store") as store:
    yield store


def write(store, **content):
  for name, data in content.items():
    path = store.root / "b/data/parts" / name.replace("__", "/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def fetch():
  return remote_folder.files(copies.pathlib.Path(copies.local(URL, fresh=True)))


def test_a_local_path_is_returned_unchanged(store):
  assert copies.local("a/b") == copies.location("a/b") == "a/b"
  assert copies.origin("a/b") == "a/b"
  assert not store.requests


def test_a_folder_is_copied_once_and_follows_its_changes(store):
  write(store, good__1=b"1", good__2=b"2", bad__3=b"3")
  path = copies.local(URL)
  assert path == copies.location(URL) and path.endswith("/b/data/parts")
  assert copies.origin(f"{path}/good/1") == f"{URL}/good/1"
  assert fetch() == {"good/1": b"1", "good/2": b"2", "bad/3": b"3"}
  assert store.requests["read"] == 3
  copies.local(URL)
  assert store.requests["read"] == 3
  # What was changed, added, removed, there or here.
  write(store, good__1=b"new", good__4=b"4")
  (store.root / "b/data/parts/bad/3").unlink()
  os.remove(f"{path}/good/2")
  (copies.pathlib.Path(path) / "good/own").touch()
  assert fetch() == {"good/1": b"new", "good/2": b"2", "good/4": b"4"}
  assert store.requests["read"] == 6
  assert not os.path.exists(f"{path}/bad")  # No class without images.


def test_a_file_of_the_same_size_and_another_time_is_copied_again(store):
  write(store, a=b"1")
  assert fetch() == {"a": b"1"}
  write(store, a=b"2")
  os.utime(store.root / "b/data/parts/a", (1, 1))
  assert fetch() == {"a": b"2"}


def test_a_single_file_is_copied_and_may_become_a_folder(store):
  write(store, w=b"weights")
  path = copies.local(f"{URL}/w")
  assert open(path, "rb").read() == b"weights"
  assert os.path.basename(path) == "w"
  os.remove(store.root / "b/data/parts/w")
  write(store, w__a=b"1")
  assert os.listdir(copies.local(f"{URL}/w", fresh=True)) == ["a"]


def test_what_does_not_exist_is_an_error_even_if_it_did(store):
  with pytest.raises(FileNotFoundError, match=f"{URL} does not exist"):
    copies.local(URL)
  write(store, a=b"1")
  copies.local(URL)
  os.remove(store.root / "b/data/parts/a")
  with pytest.raises(FileNotFoundError, match=f"{URL} does not exist"):
    copies.local(URL, fresh=True)
  with pytest.raises(FileNotFoundError, match="A URL is no pattern"):
    copies.local(f"{URL}/*.png")


def test_an_interrupted_copy_goes_on(store):
  write(store, **{f"f{i}": b"%d" % i for i in range(9)})
  reads = iter(range(100))

  def before(name, path):
    if name == "read" and next(reads) >= 5:
      raise PermissionError("no")

  store.before = before
  with pytest.raises(OSError, match="Cannot read gs://b/data/parts/f"):
    copies.local(URL)
  store.before = None
  done = len(remote_folder.files(copies.pathlib.Path(copies.location(URL))))
  store.requests.clear()
  assert len(fetch()) == 9
  assert 0 < done < 9 and store.requests["read"] == 9 - done
  assert not [*copies.pathlib.Path(copies.location(URL)).glob(".*")]


def test_threads_and_processes_share_one_copy(store):
  write(store, **{f"f{i}": b"1" for i in range(5)})
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = {*pool.map(lambda _: copies.local(URL, fresh=True), range(4))}
  assert len(found) == 1
  assert store.requests["read"] == 5


def test_hidden_files_and_incomplete_checkpoints_are_left_out(store):
  write(
    store,
    a=b"",
    checkpoints__1__x=b"1",
    checkpoints__2__x=b"2",
    **{"checkpoints/2.incomplete": b"", ".DS_Store": b"", "lock.json": b"{}"},
  )
  assert fetch() == {"a": b"", "checkpoints/1/x": b"1"}
  store.requests.clear()
  assert len(fetch()) == 2 and not store.requests["read"]


@pytest.mark.parametrize(
  ("name", "unit"),
  [
    ("checkpoints/12/model/a", "checkpoints/12"),
    ("best/3/a", "best/3"),
    ("checkpoints/12", "checkpoints/12"),
    ("clip/checkpoints/7/a", "clip/checkpoints/7"),
    ("checkpoints/a/b", ""),
    ("evaluation/01/a", ""),
    ("12/a", ""),
  ],
)
def test_files_of_a_checkpoint_belong_together(name, unit):
  assert copies.unit_of(name) == unit


def test_sizes():
  sizes = (5, 1200, 3_400_000, 5_600_000_000)
  expected = ["5 bytes", "1.2 kB", "3.4 MB", "5.6 GB"]
  assert [*map(copies.in_bytes, sizes)] == expected
