"""Readers of layouts in which the names of folders are the annotation.

  MVTec:   <class>/train/good, <class>/test/<defect>,
           <class>/ground_truth/<defect>/<stem>_mask.png, or several masks
           <class>/ground_truth/<defect>/<stem>/<name>.png
  plain:   <class>/normal, optionally <class>/anomalous and <class>/masks
  pairs:   images/ and masks/, every image anomalous

A class may be several folders deep ("metal/nut"), or be the folder itself.
Everything is sorted by name, so that the order is the same on every machine,
and masks are paired by name: pairing by position, as the papers' generators do,
shifts every pair after a missing file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from zsad_jax.datasets import image_files, index, mask_files
from zsad_jax.types import ANOMALOUS, NORMAL

NORMAL_FOLDERS = ("good", "ok")  # "ok" in BTAD.

_DEPTH = 4  # Maximal depth of a class below the folder of a data set.


def is_mvtec(root: image_files.PathLike) -> bool:
  """Return whether `root` is, or contains, a class in MVTec AD's layout."""
  return any(True for _ in _classes(Path(root), _is_mvtec_class))


def read_mvtec(
  root: image_files.PathLike, *, name: str | None = None
) -> index.Dataset:
  """Read MVTec AD's layout.

  Args:
    root: the folder of the classes, or of a single class.
    name: of the data set; by default that of the folder.

  Raises:
    ValueError: there is no test image, an anomalous one has no mask although
      others of its class have one, or two masks belong to one image.
  """
  root = Path(root).absolute()
  train, test, notes = [], [], []
  for folder, class_name in _classes(root, _is_mvtec_class):
    for good in folders_in(folder / "train"):
      if good.name in NORMAL_FOLDERS:
        train += _samples(
          image_files.in_folder(good), {}, class_name, good.name, NORMAL
        )
    test += _mvtec_test(folder, class_name, notes)
  return index.make_dataset(
    name or root.name, root, train=train, test=test, notes=notes
  )


def is_plain(root: image_files.PathLike) -> bool:
  """Return whether `root`, or a folder in it, has a folder `normal`."""
  return any(True for _ in _classes(Path(root), _is_plain_class))


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
    ValueError: there is no image, or some anomalous images have no mask
      although there are masks.
  """
  root = Path(root).absolute()
  test, notes = [], []
  for folder, found in _classes(root, _is_plain_class):
    shown, masks = class_name or found, mask_files.find_folder(folder, "masks")
    normal, anomalous = folder / "normal", folder / "anomalous"
    images = image_files.in_tree(normal), image_files.in_tree(anomalous)
    mask_files.check_images(images[0], normal)
    mask_files.check_images(images[1], anomalous)
    pairing = mask_files.pair(images[1], anomalous, masks, normal=images[0])
    of_class = [
      *_samples(images[0], {}, shown, "", NORMAL),
      *_samples(images[1], pairing.masks, shown, "", ANOMALOUS),
    ]
    _check_all_masked(of_class, pairing.notes, required=pairing.num_files > 0)
    notes += pairing.notes
    test += of_class
  return index.make_dataset(name or root.name, root, test=test, notes=notes)


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


def _classes(
  root: Path, is_class: Callable[[Path], bool], depth: int = _DEPTH
) -> Iterator[tuple[Path, str]]:
  """Yield folders and names of classes; they are not nested."""
  if is_class(root):
    yield root, root.name
    return
  for folder in folders_in(root) if depth else ():
    for found, _ in _classes(folder, is_class, depth - 1):
      yield found, found.relative_to(root).as_posix()


def _is_mvtec_class(folder: Path) -> bool:
  return (folder / "test").is_dir() and any(folders_in(folder / "test"))


def _is_plain_class(folder: Path) -> bool:
  return (folder / "normal").is_dir()


def _mvtec_test(
  folder: Path, class_name: str, notes: list[str]
) -> list[index.Sample]:
  """Return the test images of a class; add notes on unused masks."""
  samples, unused = [], []
  masks = mask_files.find_folder(folder, "ground_truth")
  defects = folders_in(folder / "test")
  for defect in defects:
    normal = defect.name in NORMAL_FOLDERS
    images = image_files.in_folder(defect)
    mask_files.check_images(images, folder / "test")
    found = {}
    if not normal:  # BTAD has masks of normal images, which are not needed.
      of_defect = mask_files.find_folder(masks, defect.name)
      pairing = mask_files.pair(images, defect, of_defect)
      found, unused = pairing.masks, [*unused, *pairing.notes]
    label = NORMAL if normal else ANOMALOUS
    samples += _samples(images, found, class_name, defect.name, label)
  unused += mask_files.stray(masks, [d.name for d in defects])
  _check_all_masked(samples, unused)
  notes += unused
  return samples


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
    samples.append(
      index.Sample(
        str(image),
        first,
        class_name,
        specie_name,
        label,
        more_masks=tuple(more),
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


def folders_in(folder: Path) -> list[Path]:
  """Return the visible folders of a folder, sorted; none if it is missing."""
  if not folder.is_dir():
    return []
  return sorted(
    path
    for path in folder.iterdir()
    if path.is_dir() and not path.name.startswith(".")
  )
