"""Search for images: files, folders, patterns and lists."""

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
