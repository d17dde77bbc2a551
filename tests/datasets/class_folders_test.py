"""Folders of classes: names in any case, links, and folders left out."""

import os
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.index_files import touch
from zsad_jax.datasets import class_folders, registry

NORMAL = st.sampled_from(class_folders.NORMAL_FOLDERS)
ANOMALOUS = st.sampled_from(class_folders.ANOMALOUS_FOLDERS)
STYLES = st.sampled_from(
  (str.lower, str.upper, str.title, lambda n: n.replace("_", "-"))
)


@settings(max_examples=30, deadline=None)
@given(NORMAL, ANOMALOUS, STYLES, st.booleans())
def test_names_in_any_case(tmp_path_factory, normal, bad, style, mvtec):
  root = tmp_path_factory.mktemp("set") / "cap"
  normal, bad = style(normal), style(bad)
  test = root / style("test") if mvtec else root
  touch(test / normal / "0.png", test / normal / "1.png", test / bad / "0.png")
  if mvtec:
    touch(root / style("train") / normal / "0.png")
    touch(root / style("ground_truth") / style(bad) / "0_mask.png")
  else:
    touch(root / style("masks") / "0.png")
  for folder in (root, root.parent):  # The class, or a folder of classes.
    found = registry.read_folder(folder)
    assert found.counts == (int(mvtec), 2, 1)
    assert found.has_masks and not found.notes
    assert found.class_names == ("cap",)


def mvtec(root, *names):
  touch(*(root / name / "0.png" for name in ("train/good", *names)))
  return root


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (("test/NG", "test/Teile"), r"found NG, Teile. Understood are good, ok"),
    (("test/good/monday",), r"test.good: .*monday holds 1 images"),
    (("test/good", "Test/good"), "folders Test and test have the same meaning"),
  ],
)
def test_folders_that_are_not_understood_are_refused(names, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    registry.read_folder(mvtec(tmp_path / "cap", *names))


def test_a_plain_class_has_no_unknown_folder_of_images(tmp_path):
  touch(tmp_path / "Normal/0.png", tmp_path / "scratch/0.png")
  with pytest.raises(ValueError, match="images in scratch are neither in a"):
    registry.read_folder(tmp_path)
  touch(tmp_path / "notes/a.txt")
  shutil.rmtree(tmp_path / "scratch")
  assert registry.read_folder(tmp_path).counts == (0, 1, 0)
  touch(tmp_path / "OK/0.png")
  with pytest.raises(ValueError, match="folders Normal and OK have the same"):
    registry.read_folder(tmp_path)


def test_good_alone_is_no_class(tmp_path):
  touch(tmp_path / "cap/train/good/0.png")
  with pytest.raises(ValueError, match="unknown layout"):
    registry.read_folder(tmp_path)


def test_images_that_are_left_out_are_noted(tmp_path):
  mvtec(tmp_path / "cap", "test/good", "test/bad", "train/bad")
  touch(
    tmp_path / "cap/test/loose.png",
    tmp_path / "cap/test/bad/1.heif0",
    tmp_path / "cap/test/bad/1.txt",
    tmp_path / "lid/OK/0.png",
    tmp_path / "@eaDir/x.png",
  )
  found = registry.read_folder(tmp_path)
  assert found.counts == (1, 1, 1)
  train, loose, other, lid = found.notes
  assert "train/bad: 1 images are left out" in train
  assert "test: 1 images are left out, such as loose.png" in loose
  assert other.endswith("bad: 1 file left out: 1 .heif0.")
  assert "1 images lie in no class and are left out, such as lid/OK" in lid


def test_linked_classes_and_folders_are_read_once(tmp_path):
  server = mvtec(tmp_path / "server/cap", "test/good", "test/bad")
  touch(tmp_path / "server/more/1.png")
  (tmp_path / "set").mkdir()
  os.symlink(server, tmp_path / "set/cap")
  os.symlink(server, tmp_path / "set/cap again")
  os.symlink(tmp_path / "set", tmp_path / "set/loop")
  found = registry.read_folder(tmp_path / "set")
  assert found.class_names == ("cap",) and found.counts == (1, 1, 1)
  assert not found.notes
  os.symlink(tmp_path / "server/more", server / "test/dent")
  assert registry.read_folder(tmp_path / "set").counts == (1, 1, 2)


def test_hidden_and_system_folders_are_no_kinds_of_anomalies(tmp_path):
  names = (".ipynb_checkpoints", "@eaDir", "__MACOSX", "bad/@eaDir")
  mvtec(tmp_path, "test/good", "test/bad", *(f"test/{n}" for n in names))
  found = registry.read_folder(tmp_path)
  assert found.counts == (1, 1, 1) and not found.notes


def test_parts_of_a_data_set_are_no_classes(tmp_path):
  names = ("train/OK", "train/NG", "val/OK", "val/NG")
  touch(*(tmp_path / name / "0.png" for name in names))
  with pytest.raises(ValueError, match="train is no class, but a part of"):
    registry.read_folder(tmp_path)
  found = registry.read_folder(tmp_path / "val")  # It is named.
  assert found.counts == (0, 1, 1)


def test_further_folders_of_a_class_are_noted(tmp_path):
  mvtec(tmp_path, "test/good", "test/bad", "validation/good", "NG/monday")
  (note,) = registry.read_folder(tmp_path).notes
  assert "1 images in NG are left out" in note


def test_a_data_set_has_a_name_whatever_path_names_it(tmp_path, monkeypatch):
  mvtec(tmp_path / "cap", "test/good", "test/bad")
  touch(tmp_path / "lid/normal/0.png")
  monkeypatch.chdir(tmp_path / "cap/test")
  for path in ("..", "../../cap/", tmp_path / "cap"):
    found = registry.read_folder(path)
    assert found.name == "cap" and found.class_names == ("cap",)
  monkeypatch.chdir(tmp_path / "lid/normal")
  assert registry.read_folder("..").class_names == ("lid",)


def test_a_class_of_other_bytes_has_a_prompt(tmp_path):
  mvtec(tmp_path / os.fsdecode(b"Stra\xdfe"), "test/good", "test/bad")
  found = registry.read_folder(tmp_path)
  assert registry.prompt_names(found) == ("Stra e",)


PLACES = st.sampled_from(("", "cap", "lid", "metal/nut", ".hidden", "@eaDir"))
PARTS = st.sampled_from(("", "train", "test", "Normal", "NG", "OK", "val", "x"))
KINDS = st.sampled_from(("", "good", "OK", "NG", "scratch", "monday/a"))
NAMES = st.sampled_from(
  ("0.png", "1.JPG", "2.tif", "3.png", "n.txt", "._0.png")
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(PLACES, PARTS, KINDS, NAMES), max_size=12))
def test_no_image_is_lost_in_silence(tmp_path_factory, files):
  """Every image is read once, or counted in a note, or the set is refused."""
  root = tmp_path_factory.mktemp("set")
  touch(*(root.joinpath(*parts) for parts in files))
  expected = {
    os.path.join(folder, name)
    for folder, _, names in os.walk(root)
    for name in names
    if not name.startswith("._") and not name.endswith(".txt")
    if "/." not in folder and "@eaDir" not in folder
  }
  try:
    found = registry.read_folder(root)
  except ValueError as error:
    assert str(root) in str(error) and len(str(error).splitlines()) == 1
    return
  read = [sample.image_path for sample in (*found.train, *found.test)]
  assert len(set(read)) == len(read) and set(read) <= expected
  noted = sum(
    int(count)
    for note in found.notes
    for count in re.findall(r": (\d+) images", note)
  )
  assert len(read) + noted == len(expected), found.notes
  for sample in (*found.train, *found.test):
    folders = os.path.relpath(sample.image_path, root).split("/")
    normal = {f.lower() for f in folders} & {"good", "ok", "normal"}
    assert bool(normal) == (sample.label == 0) or "NG" in folders
