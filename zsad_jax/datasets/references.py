"""Normal reference images for few-shot detection, and how they are chosen.

They are sampled from a data set as AdaptCLIP's authors sample them, read from
a folder, or listed in a file; what was chosen is kept with the results.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zsad_jax.datasets import image_files, index

SEEDS = (10, 20, 30)  # Of all of AdaptCLIP's few-shot numbers.


@dataclasses.dataclass(frozen=True)
class References:
  """The reference images of every class; none for zero-shot detection.

  Attributes:
    images: absolute paths by class name, or by "class/view" where a view is
      compared with its own (`index.Sample.compared_with`), in the order they
      were chosen.
    shots: how many per class were asked for; None where classes differ.
    seed: of the sampling; None where the images were given.
    notes: what the user should be told, one sentence each.
  """

  images: Mapping[str, tuple[str, ...]]
  shots: int | None
  seed: int | None = None
  notes: tuple[str, ...] = ()

  @property
  def group(self) -> str:
    """What settings are averaged over seeds as, such as "4-shot"."""
    return "given" if self.shots is None else f"{self.shots}-shot"

  @property
  def label(self) -> str:
    """For folders and titles, such as "4-shot_seed10"."""
    return self.group if self.seed is None else f"{self.group}_seed{self.seed}"

  def of(self, name: str, class_name: str) -> tuple[str, ...]:
    """Images to compare those of a class, or of a view of it, with."""
    return self.images.get(name, self.images.get(class_name, ()))


NONE = References({}, 0)


def indices(count: int, shots: int, seed: int) -> list[int]:
  """Positions of the references in a class's list of `count` images.

  Drawn with replacement: the numbers of torch.randint(0, count, (shots,))
  after torch.manual_seed(seed), anew for every class (authors' test.py). The
  first k of more shots are those of k shots.
  """
  raw = np.random.RandomState(seed).randint(
    0, 2**32, size=shots, dtype=np.uint32
  )
  return [int(i) for i in raw % np.uint32(count)]


def sample(dataset: index.Dataset, *, shots: int, seed: int) -> References:
  """Draws references of every class, or view, from its normal training images.

  A class without training images draws from its test images, anomalous ones
  included, as the authors do (medical sets); `notes` says so.

  Raises:
    ValueError: a class has fewer images than references are asked for.
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
        f"{dataset.name}: {shots} references of {name!r} were asked for, but "
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
  """Reads the references of every class of a data set.

  Args:
    path: a folder with a subfolder for each class (a set of one class may have
      its images right there), or a JSON file {class: [path, ...]}, paths
      relative to it; there "class/view" stands for one view.
    dataset: whose classes.

  Raises:
    FileNotFoundError: `path`, or an image that is listed, does not exist.
    ValueError: a class is unknown or missing, or a listed image is known to
      show another class.
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


def _compared(dataset):
  """Names of what is compared with references of its own, and their class."""
  class_of = {s.compared_with: s.class_name for s in dataset.test}
  order = {name: i for i, name in enumerate(dataset.class_names)}
  return dict(sorted(class_of.items(), key=lambda item: order[item[1]]))


def _of_folder(folder, class_names):
  folders = sorted(p for p in folder.iterdir() if p.is_dir())
  if not folders and len(class_names) == 1:
    return {class_names[0]: image_files.below(folder)}
  known = {name.split("/")[0] for name in class_names}
  found = [p.name for p in folders if p.name not in known]
  found += [name for name in class_names if (folder / name).is_dir()]
  return {name: image_files.below(folder / name) for name in found}


def _of_file(path):
  try:
    listed = json.loads(path.read_text(encoding="utf-8"))
    return {
      name: tuple(image_files.resolve(path, image) for image in images)
      for name, images in listed.items()
    }
  except (ValueError, AttributeError, TypeError) as error:
    raise ValueError(
      f"{path}: expected JSON of the form {{class: [path, ...]}} ({error})."
    ) from error


def _check_classes(path, images, dataset, views):
  """An image of the data set shows the class that its index says."""
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
