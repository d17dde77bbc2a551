"""Selection of reference images for few-shot detection.

References are sampled from a data set as AdaptCLIP's authors do, read from a
folder, or listed in a file.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from zsad_jax.datasets import image_files, index, walker
from zsad_jax.runtime import text_files

SEEDS = (10, 20, 30)  # Of AdaptCLIP's few-shot results (authors' code).


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
  """

  images: Mapping[str, tuple[str, ...]]
  shots: int | None
  seed: int | None = None
  notes: tuple[str, ...] = ()

  @property
  def group(self) -> str:
    """Name of the setting that seeds are averaged over, such as "4-shot"."""
    return "given" if self.shots is None else f"{self.shots}-shot"

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


def sample(dataset: index.Dataset, *, shots: int, seed: int) -> References:
  """Sample references of every class, or view, from normal training images.

  For a class without training images they are drawn from its test images,
  anomalous ones included, as the authors do (medical sets), with a note.

  Args:
    dataset: the data set.
    shots: references per class or view.
    seed: of the sampling.

  Raises:
    ValueError: a class has fewer than `shots` images.
  """
  if shots == 0:
    return NONE
  images, from_test = {}, []
  for name in _compared(dataset):
    of_class = lambda part, n=name: [s for s in part if s.compared_with == n]
    pool = of_class(dataset.train)
    if not pool:
      pool = of_class(dataset.test)
      from_test.append(name)
    if shots > len(pool):
      raise ValueError(
        f"{dataset.name}: {shots} references of {name!r} were requested, but "
        f"it has {len(pool)} images to choose from; ask for fewer."
      )
    chosen = indices(len(pool), shots, seed)
    images[name] = tuple(pool[i].image_path for i in chosen)
  notes = (
    (
      f"References of {', '.join(from_test)} were drawn from the test images, "
      "anomalous ones included: there are no training images.",
    )
    if from_test
    else ()
  )
  return References(images, shots, seed, notes)


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
  path = Path(path)
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
    return {
      name: tuple(image_files.resolve(path, image) for image in images)
      for name, images in listed.items()
    }
  except (ValueError, AttributeError, TypeError) as error:
    raise ValueError(
      f"{path}: expected JSON of the form {{class: [path, ...]}} ({error})."
    ) from error


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
