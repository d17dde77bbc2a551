"""Checkpoints: damage, other trees, readers, unusual folders, full disks."""

import errno
import logging
import os
import pathlib
import shutil

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.runs import checkpoint

PARAMS = {
  "a": np.arange(12, dtype=np.float32).reshape(3, 4),
  "b": {"c": np.arange(4, dtype=np.float32)},
}
STATE = jax.device_put(
  {
    "model": {"params": PARAMS, "stats": {}},
    "training": {"opt": optax.adam(1e-3).init(PARAMS), "step": np.int32(0)},
  }
)


def state_at(step):
  return jax.tree.map(lambda x: x + np.asarray(step, x.dtype), STATE)


def write(folder, steps=(4, 8)):
  saved = checkpoint.Checkpoints(folder)
  for step in steps:
    saved.save(step, {"step": step, "seconds": 1.5}, **state_at(step))
  saved.close()


def read(folder, *, read_only=True, **like):
  saved = checkpoint.Checkpoints(folder, read_only=read_only)
  try:
    return saved.restore(**(like or STATE))
  finally:
    saved.close()


def check(found, step):
  trees, meta = found
  assert meta == {"step": step, "seconds": 1.5}
  jax.tree.map(np.testing.assert_array_equal, trees, state_at(step))


def listing(folder):
  return sorted(
    (str(path.relative_to(folder)), path.lstat().st_mtime_ns)
    for path in folder.rglob("*")
  )


def damage(folder, step):
  for path in (folder / str(step) / "model").rglob("d/*"):
    path.write_bytes(path.read_bytes()[:100])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run") / "checkpoints"
  write(folder)
  return folder


@pytest.fixture
def folder(written, tmp_path):
  return shutil.copytree(written, tmp_path / "checkpoints")


@pytest.mark.parametrize("name", ["run[1]", "[2024-05] line 3", "what?", "a*b"])
def test_folders_may_have_the_characters_of_patterns(name, tmp_path):
  folder = tmp_path / name / "checkpoints"
  write(folder, [4])
  check(read(folder), 4)
  assert [p.name for p in folder.parent.iterdir()] == ["checkpoints"]
  folder.parent.rename(tmp_path / "plain")
  check(read(tmp_path / "plain/checkpoints"), 4)


def test_the_checkpoint_before_a_damaged_one_is_used(folder, caplog):
  logging.getLogger("zsad_jax").propagate = True
  damage(folder, 8)
  before = listing(folder.parent)
  check(read(folder), 4)
  assert "checkpoints/8 is damaged" in caplog.text
  assert "the one before it, 4, is used" in caplog.text
  assert listing(folder.parent) == before
  check(read(folder, read_only=False), 4)
  moved = folder.with_name("checkpoints.damaged")
  assert [p.name for p in moved.iterdir()] == ["8"]
  write(folder, [8])
  check(read(folder), 8)


def test_without_another_checkpoint_a_damaged_one_is_an_error(folder):
  damage(folder, 4)
  damage(folder, 8)
  for read_only in (True, False):
    with pytest.raises(
      ValueError, match="checkpoints/8 is damaged.*and so is 4"
    ):
      read(folder, read_only=read_only)
  assert sorted(p.name for p in folder.iterdir()) == ["4", "8"]


@pytest.mark.parametrize(
  "change, message",
  [
    ({"a": np.ones((4, 4), np.float32)}, r"params/a has shape \(3, 4\)"),
    ({"x": np.ones(2, np.float32)}, "params/x is missing"),
    ({"b": {}}, "params/b/c is unknown"),
  ],
)
def test_other_trees_do_not_fit(folder, change, message):
  like = {"params": {**PARAMS, **change}, "stats": {}}
  text = f"checkpoints/8 does not fit this configuration.*{message}"
  with pytest.raises(ValueError, match=text):
    read(folder, model=like)


def test_a_reader_creates_nothing(tmp_path):
  absent = tmp_path / "run/checkpoints"
  with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
    read(absent)
  assert not absent.parent.exists()


def test_a_reader_leaves_unfinished_checkpoints(folder):
  (folder / "12.orbax-checkpoint-tmp").mkdir()
  before = listing(folder)
  check(read(folder), 8)
  assert listing(folder) == before


def test_a_checkpoint_that_is_removed_while_it_is_read(folder, monkeypatch):
  saved = checkpoint.Checkpoints(folder, read_only=True)
  original = checkpoint.Checkpoints._read
  steps = []

  def replaced(self, step, like):
    steps.append(step)
    if len(steps) == 1:  # The training writes 12 and removes 8 meanwhile.
      write(folder, [12])
      shutil.rmtree(folder / "8")
    return original(self, step, like)

  monkeypatch.setattr(checkpoint.Checkpoints, "_read", replaced)
  check(saved.restore(**STATE), 12)
  assert steps == [8, 12]


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("RESOURCE_EXHAUSTED: [OS error 28: No space left on device]"),
  ],
)
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, error):
  saved = checkpoint.Checkpoints(tmp_path / "checkpoints")

  def full(*args, **kwargs):
    raise error

  monkeypatch.setattr(saved._manager, "save", full)
  with pytest.raises(OSError, match="no space left in .*checkpoints: free"):
    saved.save(1, {"step": 1}, **STATE)
  saved.close()


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(OSError, match="checkpoints cannot be written"):
    checkpoint.Checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize("text", ["{}", '{"seconds": 1.5}', '{"step": 4}'])
def test_metadata_without_its_step_is_corrupt(written, text):
  folder = written.with_name("copy")
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(written, folder)
  (folder / "8" / "meta" / "metadata").write_text(text)
  check(read(folder), 4)


FILES = st.integers(0, 10**6)


@given(FILES, st.sampled_from(["cut", "flip", "other", "gone"]), st.randoms())
@settings(max_examples=25, deadline=None)
def test_any_damage_is_named_or_changes_nothing(written, number, kind, random):
  folder = written.with_name("copy")
  shutil.rmtree(folder, ignore_errors=True)
  shutil.copytree(written, folder)
  files = sorted(p for p in (folder / "8").rglob("*") if p.is_file())
  path = files[number % len(files)]
  data = bytearray(path.read_bytes())
  if kind == "gone":
    path.unlink()
  elif kind == "cut":
    path.write_bytes(data[: random.randrange(len(data) + 1)])
  elif kind == "other":
    path.write_bytes(random.choice([b"", b"{}", b"[1]", b"null", b"\xff" * 50]))
  elif data:
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(data)
  trees, meta = read(folder)
  assert meta["step"] in (4, 8)
  check((trees, meta), meta["step"])


def test_a_folder_that_must_not_be_read_is_not_called_damaged(
  folder, monkeypatch
):
  def refuse(path):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))

  monkeypatch.setattr(checkpoint, "_stored_arrays", refuse)
  with pytest.raises(PermissionError, match="Permission denied"):
    read(folder)
  assert pathlib.Path(folder, "8").is_dir() and os.listdir(folder)
