"""Named calibrations on disk: complete or absent, verified, within the run."""

import dataclasses
import hashlib
import json
import math
import shutil
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.datasets import index
from zsad_jax.inference import tiling
from zsad_jax.runs import calibrations, ensemble
from zsad_jax.runs import run as run_lib
from zsad_jax.runs.calibration_file import Calibration
from zsad_jax.runs.threshold import Threshold
from zsad_jax.runtime import copies, file_names, files


def make(paths=(), name="line3", **more):
  values: dict[str, Any] = dict(
    threshold=Threshold(0.5, 0.1, 0.9, "test", 0.25, (0.125, 0.5), "pixels"),
    class_name="hex nut",
    tiling=tiling.Tiling(512, 0.25),
    references=calibrations.describe_references([*map(str, paths)]),
    rate=0.05,
    num_normal=2,
    num_anomalous=0,
    date=calibrations.now(),
    run_digest="0" * 64,
  )
  return Calibration(name=name, **{**values, **more})


@pytest.fixture
def images(tmp_path):
  """Files of references; two of them have the same name, two one content."""
  found = []
  for i, name in enumerate(["a/0.png", "b/0.png", "b/naïve name.JPG", "b/c"]):
    path = tmp_path / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([min(i, 2)]) * 50)
    found.append(path)
  return found


def tree(folder):
  """Return the content of each file below a folder."""
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in folder.rglob("*")
    if p.is_file()
  }


def test_a_calibration_is_read_as_it_was_written(tmp_path, images):
  stored = make(images)
  path = calibrations.write(tmp_path / "run", stored)
  assert path == tmp_path / "run/calibrations/line3.json"
  contents = [each.read_bytes() for each in images]
  shutil.rmtree(tmp_path / "images")
  found = calibrations.read(tmp_path / "run", "line3")
  assert found == stored
  copied = calibrations.reference_paths(tmp_path / "run", found)
  assert [open(each, "rb").read() for each in copied] == contents
  assert all("/run/calibrations/line3/references/" in each for each in copied)
  without = make(name="b", tiling=None, rate=None)
  calibrations.write(tmp_path / "run", without)
  assert calibrations.read(tmp_path / "run", "b") == without
  assert calibrations.names(tmp_path / "run") == ["b", "line3"]


def test_parts_of_an_image_are_references(tmp_path, images):
  parts = [
    index.part(images[0], (0, 0, 9, 8)),
    index.part(images[0], (1, 2, 4, 6)),
  ]
  calibrations.write(tmp_path, make(parts))
  found = calibrations.read(tmp_path, "line3")
  copied = calibrations.reference_paths(tmp_path, found)
  assert [index.file_and_box(p)[1] for p in copied] == [
    (0, 0, 9, 8),
    (1, 2, 4, 6),
  ]
  assert len({index.file_and_box(p)[0] for p in copied}) == 1


def test_another_calibration_is_replaced_only_on_request(tmp_path, images):
  first = make(images[:1])
  calibrations.write(tmp_path, first)
  before = tree(tmp_path / "calibrations")
  with pytest.raises(ValueError, match="line3.json exists.*--overwrite"):
    calibrations.write(tmp_path, make(images[1:]))
  with pytest.raises(ValueError, match="line3.json exists.*--name=line3"):
    calibrations.write(tmp_path, make(images[1:], name="Line3"), overwrite=True)
  assert tree(tmp_path / "calibrations") == before
  second = make(images[1:])
  calibrations.write(tmp_path, second, overwrite=True)
  assert calibrations.read(tmp_path, "line3") == second
  kept = {each.file for each in second.references}
  folder = tmp_path / "calibrations/line3/references"
  assert {each.name for each in folder.iterdir()} == kept


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("after", range(4))
def test_a_write_that_fails_changes_nothing(
  tmp_path, images, after, replaced, monkeypatch
):
  """The files are three references and the file of the calibration."""
  if replaced:
    calibrations.write(tmp_path, make(images[:2]))
  before = tree(tmp_path / "calibrations")
  done, write_bytes = [], files.write_bytes

  def failing(path, data):
    if len(done) == after:
      raise OSError(28, "No space left on device")
    done.append(path)
    write_bytes(path, data)

  changed = [images[0].with_name(f"{i}.png") for i in range(3)]
  for i, path in enumerate(changed):
    path.write_bytes(bytes([100 + i]) * 9)
  monkeypatch.setattr(files, "write_bytes", failing)
  with pytest.raises(OSError, match="No space"):
    calibrations.write(tmp_path, make(changed), overwrite=True)
  assert tree(tmp_path / "calibrations") == before
  assert calibrations.names(tmp_path) == ["line3"] * replaced


@pytest.mark.parametrize("after", range(4))
def test_a_write_that_is_killed_leaves_the_old_calibration(
  tmp_path, images, after, monkeypatch
):
  """Nothing is cleaned up by a process that is killed; the next one does."""
  old, new = make(images[:2]), make(images[2:])
  calibrations.write(tmp_path, old)
  done, write_bytes = [], files.write_bytes

  def killed(path, data):
    if len(done) == after:
      raise KeyboardInterrupt
    done.append(path)
    write_bytes(path, data)

  with monkeypatch.context() as patch:
    patch.setattr(files, "write_bytes", killed)
    patch.setattr(calibrations, "_remove_unlisted", lambda *_: None)
    try:
      calibrations.write(tmp_path, new, overwrite=True)
    except KeyboardInterrupt:
      pass
  assert calibrations.read(tmp_path, "line3") == (new if after > 2 else old)
  calibrations.write(tmp_path, new, overwrite=True)
  folder = tmp_path / "calibrations/line3/references"
  kept = {each.file for each in new.references}
  assert {each.name for each in folder.iterdir()} == kept


def test_a_reference_that_changes_meanwhile_is_refused(tmp_path, images):
  stored = make(images)
  images[1].write_bytes(b"other")
  with pytest.raises(ValueError, match="b/0.png has changed since"):
    calibrations.write(tmp_path, stored)
  assert not tree(tmp_path / "calibrations")


def test_a_number_that_is_not_finite_is_refused(tmp_path):
  threshold = dataclasses.replace(make().threshold, pixel=math.nan)
  with pytest.raises(ValueError, match="line3.json is not written: pixel"):
    calibrations.write(tmp_path, make(threshold=threshold))
  assert not tree(tmp_path)


# ---- Names.


def test_an_unknown_name_lists_the_others(tmp_path):
  with pytest.raises(FileNotFoundError, match="x.json .* has no calibrations"):
    calibrations.read(tmp_path, "x")
  for name in ("b", "a.2"):
    calibrations.write(tmp_path, make(name=name))
  with pytest.raises(
    FileNotFoundError, match="the calibrations a.2, b.* --name=x"
  ):
    calibrations.read(tmp_path, "x")


@pytest.mark.parametrize(
  "name",
  ["", ".", "..", ".a", "a.", "a/b", "../a", "a\\b", "a b", "a\n", "ä", "a:b"]
  + ["con", "NUL.x", "a.json", "a.JSON", "x" * 65],
)
def test_other_names_are_refused(tmp_path, name):
  for use in (
    lambda: calibrations.check_free(tmp_path, name),
    lambda: calibrations.read(tmp_path, name),
    lambda: calibrations.write(tmp_path, make(name=name)),
  ):
    with pytest.raises(ValueError, match="is no name of a calibration"):
      use()
  assert not tree(tmp_path)


@settings(max_examples=60, deadline=None)
@given(
  st.text(max_size=70)
  | st.text("aB0-_.", max_size=70)
  | st.sampled_from(
    ["a.json", "a/b", "-", "best", "checkpoints", "line-0123456789"]
  )
)
def test_a_name_is_one_component_of_a_path(tmp_path_factory, name):
  folder = tmp_path_factory.mktemp("names")
  image = folder / "image.png"
  image.write_bytes(b"x")
  try:
    calibrations.write(folder / "run", make([image], name=name))
  except ValueError:
    assert not (folder / "run").exists()
    return
  digest = hashlib.sha256(b"x").hexdigest()[:12]
  assert {*tree(folder / "run")} == {
    f"calibrations/{name}.json",
    f"calibrations/{name}/references/image-{digest}.png",
  }
  assert calibrations.names(folder / "run") == [name]
  for file in (f"{name}.json", name):
    assert file_names.safe_name(file + "_") == file + "_" and file.isascii()
  # Copies to and from URLs leave out temporary files, and upload files of
  # checkpoints in another order.
  for file in tree(folder / "run"):
    assert not any(map(copies._is_temporary, file.split("/")))
    assert not copies.unit_of(file)


# ---- Files that are corrupt.


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_corrupt_file_is_named_or_still_valid(tmp_path_factory, data):
  folder = tmp_path_factory.mktemp("corrupt")
  image = folder / "0.png"
  image.write_bytes(b"x" * 20)
  path = calibrations.write(folder, make([image]))
  whole = path.read_bytes()
  kind = data.draw(st.sampled_from(["cut", "flip", "other", "value"]))
  values = st.sampled_from(
    [None, "x", -1, 1.5, True, math.nan, 10**400, [], [[1]], [{}], {}, {"a": 1}]
    + [{"size": 1}, {"size": -1, "overlap": 0.5}, {"size": 1, "overlap": "a"}]
  )
  at = data.draw(st.integers(0, 1000)) * (len(whole) - 1) // 1000
  if kind == "cut":
    new = whole[:at]
  elif kind == "flip":
    byte = data.draw(st.binary(min_size=1, max_size=1))
    new = whole[:at] + byte + whole[at + 1 :]
  elif kind == "other":
    new = data.draw(st.sampled_from([b"", b"\0" * 9, b"[]", b"null", b"{}"]))
  else:
    document = json.loads(whole)
    parts = [document, document["references"][0], document["threshold"]]
    part = data.draw(st.sampled_from(parts))
    part[data.draw(st.sampled_from([*sorted(part), "more"]))] = data.draw(
      values
    )
    new = json.dumps(document).encode()
  path.write_bytes(new)
  try:
    calibrations.read(folder, "line3")
  except ValueError as error:
    text = str(error)
    assert str(path) in text or str(path.with_suffix("")) in text
    assert "--name=line3 --overwrite" in text and "\n" not in text


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda path: path.unlink(), "cannot be read .No such file"),
    (lambda path: path.write_bytes(path.read_bytes()[:7]), "has changed"),
    (lambda path: path.write_bytes(b"\1" + path.read_bytes()), "has changed"),
  ],
)
def test_references_are_verified(tmp_path, images, change, message):
  calibrations.write(tmp_path, make(images))
  found = calibrations.read(tmp_path, "line3")
  path = tmp_path / "calibrations/line3/references" / found.references[1].file
  change(path)
  with pytest.raises(ValueError, match=f"{path} {message}.*calibrate"):
    calibrations.read(tmp_path, "line3")


# ---- State of the run.


class Config(dict):
  """A configuration with fields as attributes, as `ConfigDict` has."""

  def to_json_best_effort(self):
    return json.dumps(self)


def a_run(workdir, **more):
  config = Config(
    method_name="adaclip",
    method={"depth": 4},
    image_size=518,
    matmul_precision="float32",
    backbone={"name": "x", "path": "weights/x", "dtype": "float32"},
    train_data=["a"],
    smooth_sigma=4.0,
  )
  values = dict(
    params={"a": np.ones((2, 3), np.float32), "b": np.float32(1)},
    stats={"mean": np.zeros(0, np.float32)},
    backbone={"w": np.arange(4, dtype=np.int8)},
  )
  for key, value in more.items():
    (values if key in values else config)[key] = value
  values = {"categories": None, **values}
  return mock.Mock(spec=run_lib.Run, workdir=workdir, config=config, **values)


@pytest.mark.parametrize(
  "change",
  [
    {"method": {"depth": 5}},
    {"image_size": 224},
    {"matmul_precision": "bfloat16"},
    {"smooth_sigma": 2.0},
    {"backbone": {"w": np.array([0, 1, 2, 4], np.int8)}},
    {"backbone": {"v": np.arange(4, dtype=np.int8)}},
    {"params": {"a": np.ones((3, 2), np.float32), "b": np.float32(1)}},
    {"params": {"a": np.ones((2, 3), np.float32), "b": np.float32(2)}},
    {"stats": {"mean": np.zeros(1, np.float32)}},
  ],
)
def test_a_run_that_has_changed_is_refused(tmp_path, change):
  stored = make(run_digest=calibrations.run_digest(a_run(tmp_path)))
  calibrations.check_run(a_run(tmp_path), stored)
  changed = a_run(tmp_path, **change)
  with pytest.raises(ValueError, match="line3.json was made on .*--overwrite"):
    calibrations.check_run(changed, stored)


def test_what_scores_do_not_depend_on_may_change(tmp_path):
  first = calibrations.run_digest(a_run(tmp_path))
  other = a_run(tmp_path / "moved", train_data=["b"])
  other.config["backbone"] = {**other.config["backbone"], "path": "elsewhere"}
  assert calibrations.run_digest(other) == first
  other.config["backbone"]["dtype"] = "bfloat16"
  assert calibrations.run_digest(other) != first


def test_an_ensemble_is_that_of_its_members(tmp_path):
  members = [a_run(tmp_path), a_run(tmp_path, image_size=224)]
  digest = lambda *runs: calibrations.run_digest(
    mock.Mock(spec=ensemble.Ensemble, members=runs)
  )
  first = digest(*members)
  assert first == digest(*members) and first != digest(members[0])
  members[1].params["b"] = np.float32(3)
  assert first != digest(*members)


def test_options_of_a_calibration_are_not_given_again():
  calibrations.check_alone("line3", {"tile": False})
  with pytest.raises(ValueError, match="line3 sets .*: leave out --tile"):
    calibrations.check_alone("line3", {"references": False, "tile": True})
