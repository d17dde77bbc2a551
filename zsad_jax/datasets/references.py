"""Selection of reference images for few-shot detection.

References are sampled from a data set as AdaptCLIP's authors do, read from a
folder, or listed in a file.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zsad_jax.datasets import duplicates, image_files, index, walker
from zsad_jax.runtime import copies, text_files
from zsad_jax.types import ANOMALOUS

SEEDS = (10, 20, 30)  # Of AdaptCLIP's few-shot results (authors' code).
FromTest = Literal["never", "normal", "all"]  # See `sample`.


@dataclasses.dataclass(frozen=True)
class References:
  """Reference images of every class; none for zero-shot detection.

  Attributes:
    images: absolute paths by class name, or by "class/view" where views
      have references of their own (`index.Sample.compared_with`), in the order
      of sampling.
    shots: number per class; None where it differs between classes.
    seed: of the sampling; None where the images were given.
    notes: messages for the user, one sentence each.
    left_out: test images that are references, and therefore not scored.
    official: whether they are drawn as the papers' references are.
  """

  images: Mapping[str, tuple[str, ...]]
  shots: int | None
  seed: int | None = None
  notes: tuple[str, ...] = ()
  left_out: tuple[str, ...] = ()
  official: bool = False

  @property
  def group(self) -> str:
    """Name of the setting that seeds are averaged over, such as "4-shot"."""
    if self.shots is None:
      return "given"
    given = "-given" if self.images and self.seed is None else ""
    return f"{self.shots}-shot{given}"

  @property
  def label(self) -> str:
    """Name for folders and titles, such as "4-shot_seed10"."""
    return self.group if self.seed is None else f"{self.group}_seed{self.seed}"

  def of(self, name: str, class_name: str) -> tuple[str, ...]:
    """Return the references of a class, or of a view of it."""
    return self.images.get(name, self.images.get(class_name, ()))


NONE = References({}, 0)


def indices(count: int, shots: int, seed: int) -> list[int]:
  """Sample positions of references in a class's list of images.

  With replacement: the numbers of torch.randint(0, count, (shots,)) after
  torch.manual_seed(seed), seeded for every class (authors' test.py). The first
  k of more shots are those of k shots.

  Args:
    count: length of the list.
    shots: number of references.
    seed: of the sampling.
  """
  raw = np.random.RandomState(seed).randint(
    0, 2**32, size=shots, dtype=np.uint32
  )
  return [int(i) for i in raw % np.uint32(count)]


def sample(
  dataset: index.Dataset,
  *,
  shots: int,
  seed: int,
  from_test: FromTest = "never",
) -> References:
  """Sample references of every class, or view, from normal training images.

  Args:
    dataset: the data set.
    shots: references per class or view.
    seed: of the sampling.
    from_test: where the references of a class without training images come
      from: "never" refuses it; "normal" draws from its normal test images,
      which are then not scored; "all" draws from all of its test images,
      anomalous ones included, as AdaptCLIP's authors do for medical sets.

  Raises:
    ValueError: a class has fewer than `shots` images.
  """
  if shots == 0:
    return NONE
  images, drawn = {}, {}
  for name in _compared(dataset):
    pool = [s for s in dataset.train if s.compared_with == name]
    if not pool:
      pool = _test_pool(dataset, name, from_test)
      drawn[name] = pool
    if shots > len(pool):
      raise ValueError(
        f"{dataset.root}: {shots} references of {name!r} were requested, but "
        f"it has {len(pool)} images to choose from; ask for fewer."
      )
    chosen = indices(len(pool), shots, seed)
    images[name] = tuple(pool[i].image_path for i in chosen)
  left_out = {path for name in drawn for path in images[name]}
  notes = ()
  if drawn:
    how = (
      "anomalous ones included, and are scored as well"
      if from_test == "all"
      else "normal ones, and are not scored"
    )
    notes = (
      f"References of {', '.join(drawn)} were drawn from the test images, "
      f"{how}: there are no training images.",
    )
  return References(
    images,
    shots,
    seed,
    notes,
    left_out=tuple(sorted(left_out)) if from_test == "normal" else (),
    official=not drawn or from_test == "all",
  )


def _test_pool(
  dataset: index.Dataset, name: str, from_test: FromTest
) -> list[index.Sample]:
  """Return the test images that references of a class are drawn from."""
  if from_test == "never":
    raise ValueError(
      f"{dataset.root}: {name!r} has no normal training images to draw "
      "references from, and test images are no references of themselves. "
      "Give others by --references=FOLDER, or put them into "
      "<class>/train/good of MVTec AD's layout."
    )
  return [
    s
    for s in dataset.test
    if s.compared_with == name and (from_test == "all" or s.label != ANOMALOUS)
  ]


def check(
  chosen: References, dataset: index.Dataset, *, published: bool
) -> References:
  """Check that no reference is anomalous or scored, and return them.

  Args:
    chosen: references of the data set.
    dataset: the data set.
    published: whether it is a registered data set with sampled references,
      whose copies of training images in the test part are noted, not refused.

  Raises:
    ValueError: a reference is a test image, or a copy of one.
  """
  if not chosen.images:
    return chosen
  given = [path for paths in chosen.images.values() for path in paths]
  by_path = {s.image_path: s for s in dataset.test}
  scored = [path for path in by_path if path not in {*chosen.left_out}]
  drawn = {*given} & {*by_path}
  if chosen.official and drawn:  # As the authors draw them; there is a note.
    given = [path for path in given if path not in drawn]
  found = duplicates.equal_to(given, scored)
  if found and published:
    note = (
      f"{len(found)} references of {dataset.name} have the content of test "
      "images, as published."
    )
    return dataclasses.replace(chosen, notes=(*chosen.notes, note))
  for reference, same in found.items():
    tested = by_path[same[0]]
    state = "anomalous" if tested.label == ANOMALOUS else "scored"
    raise ValueError(
      f"{reference} is a reference of {dataset.name} and {state}: it is the "
      f"same image as {same[0]} of the test part. Choose references that are "
      "normal and not scored."
    )
  return chosen


def read(path: str | os.PathLike[str], dataset: index.Dataset) -> References:
  """Read the references of every class of a data set.

  Args:
    path: a folder with a subfolder for each class (with a single class, it may
      contain the images directly), or a JSON file {class: [path, ...]}, paths
      relative to its folder; the key "class/view" is one view.
    dataset: the data set.

  Raises:
    FileNotFoundError: `path`, or an image that is listed, does not exist.
    ValueError: a class is unknown or missing, or a listed image belongs to
      another class of the data set.
  """
  path = Path(copies.local(path))
  if path.is_dir():
    images = _of_folder(path, dataset.class_names)
  elif path.is_file():
    images = _of_file(path)
  else:
    raise FileNotFoundError(f"{path} is neither a folder nor a JSON file.")
  views = _compared(dataset)
  if unknown := sorted({*images} - {*dataset.class_names} - {*views}):
    raise ValueError(
      f"{path}: references of {unknown[0]!r}, which is no class of "
      f"{dataset.name}; its classes are {', '.join(dataset.class_names)}."
    )
  given = References(images, None)
  if missing := [n for n in views if not given.of(n, views[n])]:
    raise ValueError(
      f"{path}: no reference of class {missing[0]!r}; expected "
      f"a folder or an entry of that name with images."
    )
  _check_classes(path, images, dataset, views)
  counts = {len(paths) for paths in images.values()}
  return References(images, counts.pop() if len(counts) == 1 else None)


def _compared(dataset: index.Dataset) -> dict[str, str]:
  """Return the class of each class or view that has its own references."""
  class_of = {s.compared_with: s.class_name for s in dataset.test}
  order = {name: i for i, name in enumerate(dataset.class_names)}
  return dict(sorted(class_of.items(), key=lambda item: order[item[1]]))


def _of_folder(
  folder: Path, class_names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
  folders = walker.folders_in(folder)
  if not folders and len(class_names) == 1:
    return {class_names[0]: image_files.below(folder)}
  known = {name.split("/")[0] for name in class_names}
  found = [p.name for p in folders if p.name not in known]
  found += [name for name in class_names if (folder / name).is_dir()]
  return {name: image_files.below(folder / name) for name in found}


def _of_file(path: Path) -> dict[str, tuple[str, ...]]:
  try:
    listed = text_files.load_json(path)
    return {name: _listed(path, name, v) for name, v in listed.items()}
  except (ValueError, AttributeError, TypeError) as error:
    raise ValueError(
      f"{path}: expected JSON of the form {{class: [path, ...]}} ({error})."
    ) from error


def _listed(path: Path, name: str, listed: Any) -> tuple[str, ...]:
  """Return the images that a JSON file lists for a class, each once."""
  if not isinstance(listed, list) or not all(
    isinstance(image, str) and image for image in listed
  ):
    raise TypeError(f"{name!r} is {str(listed)[:80]!r}, no list of paths")
  images = [image_files.resolve(path, image) for image in listed]
  first: dict[tuple, str] = {}
  for image in images:
    first.setdefault(image_files.identity(image), image)
  return tuple(first.values())


def _check_classes(
  path: Path,
  images: Mapping[str, Sequence[str]],
  dataset: index.Dataset,
  views: Mapping[str, str],
) -> None:
  """Refuse images of the data set that belong to another class."""
  shown = {
    os.path.realpath(s.image_path): s.class_name
    for s in (*dataset.train, *dataset.test)
  }
  for name, paths in images.items():
    expected = views.get(name, name)
    for image in paths:
      known = shown.get(os.path.realpath(image), expected)
      if known != expected:
        raise ValueError(
          f"{path}: {image} is a reference of {name!r}, but shows {known!r}."
        )
