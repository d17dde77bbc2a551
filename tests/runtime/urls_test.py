"""URLs: which are supported, requests, errors."""

import importlib.util
import pathlib
import threading

import pytest

from tests.helpers import remote_folder
from zsad_jax.runtime import config_files, environment, urls


@pytest.fixture
def store(tmp_path, monkeypatch):
  monkeypatch.setattr(urls, "_PAUSE", 0.0)
  monkeypatch.setenv("EPATH_USE_TF", "1")
  with remote_folder.registered(tmp_path / "store") as store:
    yield store


def write(store, name, data=b"abc"):
  path = store.root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return path


@pytest.mark.parametrize(
  ("path", "expected"),
  [
    ("runs/a", False),
    ("/a://b", False),
    ("elpv:x", False),
    ("tfds://folder/test/0/image", False),  # Of this package.
    ("gs://b/a", True),
    ("GS://b/a", True),
    ("http://b/a", True),
    ("file:///a", True),
    (pathlib.Path("gs://b/a"), True),
    (b"gs://b", False),
    (None, False),
  ],
)
def test_urls_are_told_from_paths(path, expected):
  assert urls.is_url(path) == expected


def test_superfluous_slashes_are_removed(store):
  assert urls.check("GS://b//a/") == "gs://b/a"
  assert urls.join("gs://b/", "a") == "gs://b/a"
  assert urls.join("b", "a") == "b/a"


@pytest.mark.parametrize(
  ("url", "message"),
  [
    ("http://b/a", r"http:// is not supported; supported are local.*gs://"),
    ("file:///a", "file:// is not supported"),
    ("ftp://a", "ftp:// is not supported"),
    ("gs://", "expected gs://BUCKET/PATH"),
    ("gs://b/../c", "without '..'"),
    (pathlib.Path("gs://b/a"), "pathlib.Path removes one"),
    ("s3://b/a", "s3:// needs s3fs: pip install s3fs"),
    ("az://b/a", "az:// needs adlfs: pip install adlfs"),
  ],
)
def test_refused_urls(url, message, store, monkeypatch):
  find = importlib.util.find_spec
  missing = ("s3fs", "adlfs")
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda n: None if n in missing else find(n)
  )
  with pytest.raises(ValueError, match=message):
    urls.check(url)
  assert not store.requests


def test_gs_needs_gcsfs_without_tensorflow(monkeypatch):
  monkeypatch.setenv("EPATH_USE_TF", "0")
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="gs:// needs gcsfs: pip install gcsfs"):
    urls.check("gs://b/a")


def test_nothing_is_written_to_hugging_face(monkeypatch):
  monkeypatch.setenv("EPATH_USE_TF", "1")
  assert urls.check("hf://user/model/a") == "hf://user/model/a"
  with pytest.raises(ValueError, match="hf:// is only read"):
    urls.check("hf://user/model/a", write=True)


def test_local_paths_only(monkeypatch):
  with pytest.raises(ValueError, match="--config: gs://b/a.py is a URL"):
    config_files.load("gs://b/a.py")
  monkeypatch.setenv(environment.CACHE, "gs://b/cache")
  with pytest.raises(
    ValueError, match=f"{environment.CACHE} is .*local folder"
  ):
    environment.check()


def test_lists_files_of_all_folders(store):
  for name in ("b/a/1", "b/a/sub/2", "b/a/sub/deep/3", "b/other"):
    write(store, name, name.encode())
  (store.root / "b/a/empty").mkdir()
  found = urls.list_files("gs://b/a")
  assert {name: stamp.size for name, stamp in found.items()} == {
    "1": 5,
    "sub/2": 9,
    "sub/deep/3": 14,
  }
  assert urls.list_files("gs://b/a/1").keys() == {""}
  assert urls.list_files("gs://b/none") == {}
  assert urls.is_dir("gs://b/a") and not urls.is_dir("gs://b/a/1")
  assert urls.exists("gs://b/a/1") and not urls.exists("gs://b/none")


def test_an_interrupted_download_is_continued(store, tmp_path, monkeypatch):
  monkeypatch.setattr(urls, "_CHUNK", 4)
  path = write(store, "b/file", b"0123456789")
  target, stop = tmp_path / "copy" / "file", threading.Event()
  stamp = urls.stamp("gs://b/file")
  request, calls = urls._request, []

  def failing(url, verb, call, **kwargs):
    calls.append(verb)
    if len(calls) == 3:  # The first is the opening.
      raise OSError("no route")
    return request(url, verb, call, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(urls, "_request", failing)
    with pytest.raises(OSError, match="no route"):
      urls.download("gs://b/file", target, stamp, stop)
  assert not target.exists()
  assert [p.read_bytes() for p in target.parent.iterdir()] == [b"0123"]
  # Only the rest is read: what is on the disk stays.
  next(target.parent.iterdir()).write_bytes(b"abcd")
  urls.download("gs://b/file", target, stamp, stop)
  assert target.read_bytes() == b"abcd456789"
  assert target.stat().st_mtime == int(path.stat().st_mtime)
  assert [*target.parent.iterdir()] == [target]


def test_a_file_that_changes_while_it_is_read_is_refused(store, tmp_path):
  write(store, "b/file", b"0123456789")
  stamp = urls.stamp("gs://b/file")
  write(store, "b/file", b"0123")
  with pytest.raises(OSError, match="has 10 bytes, but 4 were read"):
    urls.download("gs://b/file", tmp_path / "f", stamp, threading.Event())
  assert not (tmp_path / "f").exists()


def test_a_stopped_download_leaves_no_file(store, tmp_path):
  write(store, "b/file")
  stop = threading.Event()
  stop.set()
  with pytest.raises(urls.Cancelled):
    stamp = urls.stamp("gs://b/file")
    urls.download("gs://b/file", tmp_path / "f", stamp, stop)
  assert not (tmp_path / "f").exists()


def test_texts_are_written_read_and_removed(store):
  assert urls.read_text("gs://b/a/text") is None
  urls.write_text("gs://b/a/text", "é")
  assert urls.read_text("gs://b/a/text") == "é"
  urls.remove("gs://b/a/text")
  urls.remove("gs://b/a/text")
  urls.remove_folder("gs://b/a")
  assert urls.list_files("gs://b") == {}


def test_requests_are_repeated_and_errors_name_the_url(store, tmp_path):
  (tmp_path / "f").write_bytes(b"abc")
  failures = [ConnectionResetError("no route")] * 2

  def before(name, path):
    if name == "write" and failures:
      raise failures.pop()

  store.before = before
  assert urls.upload(tmp_path / "f", "gs://b/f")[0] == 3
  assert store.requests["write"] == 3
  failures += [RuntimeError("token expired")] * 3
  with pytest.raises(OSError, match=r"Cannot write gs://b/f \(Runtime.*token"):
    urls.upload(tmp_path / "f", "gs://b/f")
  failures += [PermissionError("403")] * 2
  with pytest.raises(OSError, match="Cannot write gs://b/f .*403"):
    urls.upload(tmp_path / "f", "gs://b/f")
  assert len(failures) == 1  # A refusal is not temporary.
