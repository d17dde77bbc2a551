"""The search of folders, compared with an independent reading by os.walk."""

import collections
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.index_files import touch
from zsad_jax.datasets import image_files, walker

IMAGES = ("a.png", "b.JPG", "c.tiff", "e.webp", "f.jfif", "g.ppm")
OTHERS = ("x.gif", "y.txt", "z", "u.PSD", "v.json")
HIDDEN = (".h.png", "._a.png", "Thumbs.db", "desktop.ini")
FOLDERS = ("sub", "Fotos ß", "in[1]", "a.png.d", "100%", "x\ny", "it's")
SKIPPED = ("@eaDir", "#recycle", "$RECYCLE.BIN", "__MACOSX", ".Trash-0")

names = st.sampled_from(IMAGES + OTHERS + HIDDEN)
folders = st.sampled_from(FOLDERS + SKIPPED)
paths = st.tuples(st.lists(folders, max_size=3), names)
# Folder of the link, its name, and the number of a folder to link to.
links = st.tuples(st.integers(0, 9), st.sampled_from("lmn"), st.integers(0, 9))


def make(root, files, linked, file_links):
  """Write a tree with links between its folders and to its files."""
  root.mkdir()
  for parents, name in files:
    touch(root.joinpath(*parents, name))
  made = sorted(d for d, _, _ in os.walk(root))
  for place, name, target in linked:
    path = os.path.join(made[place % len(made)], name)
    if not os.path.lexists(path):
      os.symlink(made[target % len(made)], path)
  written = sorted(
    os.path.join(d, n) for d, _, found in os.walk(root) for n in found
  )
  for place, name, target in file_links:
    path = os.path.join(made[place % len(made)], f"{name}.png")
    if written and not os.path.lexists(path):
      os.symlink(written[target % len(written)], path)


def skipped(name):
  return name.startswith(".") or name in SKIPPED + HIDDEN


def independent(root):
  """Return the real files below a folder, and the suffixes of the others."""
  found, visited = set(), set()
  for folder, inner, files in os.walk(root, followlinks=True):
    inner[:] = [n for n in inner if not skipped(n)]
    # os.walk would go round in circles.
    inner[:] = [
      n
      for n in inner
      if not os.path.realpath(root).startswith(
        os.path.realpath(os.path.join(folder, n))
      )
    ]
    depth = os.path.relpath(folder, root).count(os.sep)
    if depth > 8:
      inner.clear()
    visited.add(os.path.realpath(folder))
    for name in files:
      if not skipped(name):
        found.add((os.path.join(folder, name), name))
  images = {
    os.path.realpath(path)
    for path, name in found
    if name.lower().endswith((".png", ".jpg", ".tiff", ".webp", ".jfif", "ppm"))
  }
  others = {
    os.path.realpath(path): os.path.splitext(name)[1].lower()
    for path, name in found
    if name.lower() in {n.lower() for n in OTHERS}
  }
  return images, collections.Counter(others.values())


@settings(max_examples=40, deadline=None)
@given(
  st.lists(paths, max_size=12), st.lists(links, max_size=5), st.lists(links)
)
def test_a_tree_holds_the_images_of_an_independent_reading(
  tmp_path_factory, files, linked, file_links
):
  root = tmp_path_factory.mktemp("tree") / "root"
  make(root, files, linked, file_links)
  expected, others = independent(root)
  found = walker.tree(root)
  assert {os.path.realpath(p) for p in found.images} == expected
  assert len(found.images) == len(expected)
  assert found.images == sorted(found.images)
  kinds = collections.Counter(
    "" if kind == "without suffix" else kind for kind in found.left_out.values()
  )
  assert kinds == others
  # Relative and absolute paths, patterns and links name the same images.
  if expected:
    relative = os.path.relpath(root)
    every = image_files.find([root, relative, *found.images])
    assert len(every) == len(expected)


def test_a_folder_below_the_root_keeps_its_own_name(tmp_path):
  touch(tmp_path / "z/1.png", tmp_path / "outside/2.png")
  (tmp_path / "set").mkdir()
  os.rename(tmp_path / "z", tmp_path / "set/z")
  for name, target in (
    ("a", "set/z"),
    ("b", "outside"),
    ("up", "."),
    ("s", "set"),
  ):
    os.symlink(tmp_path / target, tmp_path / "set" / name)
  found = walker.tree(tmp_path / "set").images
  assert [str(p.relative_to(tmp_path)) for p in found] == [
    "set/b/2.png",
    "set/z/1.png",
  ]


def test_broken_links_are_counted(tmp_path):
  touch(tmp_path / "1.png")
  os.symlink(tmp_path / "gone.png", tmp_path / "2.png")
  os.symlink(tmp_path / "3.png", tmp_path / "3.png")  # A circle.
  found = image_files.search([tmp_path])
  assert len(found.images) == 1
  assert found.note == "1 image; 2 files left out: 2 broken links."


def test_files_of_other_kinds_are_named(tmp_path):
  touch(*(tmp_path / n for n in ("1.png", "2.gif", "3.GIF", "4.psd", "5")))
  found = image_files.search([tmp_path, tmp_path])
  assert found.note == (
    "1 image; 4 files left out: 2 .gif, 1 .psd, 1 without suffix (save single "
    "images of .gif as .png)."
  )
  assert image_files.search([tmp_path / "1.png"]).note == ""
  (tmp_path / "1.png").unlink()
  with pytest.raises(ValueError, match=r"no image found.*; 4 files left out"):
    image_files.find([tmp_path])


@pytest.mark.parametrize("table", ["map", "scores.csv", "scores.partial.csv"])
def test_results_of_predict_are_no_images(table, tmp_path):
  touch(tmp_path / "1.png", tmp_path / "1_overlay.png", tmp_path / "2.png")
  find = lambda: [p.name for p in walker.tree(tmp_path).images]
  assert find() == ["1.png", "1_overlay.png", "2.png"]  # Of someone else.
  if table == "map":
    touch(tmp_path / "1_map.npy")
  else:
    (tmp_path / table).write_text("image,score,label,threshold\n")
  assert find() == ["1.png", "2.png"]
  assert image_files.find([f"{tmp_path}/*.png"]) == [
    str(tmp_path / "1.png"),
    str(tmp_path / "2.png"),
  ]


def test_runs_and_evaluations_are_no_images(tmp_path):
  touch(
    *(tmp_path / "runs/a" / n for n in ("config.json", "metrics.jsonl")),
    *(tmp_path / "runs/a/evaluation/x" / n for n in ("a.png", "results.json")),
    *(tmp_path / "tables/x" / n for n in ("results.json", "results.csv")),
    *(tmp_path / "tables/x" / n for n in ("nut.png", "4-shot/nut.png")),
    tmp_path / "photos/1.png",
    tmp_path / "photos/config.json",
  )
  found = walker.tree(tmp_path).images
  assert found == [tmp_path / "photos/1.png"]


def test_masks_next_to_images_are_no_images(tmp_path):
  touch(
    *(tmp_path / f"nut/{n}/0.png" for n in ("test/bad", "ground_truth/bad")),
    *(tmp_path / f"cap/{n}/0.png" for n in ("normal", "masks")),
    tmp_path / "other/masks/0.png",
  )
  found = image_files.search([tmp_path])
  assert len(found.images) == 3
  assert "1 masks in ground_truth, 1 masks in masks" in found.note
  assert len(image_files.find([tmp_path / "cap/masks"])) == 1


def test_links_of_masks_to_one_file_are_kept(tmp_path):
  touch(tmp_path / "0.png")
  for name in ("1.png", "2.png"):
    os.symlink(tmp_path / "0.png", tmp_path / name)
  assert len(image_files.in_tree(tmp_path)) == 3
  assert image_files.in_folder(tmp_path) == [tmp_path / "0.png"]


def test_folders_that_cannot_be_read_are_left_out(tmp_path, monkeypatch):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "0.png").touch()
  scan = walker._scan

  def failing(path):
    if path.name == "a":
      raise PermissionError(13, "Permission denied", str(path))
    return scan(path)

  monkeypatch.setattr(walker, "_scan", failing)
  errors = []
  found = walker.tree(tmp_path, errors=errors)
  assert found.images == [tmp_path / "b" / "0.png"]
  assert [error.filename for error in errors] == [str(tmp_path / "a")]
  with pytest.raises(PermissionError):
    walker.tree(tmp_path)
