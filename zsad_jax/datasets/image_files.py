"""Search for image files: files, folders, glob patterns and lists."""

import contextlib
import dataclasses
import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from zsad_jax.datasets import class_folders, index, walker
from zsad_jax.runtime import copies, file_names, text_files, urls

PathLike = str | os.PathLike[str]

_log = logging.getLogger(__name__)
_MAGIC = re.compile(r"[*?\[]")


@dataclasses.dataclass(frozen=True)
class Found:
  """Result of a search.

  Attributes:
    images: paths, each image once.
    left_out: files in the searched folders that are no images, see
      `walker.Tree`.
  """

  images: list[str]
  left_out: dict[Path, str] = dataclasses.field(default_factory=dict)

  @property
  def note(self) -> str:
    """Text like "1 image; 3 files left out: 2 .heic, 1 .dcm.", or ""."""
    left_out = walker.describe(self.left_out)
    count = len(self.images)
    return f"{count} image{'s' * (count != 1)}; {left_out}." if left_out else ""


def find(paths: Sequence[PathLike]) -> list[str]:
  """Return the images that paths refer to, each once; see `search`."""
  return search(paths).images


def search(paths: Sequence[PathLike]) -> Found:
  """Search for images and log how many files were left out.

  An image is used once, by whichever path it is named: absolute or relative,
  by a pattern or by a link.

  Args:
    paths: image files; folders, which are searched with their subfolders, see
      `walker`; glob patterns ("**" matches subfolders); .txt lists of one
      image per line, relative to the folder of the list; and URLs of files,
      folders and lists, of which there are local copies.

  Returns:
    Paths in the order of `paths`: a file or pattern as it was given, absolute
    paths for folders and lists. The images of a folder or a pattern are sorted
    by path, those of a list keep its order.

  Raises:
    FileNotFoundError: a path, or a line of a list, matches no file.
    ValueError: a folder or a list contains no image, or `paths` is empty.
  """
  found: dict[tuple, str] = {}
  left_out: dict[Path, str] = {}
  for path in map(copies.local, _joined([str(path) for path in paths])):
    if path.lower().endswith(".txt") and os.path.isfile(path):
      images = _listed(path)
    elif os.path.isfile(path):
      images = [path]
    elif os.path.isdir(path):
      images = _of_folder(path, left_out)
    else:
      images = _matching(path, left_out)
    for image in images:
      found.setdefault(identity(image), image)
  if not found:
    raise ValueError(
      "No image was given; expected at least one image, folder, pattern or "
      ".txt list."
    )
  known = {file for file, _ in found}  # By name, such as a single file.
  left_out = {
    path: kind
    for path, kind in left_out.items()
    if identity(path)[0] not in known
  }
  result = Found(list(found.values()), left_out)
  if result.note:
    _log.info(result.note)
  return result


def identity(image: PathLike) -> tuple:
  """Return what two paths of one image, or of one part of it, have in common.

  Args:
    image: path of an image, or of a part of it (`index.part`).
  """
  file, box = index.file_and_box(image)
  real = os.path.realpath(file)
  with contextlib.suppress(OSError):  # A broken link is reported when read.
    status = os.stat(real)
    if status.st_nlink > 1:  # Hard links have different real paths.
      return (status.st_dev, status.st_ino), box
  return real, box


def check_normal(paths: Sequence[PathLike]) -> None:
  """Check that no folder of normal images is a data set with anomalous ones.

  Args:
    paths: see `search`.

  Raises:
    ValueError: a folder contains folders of normal and anomalous images.
  """
  for path in filter(os.path.isdir, map(copies.local, paths)):
    if found := class_folders.anomalous_folder(Path(path)):
      raise ValueError(
        f"{path}: expected normal images, but this is a data set that holds "
        f"anomalous ones ({found}); name its folder of normal images."
      )


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
  path = Path(copies.local(path)).absolute()
  if not path.exists():
    raise FileNotFoundError(
      f"{path} does not exist; expected an image or a folder of images."
    )
  if path.is_file():
    return (str(path),)
  return tuple(find([path]))


def in_folder(folder: Path) -> list[Path]:
  """Return the images of a folder by name; none if it does not exist."""
  return walker.folder(folder).images


def in_tree(folder: Path, *, distinct: bool = False) -> list[Path]:
  """Return the images of a folder and its subfolders, sorted by path.

  Args:
    folder: the folder.
    distinct: name a file that several links lead to only once. Masks of several
      images may be links to one file.
  """
  return walker.tree(folder, distinct=distinct).images


def resolve(listing: PathLike, entry: str) -> str:
  r"""Return the path of an image that a file lists.

  Args:
    listing: the file; relative paths start at its folder.
    entry: path of an image, or of a part of it (`index.part`). Paths of Windows
      (good\000.png) are understood.

  Raises:
    FileNotFoundError: the image does not exist.
  """
  entry = entry.strip()
  if urls.is_url(entry):
    return copies.local(entry)
  listing = copies.origin(listing)
  if urls.is_url(listing):
    return copies.local(f"{urls.parent(listing)}/{entry}")
  folder = os.path.dirname(os.path.abspath(listing))
  for spelled in (entry, entry.replace("\\", "/")):
    path = os.path.join(folder, spelled)
    if "\0" not in path and os.path.isfile(index.file_and_box(path)[0]):
      return path
  shown = entry if re.match(r"[A-Za-z]:|\\\\", entry) else path
  raise FileNotFoundError(
    f"{listing}: {file_names.shown(shown)} does not exist."
  )


def _of_folder(path: str, left_out: dict[Path, str]) -> list[str]:
  tree = walker.tree(Path(os.path.abspath(path)))
  if not tree.images:
    note = walker.describe(tree.left_out)
    raise ValueError(
      f"{path}: no image found; supported are "
      f"{', '.join(sorted(walker.supported()))}{note and '; '}{note}."
    )
  left_out.update(tree.left_out)
  return [*map(str, tree.images)]


def _matching(pattern: str, left_out: dict[Path, str]) -> list[str]:
  """Return the images that match a pattern.

  A pattern with a suffix, such as "*.gif", names files of any kind. Folders
  that match are searched, as they are where the shell expands the pattern.
  """
  images, folders = [], {}
  named = not _MAGIC.search(os.path.splitext(pattern)[1] or "*")
  fixed = len(Path(_MAGIC.split(pattern)[0] + "x").parts) - 1
  for path in map(Path, sorted(glob.glob(pattern, recursive=True))):
    if not all(map(walker.is_visible, path.parts[fixed:])):
      continue
    if path.is_dir():
      if os.path.basename(pattern) != "**":  # It matches the files as well.
        tree = walker.tree(path)
        images += tree.images
        left_out |= {file.absolute(): k for file, k in tree.left_out.items()}
      continue
    if path.parent not in folders:
      folders[path.parent] = walker.folder(path.parent, distinct=False)
    kind = folders[path.parent].left_out.get(path, "")
    if kind == walker.RESULTS or (kind and not named):
      left_out[path.absolute()] = kind
    else:
      images.append(path)
  if not images:
    note = walker.describe(left_out)
    raise FileNotFoundError(
      f"{pattern} is no image, folder or pattern that matches a file"
      f"{note and '; '}{note}."
    )
  return [*map(str, images)]


def _joined(paths: list[str]) -> list[str]:
  """Join parts of names with commas, at which a list of flags was split."""
  joined = []
  while paths:
    end = 1
    if not (urls.is_url(paths[0]) or os.path.exists(paths[0])):
      whole = [
        (n, name)
        for n in range(len(paths), 1, -1)
        for name in (",".join(paths[:n]), ", ".join(paths[:n]))
        if os.path.exists(name)
      ]
      if whole:
        end, paths[0] = whole[0]
    joined.append(paths[0])
    paths = paths[end:]
  return joined


def _listed(listing: str) -> list[str]:
  # Names of files need not be UTF-8.
  lines = text_files.read(listing, errors="surrogateescape").split("\n")
  images = [resolve(listing, line) for line in lines if line.strip()]
  if not images:
    raise ValueError(f"{listing}: the list is empty; expected one path a line.")
  return images
