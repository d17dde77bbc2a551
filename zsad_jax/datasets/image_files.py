"""Search for image files: files, folders, glob patterns and lists."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from zsad_jax.datasets import index

PathLike = str | os.PathLike[str]

SUFFIXES = frozenset(
  (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
)


def find(paths: Sequence[PathLike]) -> list[str]:
  """Return the images that paths refer to, each once.

  Args:
    paths: image files; folders, which are searched with their subfolders; glob
      patterns ("**" matches subfolders); and .txt lists of one image per line,
      relative to the folder of the list.

  Returns:
    Paths in the order of `paths`: a file or pattern as it was given, absolute
    paths for folders and lists. The images of a folder or a pattern are sorted
    by path, those of a list keep its order.

  Raises:
    FileNotFoundError: a path, or a line of a list, matches no file.
    ValueError: a folder or a list contains no image, or `paths` is empty.
  """
  found: dict[str, str] = {}
  for path in map(str, paths):
    if path.endswith(".txt") and os.path.isfile(path):
      images = _listed(path)
    elif os.path.isfile(path):
      images = [path]
    elif os.path.isdir(path):
      images = below(path)
    else:
      images = sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
      if not images:
        raise FileNotFoundError(
          f"{path} is no image, folder or pattern that matches a file."
        )
    for image in images:
      found.setdefault(os.path.abspath(image), image)
  if not found:
    raise ValueError(
      "No image was given; expected at least one image, folder, pattern or "
      ".txt list."
    )
  return list(found.values())


def below(path: PathLike) -> tuple[str, ...]:
  """Return an image, or the images of a folder and its subfolders.

  Args:
    path: an image or a folder.

  Returns:
    Absolute paths, sorted.

  Raises:
    FileNotFoundError: `path` does not exist.
    ValueError: the folder contains no image.
  """
  path = Path(path).absolute()
  if not path.exists():
    raise FileNotFoundError(
      f"{path} does not exist; expected an image or a folder of images."
    )
  if path.is_file():
    return (str(path),)
  found = tuple(map(str, in_tree(path)))
  if not found:
    raise ValueError(
      f"{path}: no image found; supported are {', '.join(sorted(SUFFIXES))}."
    )
  return found


def in_folder(folder: Path) -> list[Path]:
  """Return the images of a folder by name; none if it does not exist."""
  if not folder.is_dir():
    return []
  return sorted(file for file in folder.iterdir() if _is_image(file))


def in_tree(folder: Path) -> list[Path]:
  """Return the images of a folder and its subfolders, sorted by path."""
  return sorted(file for file in folder.rglob("*") if _is_image(file))


def resolve(listing: PathLike, entry: str) -> str:
  """Return the path of an image that a file lists.

  Args:
    listing: the file; relative paths start at its folder.
    entry: path of an image, or of a part of it (`index.part`).

  Raises:
    FileNotFoundError: the image does not exist.
  """
  folder = os.path.dirname(os.path.abspath(listing))
  path = os.path.join(folder, entry.strip())
  if not os.path.isfile(index.file_and_box(path)[0]):
    raise FileNotFoundError(f"{listing}: {path} does not exist.")
  return path


def _listed(listing: str) -> list[str]:
  lines = Path(listing).read_text(encoding="utf-8").splitlines()
  images = [resolve(listing, line) for line in lines if line.strip()]
  if not images:
    raise ValueError(f"{listing}: the list is empty; expected one path a line.")
  return images


def _is_image(path: Path) -> bool:
  # macOS adds "._000.png" to "000.png" in archives.
  return (
    path.suffix.lower() in SUFFIXES
    and not path.name.startswith(".")
    and path.is_file()
  )
