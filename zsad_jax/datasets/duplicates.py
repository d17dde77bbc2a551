"""Images that are the same, whatever the paths that name them.

Two paths name the same image if they lead to one file (links), or to files of
the same content (copies). Sizes are compared first, then both ends of files of
one size; whole files are read only where these are equal.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from zsad_jax.datasets import index
from zsad_jax.types import ANOMALOUS

_END = 8192  # Bytes at each end of a file.

Roles = Mapping[str, Sequence[str]]


def file_key(path: str) -> str:
  """Return the same text for all paths of one image file, or part of it."""
  if path.startswith(index.BUILT):
    return path
  file, box = index.file_and_box(path)
  real = os.path.realpath(file)
  return real if box is None else index.part(real, box)


def classes(paths: Iterable[str]) -> dict[str, int]:
  """Return a number for each path, equal for paths of the same image.

  A file that is empty or cannot be read equals no other one.

  Args:
    paths: image files, parts of them (`index.part`) or records.
  """
  paths = list(dict.fromkeys(paths))
  keys = {path: file_key(path) for path in paths}
  # Several paths of one file are one member of a group.
  groups: list[list[str]] = [list(dict.fromkeys(keys.values()))]
  for measure in (_size, _ends, _content):
    groups = [part for group in groups for part in _split(group, measure)]
  number = {key: i for i, group in enumerate(groups) for key in group}
  return {path: number[keys[path]] for path in paths}


def equal_to(
  paths: Iterable[str], others: Iterable[str]
) -> dict[str, list[str]]:
  """Return the paths that are images of `others` too, with all of these."""
  paths, others = list(paths), list(others)
  found = classes([*paths, *others])
  by_class: dict[int, list[str]] = {}
  for other in dict.fromkeys(others):
    by_class.setdefault(found[other], []).append(other)
  return {
    path: by_class[found[path]] for path in paths if found[path] in by_class
  }


def distinct(paths: Iterable[str]) -> tuple[list[str], dict[str, str]]:
  """Return each image once, and the first path of each that is left out."""
  found, first, copies = classes(paths := list(paths)), {}, {}
  for path in dict.fromkeys(paths):
    kept = first.setdefault(found[path], path)
    if kept != path:
      copies[path] = kept
  return list(first.values()), copies


def refuse(paths: Iterable[str], others: Iterable[str], problem: str) -> None:
  """Raise ValueError if an image is in both lists.

  Args:
    paths: images.
    others: further images.
    problem: end of the message, what such an image would be.
  """
  for path, same in equal_to(paths, others).items():
    also = "" if file_key(path) == file_key(same[0]) else f" (as {same[0]})"
    raise ValueError(f"{path}{also} {problem}")


def check_dataset(dataset: index.Dataset, *, published: bool) -> list[str]:
  """Check that no image is normal and anomalous, or in training and test.

  Args:
    dataset: the data set.
    published: report such images of a registered data set in notes, so that
      it is evaluated as published.

  Returns:
    Notes, one sentence each.

  Raises:
    ValueError: an image has two roles and the data set is not published.
  """
  train = [s.image_path for s in dataset.train]
  anomalous = [s.image_path for s in dataset.test if s.label == ANOMALOUS]
  normal = [s.image_path for s in dataset.test if s.label != ANOMALOUS]
  number = classes([*train, *normal, *anomalous])
  notes = []
  for first, second, roles in (
    ([*train, *normal], anomalous, "normal and anomalous"),
    (train, normal, "a training and a test image"),
  ):
    known = {number[path]: path for path in reversed(first)}
    both = [path for path in second if number[path] in known]
    if both and not published:
      other = known[number[both[0]]]
      same = "" if other == both[0] else f" and {other} are the same image,"
      raise ValueError(
        f"{both[0]}{same} {'both' if same else 'is both'} {roles}"
        f"{f'; {len(both)} such images' if len(both) > 1 else ''}: results "
        f"on {dataset.root} would mean nothing. Remove one of them."
      )
    if both:
      notes.append(
        f"{dataset.name}: {len(both)} images are both {roles}, as published."
      )
  return notes + _repeated(dataset, number)


def _repeated(dataset: index.Dataset, number: Mapping[str, int]) -> list[str]:
  """Return notes on test images and masks that occur more than once.

  Args:
    dataset: the data set.
    number: of the test images, equal for equal images.
  """
  notes, test = [], dataset.test
  files = {
    file_key(s.image_path): (number[s.image_path], s.label) for s in test
  }
  if repeated := len(test) - len(files):
    notes.append(f"{dataset.name}: {repeated} test images are listed again.")
  if copies := len(files) - len(set(files.values())):
    notes.append(
      f"{dataset.name}: {copies} test images are copies of others; each counts."
    )
  masks: dict[str, set[str]] = {}
  for sample in dataset.test:
    if sample.mask_path:
      masks.setdefault(sample.mask_path, set()).add(sample.image_path)
  shared = [mask for mask, images in masks.items() if len(images) > 1]
  if shared:
    notes.append(
      f"{dataset.name}: {len(shared)} masks belong to several images, first "
      f"{shared[0]}."
    )
  return notes


def _split(
  group: list[str], measure: Callable[[str], Hashable]
) -> list[list[str]]:
  """Split a group by a property of the files."""
  if len(group) == 1:
    return [group]
  parts: dict[Hashable, list[str]] = {}
  for key in group:
    try:
      value = measure(key)
    except OSError:
      value = ("unreadable", key)
    parts.setdefault(value, []).append(key)
  return list(parts.values())


def _size(key: str) -> Hashable:
  if key.startswith(index.BUILT):
    return key  # Records have no files of their own.
  file, box = index.file_and_box(key)
  if not (size := os.stat(file).st_size):
    raise OSError(f"{file} is empty")
  return size, box


def _ends(key: str) -> Hashable:
  with open(index.file_and_box(key)[0], "rb") as file:
    size = os.fstat(file.fileno()).st_size
    first = file.read(_END)
    file.seek(max(0, size - _END))
    return hashlib.blake2b(first + file.read(_END)).digest()


def _content(key: str) -> Hashable:
  path = index.file_and_box(key)[0]
  return _file_digest(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=65536)
def _file_digest(path: str, modified: int) -> bytes:
  """Return the digest of a file; parts of one file read it once."""
  del modified  # A file that has changed is read again.
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "blake2b").digest()
