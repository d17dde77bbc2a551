"""Readers of layouts in which the names of folders are the annotation.

  MVTec:   <class>/train/good, <class>/test/<defect>,
           <class>/ground_truth/<defect>/<stem>_mask.png
  plain:   <class>/normal, optionally <class>/anomalous and <class>/masks
  pairs:   images/ and masks/, every image anomalous

A class may be several folders deep ("metal/nut"), or be the folder itself.
Everything is sorted by name, so that the order is the same on every machine,
and masks are paired by name: pairing by position, as the papers' generators do,
shifts every pair after a missing file.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zsad_jax.datasets import image_files, index
from zsad_jax.types import ANOMALOUS, NORMAL

NORMAL_FOLDERS = ("good", "ok")  # "ok" in BTAD.

# Endings of masks in MVTec AD, KolektorSDD, ISIC and others.
_MASK_ENDING = re.compile(r"_(mask|label|segmentation|gt)$", re.IGNORECASE)

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
  train, test = [], []
  for folder, class_name in _classes(root, _is_mvtec_class):
    for good in folders_in(folder / "train"):
      if good.name in NORMAL_FOLDERS:
        train += _samples(
          image_files.in_folder(good), {}, class_name, good.name, NORMAL
        )
    test += _mvtec_test(folder, class_name)
  return index.make_dataset(name or root.name, root, train=train, test=test)


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
  test = []
  for folder, found in _classes(root, _is_plain_class):
    shown, masks = class_name or found, _masks(folder / "masks")
    of_class = [
      *_samples(image_files.in_tree(folder / "normal"), {}, shown, "", NORMAL),
      *_samples(
        image_files.in_tree(folder / "anomalous"), masks, shown, "", ANOMALOUS
      ),
    ]
    _check_all_masked(of_class, required=bool(masks))
    test += of_class
  return index.make_dataset(name or root.name, root, test=test)


def pair(images: Path, masks: Path, class_name: str) -> list[index.Sample]:
  """Return the anomalous images of a folder with their masks in another.

  Raises:
    ValueError: an image has no mask.
  """
  samples = _samples(
    image_files.in_folder(images), _masks(masks), class_name, "", ANOMALOUS
  )
  _check_all_masked(samples, required=True)
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


def _mvtec_test(folder: Path, class_name: str) -> list[index.Sample]:
  samples = []
  for defect in folders_in(folder / "test"):
    normal = defect.name in NORMAL_FOLDERS
    # BTAD has masks of normal images, which are not needed.
    masks = {} if normal else _masks(folder / "ground_truth" / defect.name)
    samples += _samples(
      image_files.in_folder(defect),
      masks,
      class_name,
      defect.name,
      NORMAL if normal else ANOMALOUS,
    )
  _check_all_masked(samples)
  return samples


def _samples(
  images: Sequence[Path],
  masks: dict[str, Path],
  class_name: str,
  specie_name: str,
  label: int,
) -> list[index.Sample]:
  return [
    index.Sample(
      str(image),
      str(masks.get(_stem(image), "")),
      class_name,
      specie_name,
      label,
    )
    for image in images
  ]


def _check_all_masked(
  samples: Sequence[index.Sample], *, required: bool = False
) -> None:
  """Refuse partial masks: an anomaly without mask would count as normal."""
  bare = [sample for sample in samples if not sample.has_mask]
  if bare and (required or any(sample.mask_path for sample in samples)):
    raise ValueError(
      f"{bare[0].image_path}: anomalous, but no mask has its name, unlike "
      f"other images of {bare[0].class_name!r} ({len(bare)} such). Expected "
      "the image's name, optionally with _mask, _label, _Segmentation or "
      "_GT appended."
    )


def _masks(folder: Path) -> dict[str, Path]:
  """Return the masks in `folder` by the stem of their image."""
  masks: dict[str, Path] = {}
  for mask in image_files.in_tree(folder):
    other = masks.setdefault(_stem(mask), mask)
    if other != mask:
      raise ValueError(
        f"{mask} and {other} are masks of the same image; keep one."
      )
  return masks


def _stem(path: Path) -> str:
  return _MASK_ENDING.sub("", path.stem)


def folders_in(folder: Path) -> list[Path]:
  """Return the visible folders of a folder, sorted; none if it is missing."""
  if not folder.is_dir():
    return []
  return sorted(
    path
    for path in folder.iterdir()
    if path.is_dir() and not path.name.startswith(".")
  )
