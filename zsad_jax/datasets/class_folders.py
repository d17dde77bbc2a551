"""Folders of classes, and the names of folders inside them.

Names are compared without regard to case, hyphens and spaces.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zsad_jax.datasets import walker

# "ok" in BTAD. In a test folder every other name is a kind of anomaly.
NORMAL_FOLDERS = (
  *("good", "ok", "normal", "pass", "passed", "nominal", "healthy"),
  *("defect_free", "no_defect", "non_defective", "nondefective"),
)
# Next to a folder of normal images.
ANOMALOUS_FOLDERS = (
  *("anomalous", "anomaly", "anomalies", "abnormal", "ng", "nok", "not_ok"),
  *("bad", "defect", "defects", "defective", "fail", "failed"),
)
MASK_FOLDERS = ("masks", "mask", "ground_truth", "gt")

_PARTS = ("train", "training", "val", "valid", "validation", "test", "testing")
_DEPTH = 4  # Maximal depth of a class below the folder of a data set.
_SHOWN = 5  # Folders named in a message.


def folded(name: str) -> str:
  """Return a name of a folder in the form in which names are compared."""
  return name.casefold().replace("-", "_").replace(" ", "_")


def is_normal(name: str) -> bool:
  """Return whether a folder of this name holds normal images."""
  return folded(name) in NORMAL_FOLDERS


def children(folder: Path, names: Sequence[str]) -> list[Path]:
  """Return the subfolders of a folder that have one of the names."""
  return [p for p in walker.folders_in(folder) if folded(p.name) in names]


def child(folder: Path, *names: str) -> Path:
  """Return the subfolder that has one of the names, or where it would be.

  Raises:
    ValueError: several have one.
  """
  found = children(folder, names)
  if len(found) > 1:
    raise ValueError(
      f"{folder}: the folders {found[0].name} and {found[1].name} have the "
      "same meaning; join them."
    )
  return found[0] if found else folder / names[0]


def is_mvtec_class(folder: Path) -> bool:
  """Return whether `folder` is a class in MVTec AD's layout."""
  return any(walker.folders_in(p) for p in children(folder, ("test",)))


def is_plain_class(folder: Path) -> bool:
  """Return whether `folder` is a class in the plain layout.

  It has a folder `normal`, or one of another name for normal images next to
  one for anomalous images: `good` alone may be a part of MVTec AD's layout.
  """
  names = {folded(path.name) for path in walker.folders_in(folder)}
  return "normal" in names or bool(
    names & {*NORMAL_FOLDERS} and names & {*ANOMALOUS_FOLDERS}
  )


def find(
  root: Path, is_class: Callable[[Path], bool]
) -> Iterator[tuple[Path, str]]:
  """Yield folders and names of classes; they are not nested.

  A class that several links lead to is one class, under its own name where
  that lies below `root`.
  """
  found = list(_find(root, is_class, _DEPTH))
  first: dict[str, Path] = {}
  for folder in sorted(found, key=lambda p: os.path.realpath(p) != str(p)):
    first.setdefault(os.path.realpath(folder), folder)
  kept = set(first.values())
  for folder in found:
    if folder in kept:
      name = root.name if folder == root else folder.relative_to(root)
      yield folder, str(name).replace(os.sep, "/")


def _find(
  root: Path, is_class: Callable[[Path], bool], depth: int
) -> Iterator[Path]:
  if is_class(root):
    yield root
    return
  for folder in walker.folders_in(root) if depth else ():
    yield from _find(folder, is_class, depth - 1)


def unclaimed(root: Path, classes: Sequence[Path]) -> str:
  """Return a note about images that lie in no class, or "".

  Args:
    root: the folder of the data set.
    classes: the folders of its classes.
  """
  if root in classes:
    return ""
  outside = walker.tree(root, without=classes).images
  if not outside:
    return ""
  return (
    f"{root}: {len(outside)} images lie in no class and are left out, such as "
    f"{outside[0].relative_to(root)}; a class has the folder test or normal."
  )


def anomalous_folder(root: Path) -> Path | None:
  """Return a folder of anomalous images of a data set, or None.

  Args:
    root: the folder of a data set, or any other folder.
  """
  for folder, _ in find(root, is_mvtec_class):
    for path in walker.folders_in(child(folder, "test")):
      if not is_normal(path.name):
        return path
  for folder, _ in find(root, is_plain_class):
    if found := children(folder, ANOMALOUS_FOLDERS):
      return found[0]
  return None


def check_has_normal(test: Path) -> None:
  """Check that a test folder has a known folder of normal images.

  Args:
    test: folder of the kinds of anomalies of a class.

  Raises:
    ValueError: none of its folders has a name that is understood as normal.
  """
  names = [path.name for path in walker.folders_in(test)]
  if not any(map(is_normal, names)):
    raise ValueError(
      f"{test}: no folder of normal test images; found "
      f"{_some(names)}. Understood are {', '.join(NORMAL_FOLDERS)}, in any "
      "case; rename the folder of normal images, or add one, empty if there "
      "are none."
    )


def check_plain(folder: Path) -> None:
  """Check that a class in the plain layout has no unknown folder of images.

  Raises:
    ValueError: there is one, whose images would be left out.
  """
  known = {*NORMAL_FOLDERS, *ANOMALOUS_FOLDERS, *MASK_FOLDERS}
  other = [
    path.name
    for path in walker.folders_in(folder)
    if folded(path.name) not in known and walker.tree(path).images
  ]
  if other:
    raise ValueError(
      f"{folder}: the images in {_some(other)} are neither in a folder of "
      f"normal images ({', '.join(NORMAL_FOLDERS)}) nor in one of anomalous "
      f"images ({', '.join(ANOMALOUS_FOLDERS)}); move or rename them."
    )


def check_is_class(folder: Path, root: Path) -> None:
  """Check that a class in the plain layout is no part of a data set.

  Args:
    folder: folder of the class.
    root: the folder of the data set.

  Raises:
    ValueError: it is called train, val or alike.
  """
  if folder != root and folded(folder.name) in _PARTS:
    raise ValueError(
      f"{folder}: {folder.name} is no class, but a part of a data set. "
      f"Expected <class>/train/good, <class>/test/good and <class>/test/"
      "<defect> (MVTec AD's layout), where the folder may itself be the class; "
      f"or name the part: {folder}."
    )


def other_folders(folder: Path) -> str:
  """Return a note about images in further folders of MVTec AD's layout.

  Args:
    folder: folder of a class. Its folder `validation` (MVTec LOCO) is not used.
  """
  known = {"train", "test", "ground_truth", "groundtruth", "validation"}
  others = [p for p in walker.folders_in(folder) if folded(p.name) not in known]
  counts = {path.name: len(walker.tree(path).images) for path in others}
  names = [name for name, count in counts.items() if count]
  if not names:
    return ""
  return (
    f"{folder}: {sum(counts.values())} images in {_some(names)} are left out; "
    "those of train and test are read."
  )


def check_flat(folder: Path) -> None:
  """Check that a folder of MVTec AD's layout has no images in subfolders.

  Raises:
    ValueError: it has some, which would be left out.
  """
  for path in walker.folders_in(folder):
    if images := walker.tree(path).images:
      raise ValueError(
        f"{folder}: MVTec AD's layout has no subfolders here, but {path.name} "
        f"holds {len(images)} images; move them up, or remove them."
      )


def _some(names: Sequence[str]) -> str:
  more = ", ..." if len(names) > _SHOWN else ""
  return ", ".join(names[:_SHOWN]) + more
