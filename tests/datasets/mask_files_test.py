"""Files of masks: each belongs to one image, or is named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zsad_jax.datasets import mask_files, registry


def write(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("L", (4, 4)).save(path)
  return path


def pair(root):
  images, masks = root / "images", root / "masks"
  files = mask_files.image_files.in_tree(images)
  pairing = mask_files.pair(files, images, masks)
  shown = lambda path: path.relative_to(root).as_posix()
  found = {
    shown(image): [shown(mask) for mask in of_image]
    for image, of_image in pairing.masks.items()
  }
  return found, pairing.notes


def make(root, images, masks):
  for name in images:
    write(root / "images" / name)
  for name in masks:
    write(root / "masks" / name)
  return root


@pytest.mark.parametrize(
  "image, masks",
  [
    ("a.png", ["a_mask.png"]),
    ("a.jpg", ["a.png"]),
    ("a.PNG", ["A_MASK.png"]),
    ("x/a.png", ["x/a.png"]),
    ("x/a.png", ["a_GT.bmp"]),
    ("a.png", ["y/a_label.png"]),
    ("a_gt.png", ["a_mask.png"]),
    ("a.png", ["a/000.png", "a/001.png"]),
    ("x/a.png", ["x/a/000.png", "x/a/001.png"]),
    ("000.png", ["000/000.png"]),
    ("A.png", ["a/0.png", "a/1.png"]),
  ],
)
def test_a_mask_has_the_name_of_its_image(tmp_path, image, masks):
  make(tmp_path, [image], masks)
  expected = {f"images/{image}": [f"masks/{mask}" for mask in masks]}
  assert pair(tmp_path) == (expected, ())


_NAMES = st.lists(
  st.sampled_from(["a", "b", "c", "d_gt", "B", "000", "001"]),
  unique=True,
  min_size=1,
)


@settings(max_examples=30, deadline=None)
@given(
  names=_NAMES, folders=st.integers(1, 3), ending=st.sampled_from(["", "_mask"])
)
def test_no_mask_goes_to_another_image(
  tmp_path_factory, names, folders, ending
):
  """Names may be equal in several folders, or but for their case."""
  root = tmp_path_factory.mktemp("pairs")
  stems = [f"{i}/{name}" for i in range(folders) for name in names]
  make(root, [f"{s}.png" for s in stems], [f"{s}{ending}.png" for s in stems])
  found, notes = pair(root)
  assert not notes
  assert found == {
    f"images/{stem}.png": [f"masks/{stem}{ending}.png"] for stem in stems
  }


@pytest.mark.parametrize(
  "images, masks, message",
  [
    (["a.png"], ["a.png", "a_mask.png"], "are masks of the same image"),
    (["a.png"], ["x/a.png", "y/a.png"], "are masks of the same image"),
    (["x/a.png", "y/a.png"], ["a.png"], "may be the mask of"),
    (["a.png", "a.jpg"], ["a.png"], "may be the mask of"),
  ],
)
def test_ambiguous_names_are_refused(tmp_path, images, masks, message):
  make(tmp_path, images, masks)
  with pytest.raises(ValueError, match=message):
    pair(tmp_path)


def test_files_that_are_not_used_are_named(tmp_path):
  make(tmp_path, ["a.png"], ["mask_a.png", "mask_b.png"])
  assert "holds 2 files, none has the name of an image" in pair(tmp_path)[1][0]
  (tmp_path / "masks/a.json").write_text("{}")
  (tmp_path / "masks/a.npy").write_bytes(b"")
  assert (
    "2 files that are not read as masks (1 .json, 1 .npy)"
    in (pair(tmp_path)[1][0])
  )
  write(tmp_path / "masks/a.png")
  found, notes = pair(tmp_path)
  assert found == {"images/a.png": ["masks/a.png"]}
  assert len(notes) == 1 and "2 of 3 files have the name of no" in notes[0]


def mvtec(root, masks="ground_truth/bad/000_mask.png"):
  for name in ("train/good", "test/good", "test/bad"):
    write(root / "cap" / name / "000.png")
  write(root / "cap" / masks)
  return root


@pytest.mark.parametrize(
  "masks, note",
  [
    ("Ground_Truth/Bad/000_mask.png", ""),
    ("ground_truth/bad/000/000.png", ""),
    ("ground_truth/000_mask.png", "1 files outside of folders"),
    ("ground_truth/crack/000_mask.png", "there is no folder test/crack"),
    ("ground_truth/bad/mask_000.png", "none has the name of an image"),
  ],
)
def test_folders_of_masks(tmp_path, masks, note):
  dataset = registry.open_dataset(str(mvtec(tmp_path / "set", masks)))
  assert dataset.has_masks == (not note)
  assert len(dataset.notes) == bool(note) and note in "".join(dataset.notes)


@pytest.mark.parametrize("masks", ["test/bad/000_mask.png", "test/masks/0.png"])
def test_masks_among_the_images_are_refused(tmp_path, masks):
  with pytest.raises(ValueError, match="expected images only"):
    registry.open_dataset(str(mvtec(tmp_path / "set", masks)))
