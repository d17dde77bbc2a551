"""Readers of layouts in which the names of folders are the annotation.

  MVTec:   <class>/train/good, <class>/test/<defect>,
           <class>/ground_truth/<defect>/<stem>_mask.png, or several masks
           <class>/ground_truth/<defect>/<stem>/<name>.png
  plain:   <class>/normal, optionally <class>/anomalous and <class>/masks
  pairs:   images/ and masks/, every image anomalous

A class may be several folders deep ("metal/nut"), or be the folder itself.
Names of these folders are understood in any case, see `class_folders`.
Everything is sorted by name, so that the order is the same on every machine,
and masks are paired by name: pairing by position, as the papers' generators do,
shifts every pair after a missing file.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from zsad_jax.datasets import (
  class_folders,
  image_files,
  index,
  mask_files,
  walker,
)
from zsad_jax.datasets.walker import folders_in
from zsad_jax.types import ANOMALOUS, NORMAL


def is_mvtec(root: image_files.PathLike) -> bool:
  """Return whether `root` is, or contains, a class in MVTec AD's layout."""
  return any(class_folders.find(Path(root), class_folders.is_mvtec_class))


def read_mvtec(
  root: image_files.PathLike, *, name: str | None = None
) -> index.Dataset:
  """Read MVTec AD's layout.

  Args:
    root: the folder of the classes, or of a single class.
    name: of the data set; by default that of the folder.

  Raises:
    ValueError: there is no test image, a class has no folder of normal test
      images, an anomalous image has no mask although others of its class have
      one, or two masks belong to one image.
  """
  root = Path(os.path.abspath(root))  # ".." has no name.
  train, test, notes = [], [], []
  found = list(class_folders.find(root, class_folders.is_mvtec_class))
  for folder, class_name in found:
    train += _mvtec_train(folder, class_name, notes)
    test += _mvtec_test(folder, class_name, notes)
    notes += [_loose(folder), class_folders.other_folders(folder)]
  notes.append(class_folders.unclaimed(root, [folder for folder, _ in found]))
  return index.make_dataset(
    name or root.name,
    root,
    train=train,
    test=test,
    notes=[note for note in notes if note],
  )


def is_plain(root: image_files.PathLike) -> bool:
  """Return whether `root` is, or contains, a class in the plain layout."""
  return any(class_folders.find(Path(root), class_folders.is_plain_class))


def read_plain(
  root: image_files.PathLike,
  *,
  name: str | None = None,
  class_name: str | None = None,
) -> index.Dataset:
  """Read `normal/` and, where they exist, `anomalous/` and `masks/`.

  They are searched with their subfolders. All images are test images; few-shot
  references are chosen by the user.

  Args:
    root: the folder of these folders, or of folders of classes.
    name: of the data set; by default that of the folder.
    class_name: of all images; by default the names of the folders.

  Raises:
    ValueError: there is no image, images of a class are in a folder of an
      unknown name, or some anomalous images have no mask although there are
      masks.
  """
  root = Path(os.path.abspath(root))  # ".." has no name.
  test, notes = [], []
  found = list(class_folders.find(root, class_folders.is_plain_class))
  for folder, own_name in found:
    class_folders.check_plain(folder)
    class_folders.check_is_class(folder, root)
    notes.append(_loose(folder))
    shown = class_name or own_name
    masks = class_folders.child(folder, *class_folders.MASK_FOLDERS)
    normal = class_folders.child(folder, *class_folders.NORMAL_FOLDERS)
    bad = class_folders.child(folder, *class_folders.ANOMALOUS_FOLDERS)
    normal_images = _noted(normal, walker.tree(normal), notes)
    images = _noted(bad, walker.tree(bad), notes)
    mask_files.check_images(normal_images, normal)
    mask_files.check_images(images, bad)
    pairing = mask_files.pair(images, bad, masks, normal=normal_images)
    of_class = [
      *_samples(normal_images, pairing.of_normal, shown, "", NORMAL),
      *_samples(images, pairing.masks, shown, "", ANOMALOUS),
    ]
    _check_all_masked(of_class, pairing.notes, required=pairing.num_files > 0)
    notes += pairing.notes
    test += of_class
  notes.append(class_folders.unclaimed(root, [folder for folder, _ in found]))
  return index.make_dataset(
    name or root.name,
    root,
    test=test,
    notes=[note for note in notes if note],
  )


def pair(images: Path, masks: Path, class_name: str) -> list[index.Sample]:
  """Return the anomalous images of a folder with their masks in another.

  Raises:
    ValueError: an image has no mask.
  """
  found = image_files.in_folder(images)
  pairing = mask_files.pair(found, images, masks)
  samples = _samples(found, pairing.masks, class_name, "", ANOMALOUS)
  _check_all_masked(samples, pairing.notes, required=True)
  return samples


def _mvtec_train(
  folder: Path, class_name: str, notes: list[str]
) -> list[index.Sample]:
  samples = []
  train = class_folders.child(folder, "train")
  notes.append(_loose(train))
  for good in folders_in(train):
    if class_folders.is_normal(good.name):
      samples += _samples(
        _noted(good, walker.folder(good), notes),
        {},
        class_name,
        good.name,
        NORMAL,
      )
      class_folders.check_flat(good)
    elif others := walker.tree(good).images:
      notes.append(
        f"{good}: {len(others)} images are left out; training images are "
        "normal, in train/good."
      )
  return samples


def _mvtec_test(
  folder: Path, class_name: str, notes: list[str]
) -> list[index.Sample]:
  """Return the test images of a class; add notes on unused files."""
  samples, unused = [], []
  test = class_folders.child(folder, "test")
  masks = class_folders.child(folder, "ground_truth", "groundtruth")
  class_folders.check_has_normal(test)
  notes.append(_loose(test))
  defects = folders_in(test)
  for defect in defects:
    normal = class_folders.is_normal(defect.name)
    class_folders.check_flat(defect)
    images = _noted(defect, walker.folder(defect), notes)
    mask_files.check_images(images, test)
    of_defect = class_folders.child(masks, class_folders.folded(defect.name))
    if normal:  # BTAD has masks of normal images, which are not needed.
      found = mask_files.pair([], defect, of_defect, normal=images).of_normal
    else:
      pairing = mask_files.pair(images, defect, of_defect)
      found, unused = pairing.masks, [*unused, *pairing.notes]
    label = NORMAL if normal else ANOMALOUS
    samples += _samples(images, found, class_name, defect.name, label)
  unused += mask_files.stray(masks, [d.name for d in defects])
  _check_all_masked(samples, unused)
  notes += unused
  return samples


def _noted(
  folder: Path, found: walker.Tree, notes: list[str]
) -> Sequence[Path]:
  """Return the images of a folder and note the files that were left out."""
  if left_out := walker.describe(found.left_out, data=True):
    notes.append(f"{folder}: {left_out}.")
  return found.images


def _loose(folder: Path) -> str:
  """Return a note about images that lie between folders of images, or ""."""
  images = walker.folder(folder).images
  if not images:
    return ""
  return (
    f"{folder}: {len(images)} images are left out, such as {images[0].name}; "
    "images lie in subfolders here."
  )


def _samples(
  images: Sequence[Path],
  masks: Mapping[Path, Sequence[Path]],
  class_name: str,
  specie_name: str,
  label: int,
) -> list[index.Sample]:
  samples = []
  for image in images:
    first, *more = (*map(str, masks.get(image, ())),) or ("",)
    normal = label == NORMAL
    samples.append(
      index.Sample(
        str(image),
        "" if normal else first,
        class_name,
        specie_name,
        label,
        more_masks=() if normal else tuple(more),
        unused_mask=first if normal else "",
      )
    )
  return samples


def _check_all_masked(
  samples: Sequence[index.Sample],
  notes: Sequence[str],
  *,
  required: bool = False,
) -> None:
  """Refuse partial masks: an anomaly without mask would count as normal."""
  bare = [sample for sample in samples if not sample.has_mask]
  if bare and (required or any(sample.mask_path for sample in samples)):
    raise ValueError(
      f"{bare[0].image_path}: anomalous, but no mask has its name, unlike "
      f"other images of {bare[0].class_name!r} ({len(bare)} such). Expected "
      "the image's name, optionally with _mask, _label, _Segmentation or "
      f"_GT appended. {' '.join(notes)}".rstrip()
    )
