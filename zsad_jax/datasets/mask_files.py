"""Pairs images with the files of their masks, by name.

A mask has the path of its image below the folder of masks, whatever the ending
of the file; `_mask` and the like may be appended. A folder with the path of an
image holds several masks of it, which are united, as in MVTec LOCO. If the
subfolders differ, the name of the file decides as long as it is unique, and so
does a name that differs in case only.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from zsad_jax.datasets import image_files, walker

# Endings of masks in MVTec AD, KolektorSDD, ISIC and others.
_ENDING = re.compile(r"_(mask|label|segmentation|gt)$", re.IGNORECASE)
_FOLDERS = frozenset(
  ("mask", "masks", "ground_truth", "groundtruth", "ground truth", "gt")
)

_Key = Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class Pairing:
  """The masks of images.

  Attributes:
    masks: image -> its masks, at least one; without images that have none.
    of_normal: normal image -> a mask of its name that belongs to no other one.
    num_files: number of files that could be masks.
    notes: messages about files that are not used.
  """

  masks: Mapping[Path, tuple[Path, ...]]
  of_normal: Mapping[Path, tuple[Path, ...]]
  num_files: int
  notes: tuple[str, ...]


def pair(
  images: Sequence[Path],
  root: Path,
  folder: Path,
  *,
  normal: Sequence[Path] = (),
) -> Pairing:
  """Return the masks of images.

  Args:
    images: the images, below `root`.
    root: folder of the images.
    folder: folder of the masks, which may be missing.
    normal: normal images, whose masks are not needed.

  Raises:
    ValueError: two masks belong to one image, or one mask to two images.
  """
  files = image_files.in_tree(folder) if folder.is_dir() else []
  found: dict[Path, tuple[Path, ...]] = {}
  used: set[Path] = set()
  for key_of_image, key_of_mask, several in _RULES:
    masks = _by_key(files, folder, key_of_mask, used)
    left = [image for image in images if image not in found]
    for key, of_key in _by_key(left, root, key_of_image, used).items():
      if key and key in masks:
        _check_unique(of_key, masks[key], several)
        found[of_key[0]] = tuple(masks[key])
    used.update(mask for masks in found.values() for mask in masks)
  names = {_bare(image.stem).casefold(): image for image in normal}
  unused, of_normal = [], {}
  for file in (file for file in files if file not in used):
    if image := names.get(_bare(file.stem).casefold()):
      of_normal[image] = (file,)
    else:
      unused.append(file)
  notes = tuple(_notes(folder, files, unused))
  return Pairing(found, of_normal, len(files), notes)


def _whole(path: str) -> str:
  return path


def _bare(path: str) -> str:
  """Return a path without the ending of a mask."""
  return _ENDING.sub("", path)


def _name(path: str) -> str:
  return path.rpartition("/")[2]


def _bare_name(path: str) -> str:
  return _name(_bare(path))


def _parent(path: str) -> str:
  return path.rpartition("/")[0]


def _folded(key: _Key) -> _Key:
  return lambda path: key(path).casefold()


_EXACT: tuple[tuple[_Key, _Key, bool], ...] = (
  (_whole, _bare, False),
  (_whole, _whole, False),
  (_whole, _parent, True),
  (_name, _bare_name, False),
  (_name, _name, False),
)
# Keys of image and mask, and whether an image may have several masks; the
# first rule that fits an image decides.
_RULES = (
  *_EXACT,
  *((_folded(i), _folded(m), several) for i, m, several in _EXACT),
  (_bare_name, _bare_name, False),
)


def _by_key(
  files: Sequence[Path], root: Path, key: _Key, used: set[Path]
) -> dict[str, list[Path]]:
  """Return the unused files by the key of their path below `root`."""
  result: dict[str, list[Path]] = {}
  for file in files:
    if file not in used:
      path = file.relative_to(root).with_suffix("").as_posix()
      result.setdefault(key(path), []).append(file)
  return result


def _check_unique(
  images: Sequence[Path], masks: Sequence[Path], several: bool
) -> None:
  if len(masks) > 1 and not several:
    raise ValueError(
      f"{masks[1]} and {masks[0]} are masks of the same image; keep one."
    )
  if len(images) > 1:
    raise ValueError(
      f"{masks[0]} may be the mask of {images[0]} and of {images[1]}; put "
      "masks in the same subfolders as their images, or give images of "
      "different names."
    )


def _notes(
  folder: Path, files: Sequence[Path], unused: Sequence[Path]
) -> Iterator[str]:
  """Yield a message for each kind of files that are not used."""
  others = collections.Counter(_others(folder))
  if others and len(unused) == len(files):
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items()))
    yield (
      f"{folder} holds {sum(others.values())} files that are not read as masks "
      f"({kinds}); supported are {', '.join(sorted(walker.supported()))}."
    )
  if not unused:
    return
  such = f"such as {unused[0].relative_to(folder)}"
  expected = "expected the name of an image, optionally with _mask appended."
  if len(unused) == len(files):
    yield (
      f"{folder} holds {len(files)} files, none has the name of an image, "
      f"{such}; {expected}"
    )
  else:
    yield (
      f"{folder}: {len(unused)} of {len(files)} files have the name of no "
      f"image, {such}; {expected}"
    )


def _others(folder: Path) -> Iterator[str]:
  """Yield the kind of each visible file that is no image."""
  if not folder.is_dir():
    return
  for file in folder.rglob("*"):
    parts = file.relative_to(folder).parts
    hidden = any(part.startswith(".") for part in parts)
    kind = file.suffix.lower() or "without ending"
    if file.is_file() and not hidden and kind not in walker.supported():
      yield kind


def check_images(images: Sequence[Path], root: Path) -> None:
  """Refuse masks among images.

  Args:
    images: the images, below `root`.
    root: their folder.

  Raises:
    ValueError: an image is called as the mask of another one, or is in a folder
      of masks.
  """
  known = {image.with_suffix("") for image in images}
  for image in images:
    base = image.with_name(_ENDING.sub("", image.stem))
    if base.name != image.stem and base in known:
      raise ValueError(
        f"{image}: named as the mask of another image in its folder; expected "
        "images only. Move masks to ground_truth/<defect>/ (MVTec) or masks/."
      )
    for part in image.relative_to(root).parts[:-1]:
      if part.casefold() in _FOLDERS:
        raise ValueError(
          f"{image}: a folder {part} among the images; expected images only. "
          "Move masks to ground_truth/<defect>/ (MVTec) or masks/."
        )


def stray(folder: Path, defects: Sequence[str]) -> Iterator[str]:
  """Yield notes about masks that belong to no folder of test images.

  Args:
    folder: ground_truth/ of a class.
    defects: names of the folders of test images.
  """
  if not folder.is_dir():
    return
  known = {name.casefold() for name in defects}
  loose = image_files.in_folder(folder)
  if loose:
    yield (
      f"{folder} holds {len(loose)} files outside of folders, such as "
      f"{loose[0].name}; expected {folder.name}/<defect>/<name>_mask.png."
    )
  for path in sorted(folder.iterdir()):
    if path.is_dir() and not path.name.startswith("."):
      files = image_files.in_tree(path)
      if files and path.name.casefold() not in known:
        yield (
          f"{path} holds {len(files)} files, but there is no folder "
          f"test/{path.name}; its masks are not used."
        )
