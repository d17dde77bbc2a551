"""Search for images: files, folders, patterns and lists."""

import os

import pytest

from tests.helpers.index_files import touch
from zsad_jax.datasets import image_files


def test_images_of_a_folder_are_sorted(tmp_path):
  touch(tmp_path / "b.JPG", tmp_path / "a" / "c.png", tmp_path / "note.txt")
  assert image_files.below(tmp_path) == (
    str(tmp_path / "a" / "c.png"),
    str(tmp_path / "b.JPG"),
  )
  assert image_files.below(tmp_path / "b.JPG") == (str(tmp_path / "b.JPG"),)
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="empty: no image found"):
    image_files.below(tmp_path / "empty")
  with pytest.raises(FileNotFoundError, match="gone does not exist"):
    image_files.below(tmp_path / "gone")


@pytest.fixture
def images(tmp_path):
  paths = [tmp_path / "good" / f"{i}.png" for i in range(4)]
  touch(*paths, tmp_path / "good" / "deep" / "5.png")
  return [str(path) for path in paths]


def test_folders_patterns_and_files_are_merged(images, tmp_path):
  folder = str(tmp_path / "good")
  deep = str(tmp_path / "good/deep/5.png")
  assert image_files.find([folder]) == [*images, deep]
  assert image_files.find([f"{folder}/[01].png", images[1]]) == images[:2]
  assert image_files.find([f"{folder}/**/5.png", folder]) == [deep, *images]
  assert image_files.find([tmp_path / "good/2.png"]) == images[2:3]


def test_relative_and_absolute_paths_are_one_image(
  images, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path / "good")
  # The path as it was given first: outputs name it.
  assert image_files.find(["0.png", images[0], "./0.png"]) == ["0.png"]
  assert image_files.find([images[0], "0.png"]) == images[:1]


def test_a_hard_link_is_the_same_image(images, tmp_path):
  os.link(images[1], tmp_path / "good" / "linked.png")
  deep = str(tmp_path / "good/deep/5.png")
  assert image_files.find([tmp_path / "good"]) == [*images, deep]
  linked = str(tmp_path / "good" / "linked.png")
  assert image_files.find([linked, images[1]]) == [linked]


def test_a_list_keeps_its_order_and_is_relative_to_its_folder(images, tmp_path):
  listing = tmp_path / "some.txt"
  listing.write_text(f"good/3.png\n\n {images[0]}\n")
  assert image_files.find([str(listing)]) == [images[3], images[0]]
  listing.write_text("good/3.png#xywh=0,0,4,4\n")
  assert image_files.find([listing]) == [f"{images[3]}#xywh=0,0,4,4"]


def test_errors_name_the_path(tmp_path):
  listing = tmp_path / "some.txt"
  listing.write_text("gone.png\n")
  with pytest.raises(FileNotFoundError, match=r"some\.txt: .*gone\.png"):
    image_files.find([listing])
  listing.write_text("\n")
  with pytest.raises(ValueError, match=r"some\.txt: the list is empty"):
    image_files.find([listing])
  with pytest.raises(FileNotFoundError, match=r"nowhere/\*\.png is no image"):
    image_files.find(["nowhere/*.png"])
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="empty: no image found"):
    image_files.find([tmp_path / "empty"])
  with pytest.raises(ValueError, match="expected at least one"):
    image_files.find([])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_of_windows(encoding, images, tmp_path):
  listing = tmp_path / "some.TXT"
  listing.write_bytes("good\\3.png\r\n\r\ngood/0.png".encode(encoding))
  assert image_files.find([listing]) == [images[3], images[0]]
  listing.write_bytes(b"D:\\good\\3.png")
  with pytest.raises(FileNotFoundError, match=r"TXT: D:.good.3.png does not"):
    image_files.find([listing])


def test_names_of_any_bytes(tmp_path):
  name = os.fsdecode(b"Stra\xdfe.png")
  touch(tmp_path / name)
  (tmp_path / "some.txt").write_bytes(b"Stra\xdfe.png\n")
  found = image_files.find([tmp_path, tmp_path / "some.txt"])
  assert found == [str(tmp_path / name)]


def test_an_existing_name_with_a_comma_is_taken_whole(tmp_path):
  touch(tmp_path / "good, line 3/0.png", tmp_path / "1.png")
  folder = str(tmp_path / "good, line 3")
  for flags in (folder.split(","), [p.strip() for p in folder.split(",")]):
    found = image_files.find([*flags, str(tmp_path / "1.png")])
    assert found == [f"{folder}/0.png", str(tmp_path / "1.png")]


def test_patterns_match_folders_and_leave_out_other_files(images, tmp_path):
  touch(tmp_path / "good/notes.txt", tmp_path / "good/.h.png")
  touch(tmp_path / "good/@eaDir/0.png/t.png", tmp_path / "good/x.gif")
  found = image_files.search([f"{tmp_path}/good/*"])
  assert sorted(found.images) == sorted(
    [*images, str(tmp_path / "good/deep/5.png")]
  )
  assert "2 files left out: 1 .gif, 1 .txt" in found.note
  every = image_files.search([f"{tmp_path}/**"])
  assert sorted(every.images) == sorted(found.images)
  assert every.note == found.note
  # A pattern with a suffix names files of any kind.
  assert image_files.find([f"{tmp_path}/good/*.gif"])


def test_parts_of_one_file_are_different_images(images):
  parts = [f"{images[0]}#xywh=0,0,4,4", f"{images[0]}#xywh=4,0,4,4"]
  listing = os.path.join(os.path.dirname(images[0]), "l.txt")
  with open(listing, "w") as file:
    file.write("\n".join([*parts, parts[0]]))
  assert image_files.find([listing]) == parts


def test_a_data_set_is_no_folder_of_normal_images(tmp_path):
  touch(
    *(tmp_path / f"set/cap/test/{name}/0.png" for name in ("good", "NG")),
    *(tmp_path / f"own/{name}/0.png" for name in ("Normal", "anomalous")),
  )
  for name, bad in (("set", "NG"), ("set/cap", "NG"), ("own", "anomalous")):
    with pytest.raises(ValueError, match=rf"anomalous ones \(.*{bad}\)"):
      image_files.check_normal([tmp_path / name])
  image_files.check_normal([tmp_path / "own/Normal", tmp_path / "*.png"])
