"""Recognition of exports of annotation tools, which are not read.

Their folders may look like another layout: `test/images` and `test/labels` are
no kinds of anomalies.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from zsad_jax.datasets import walker

_DEPTH = 3  # Maximal depth of annotations below the folder of a data set.
_TRIED = 20  # Files of a folder that are opened.
_HEAD = 1 << 16  # Bytes of a JSON file that are searched for its keys.
_BOX = re.compile(r"\d+( -?[\d.]+(e-?\d+)?){4,}", re.IGNORECASE)

_HOW = (
  "Convert it: put normal and anomalous images into the folders normal and "
  "anomalous, with masks (0: normal, 255: anomalous) of the same names in the "
  "folder masks, or write a meta.json; see docs/data.md"
)


def refusal(root: Path) -> str:
  """Return a message that names the export in a folder, or "".

  Args:
    root: folder of a data set.
  """
  for folder in _folders(root, _DEPTH):
    for kind, found in (
      ("COCO", _coco(folder)),
      ("YOLO", _yolo(folder)),
      ("Pascal VOC", _voc(folder)),
    ):
      if found:
        return (
          f"{root}: this is an export in {kind}'s format ({found}), whose "
          f"annotations are not read. {_HOW}."
        )
  return ""


def labelme(root: Path) -> str:
  """Return a message that names labelme files next to images, or "".

  Args:
    root: folder of a data set.
  """
  for folder in _folders(root, _DEPTH):
    content = walker.folder(folder)
    stems = {path.stem for path in content.images}
    found = [
      path
      for path, kind in content.left_out.items()
      if kind == ".json" and path.stem in stems
    ]
    for path in found[:_TRIED]:
      if _has_keys(path, "shapes"):
        return (
          f"{path}: an annotation of labelme, whose shapes are not read as "
          f"masks. Convert them with labelme's tools. {_HOW}."
        )
  return ""


def _folders(root: Path, depth: int) -> Iterator[Path]:
  yield root
  for folder in walker.folders_in(root) if depth else ():
    yield from _folders(folder, depth - 1)


def _names(folder: Path) -> list[str]:
  try:
    return sorted(filter(walker.is_visible, os.listdir(folder)))
  except OSError:
    return []


def _coco(folder: Path) -> str:
  names = _names(folder)
  for name in names:
    if name.endswith(".coco.json"):
      return name
  tried = [folder / name for name in names if name.lower().endswith(".json")]
  for path in tried[:_TRIED]:
    if path.is_file() and _has_keys(path, "images", "annotations"):
      return path.name
  return ""


def _yolo(folder: Path) -> str:
  subfolders = {path.name.casefold() for path in walker.folders_in(folder)}
  if "labels" in subfolders and "images" in subfolders:
    for labels in (p for p in walker.folders_in(folder) if _is_labels(p)):
      for inner in _folders(labels, 1):
        if found := _boxes(inner, _names(inner)):
          return found
  # Darknet's: a text file next to each image.
  stems = {path.stem for path in walker.folder(folder).images}
  return _boxes(folder, [n for n in _names(folder) if Path(n).stem in stems])


def _is_labels(folder: Path) -> bool:
  return folder.name.casefold() == "labels"


def _boxes(folder: Path, names: list[str]) -> str:
  """Return the first file with lines of a class and a box or polygon."""
  tried = [n for n in names if n.lower().endswith(".txt")]
  for name in tried[:_TRIED]:
    lines = _head(folder / name).split("\n")
    if lines[0].strip() and _BOX.fullmatch(lines[0].strip()):
      return f"{folder.name}/{name}"
  return ""


def _voc(folder: Path) -> str:
  names = [n for n in _names(folder) if n.lower().endswith(".xml")]
  for name in names[:_TRIED]:
    if "<annotation" in _head(folder / name):
      return f"{folder.name}/{name}"
  return ""


def _has_keys(path: Path, *keys: str) -> bool:
  """Return whether the start of a JSON file has keys of an object."""
  head = _head(path)
  if all(re.search(rf'"{key}"\s*:', head) for key in keys):
    return True
  if len(head) < _HEAD:
    return False
  try:  # Keys may follow long values.
    content = json.loads(path.read_text(encoding="utf-8-sig"))
  except (ValueError, OSError, RecursionError):
    return False
  return isinstance(content, dict) and content.keys() >= {*keys}


def _head(path: Path) -> str:
  try:
    with path.open("rb") as file:
      return file.read(_HEAD).decode("utf-8-sig", "replace")
  except OSError:
    return ""
