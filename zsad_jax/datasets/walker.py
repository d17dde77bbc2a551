"""The search of folders for images.

One rule for every command: linked folders are searched, each once. Hidden
files and folders, those of file servers and operating systems, and results of
this package are no input. Files of other kinds are counted.
"""

import collections
import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from zsad_jax.datasets import extra_formats

SUFFIXES = frozenset(
  (
    *(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"),
    *(".jpe", ".jfif", ".jp2", ".j2k", ".tga"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
  )
)

# Folders and files of file servers and operating systems, in lower case.
_SYSTEM = frozenset(
  (
    *("@eadir", "@recycle", "#recycle", "#snapshot", "@tmp", "~snapshot"),
    *("$recycle.bin", "recycler", "recycled", "system volume information"),
    *("__macosx", "lost+found", "lost.dir", "thumbs.db", "desktop.ini"),
    *("ehthumbs.db", "__pycache__"),
  )
)
# Left out of notes about data sets: files that accompany images.
_DOCUMENTS = frozenset(
  (
    *(".txt", ".md", ".rst", ".pdf", ".html", ".csv", ".tsv", ".xlsx"),
    *(".json", ".xml", ".yaml", ".yml", ".log", ".ini", ".py", ".ipynb"),
  )
)
RESULTS = "results of zsad_jax"
_BROKEN = "broken links"
_DRAWN, _MAP = ("_overlay.png", "_mask.png"), "_map.npy"  # Of `predict`.


@dataclasses.dataclass
class Tree:
  """Content of a folder, or of several.

  Attributes:
    images: images, sorted by path unless stated otherwise.
    left_out: other files with their kind: a suffix or a description.
  """

  images: list[Path] = dataclasses.field(default_factory=list)
  left_out: dict[Path, str] = dataclasses.field(default_factory=dict)

  def add(self, other: "Tree") -> None:
    """Append the content of another folder."""
    self.images += other.images
    self.left_out |= other.left_out


@dataclasses.dataclass
class _Listing(Tree):
  """Content of one folder without its subfolders.

  Attributes:
    folders: visible subfolders, sorted.
  """

  folders: list[Path] = dataclasses.field(default_factory=list)


def supported() -> frozenset[str]:
  """Return the suffixes of images that can be read here, in lower case."""
  return SUFFIXES | extra_formats.suffixes()


def is_visible(name: str) -> bool:
  """Return whether a file or folder may be an input, by its name."""
  # macOS adds "._000.png" to "000.png" in archives.
  return not name.startswith(".") and name.casefold() not in _SYSTEM


def folders_in(folder: Path) -> list[Path]:
  """Return the visible folders of a folder, sorted; none if it is missing."""
  return _scan(folder).folders if folder.is_dir() else []


def folder(path: Path, *, distinct: bool = True) -> Tree:
  """Return the images of a folder by name; none if it does not exist.

  Args:
    path: the folder.
    distinct: name a file that several links lead to only once.
  """
  if not path.is_dir():
    return Tree()
  found = _scan(path)
  images = _distinct(found.images) if distinct else found.images
  return Tree(images, found.left_out)


def tree(
  root: Path,
  *,
  distinct: bool = True,
  without: Collection[Path] = (),
  errors: list[OSError] | None = None,
) -> Tree:
  """Return the images of a folder and its subfolders, sorted by path.

  A linked folder is searched under the name of the link unless it lies below
  `root` as well. A link to a folder that contains `root` is not followed.
  Folders of masks next to the images are left out.

  Args:
    root: the folder; none are found if it does not exist.
    distinct: name a file that several links lead to only once.
    without: folders that are not searched.
    errors: receives the errors of folders that cannot be read, which are left
      out; None: they are raised.
  """
  if not root.is_dir():
    return Tree()
  found, excluded = Tree(), {_identity(path) for path in without}
  for path, listing in _walk(root, errors):
    if _identity(path) in excluded:
      listing.folders.clear()
      continue
    if path != root and _is_run(path):
      found.left_out |= dict.fromkeys(listing.images, RESULTS)
      listing.folders.clear()
      continue
    for masks in _mask_folders(listing.folders):
      listing.folders.remove(masks)
      kind = f"masks in {masks.name}"
      found.left_out |= dict.fromkeys(tree(masks).images, kind)
    found.add(listing)
  images = _distinct(found.images) if distinct else found.images
  return Tree(sorted(images), found.left_out)


def describe(left_out: Mapping[Path, str], *, data: bool = False) -> str:
  """Return "3 files left out: 2 .heic, 1 .dcm", or "" where there are none.

  Args:
    left_out: see `Tree`.
    data: name only files that may be images: for notes about data sets.
  """
  hidden = _DOCUMENTS if data else frozenset()
  counts = collections.Counter(
    kind for kind in left_out.values() if kind not in hidden
  )
  if not counts:
    return ""
  order = sorted(counts, key=lambda kind: (-counts[kind], kind))
  kinds = ", ".join(f"{counts[kind]} {kind}" for kind in order[:8])
  total = counts.total()
  more = ", ..." if len(order) > 8 else ""
  hint = extra_formats.hint(counts)
  return (
    f"{total} file{'s' * (total > 1)} left out: {kinds}{more}"
    f"{f' ({hint})' if hint else ''}"
  )


def _walk(
  root: Path, errors: list[OSError] | None = None
) -> Iterator[tuple[Path, _Listing]]:
  """Yield each folder and its listing, whose folders the caller may remove.

  Linked folders come last, so that a folder below `root` keeps its own name.
  """
  seen = {_identity(parent) for parent in Path(os.path.realpath(root)).parents}
  stack, links = [root], []
  while stack or links:
    if not stack:
      links.sort(reverse=True)
    path = stack.pop() if stack else links.pop()
    try:
      if _identity(path) in seen:
        continue
      seen.add(_identity(path))
      listing = _scan(path)
    except OSError as error:
      if errors is None:
        raise
      errors.append(error)
      continue
    yield path, listing
    for child in reversed(listing.folders):
      (links if child.is_symlink() else stack).append(child)


def _identity(path: Path) -> tuple[int, int]:
  status = path.stat()
  return status.st_dev, status.st_ino


def _scan(path: Path) -> _Listing:
  with os.scandir(path) as entries:
    found = {e.name: e for e in sorted(entries, key=lambda e: e.name)}
  listing, suffixes = _Listing(), supported()
  evaluated = "results.json" in found and "results.csv" in found
  predicted = _has_scores(path, found)
  for name, entry in found.items():
    if not is_visible(name):
      continue
    if _is(entry, "dir"):
      if not evaluated:
        listing.folders.append(path / name)
      continue
    if not _is(entry, "file"):  # A broken link, or a device.
      listing.left_out[path / name] = (
        _BROKEN if entry.is_symlink() else "devices"
      )
      continue
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in suffixes:
      listing.left_out[path / name] = suffix or "without suffix"
    elif evaluated or _is_drawn(name, found, predicted):
      listing.left_out[path / name] = RESULTS
    else:
      listing.images.append(path / name)
  return listing


def _is(entry: os.DirEntry, kind: str) -> bool:
  try:
    return entry.is_dir() if kind == "dir" else entry.is_file()
  except OSError:  # A circle of links.
    return False


def _is_drawn(name, names, predicted):
  """Return whether a file was drawn by `predict` or `data synthesize`."""
  if name == "preview.png" and "meta.json" in names:
    return True
  stem = name
  for ending in _DRAWN:
    stem = stem.removesuffix(ending)
  return stem != name and (predicted or f"{stem}{_MAP}" in names)


def _has_scores(path: Path, names) -> bool:
  """Return whether a folder has the table of scores of `predict`."""
  for name in ("scores.csv", "scores.partial.csv"):
    if name in names:
      try:
        with open(path / name, encoding="utf-8-sig", errors="replace") as file:
          if file.readline(64).startswith("image,score,label"):
            return True
      except OSError:  # It is no file, or cannot be read.
        continue
  return False


def _is_run(path: Path) -> bool:
  """Return whether a folder is the workdir of a run."""
  return (path / "config.json").is_file() and (
    (path / "checkpoints").is_dir() or (path / "metrics.jsonl").is_file()
  )


def _mask_folders(folders: list[Path]) -> list[Path]:
  """Return the folders of masks of a data set's class."""
  names = {path.name.casefold() for path in folders}
  images = {
    "ground_truth": {"test"},
    "masks": {"normal", "anomalous", "images"},
  }
  return [
    path for path in folders if images.get(path.name.casefold(), set()) & names
  ]


def _distinct(images: list[Path]) -> list[Path]:
  """Return each file once, under its own name where that is among them."""
  linked = {path for path in images if path.is_symlink()}
  folders = {
    path: os.path.realpath(path) for path in {p.parent for p in images}
  }
  first: dict[str, Path] = {}
  for path in sorted(images, key=lambda p: (p in linked, p)):
    # Most files are no links: this avoids a search of all parents for each.
    real = (
      os.path.realpath(path)
      if path in linked
      else os.path.join(folders[path.parent], path.name)
    )
    first.setdefault(real, path)
  kept = set(first.values())
  return [path for path in images if path in kept]
