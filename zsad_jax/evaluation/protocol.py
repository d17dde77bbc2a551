"""Evaluation protocol: data sets, seeds, shots, metrics, checkpoint.

Two results are comparable where their protocols agree. Testing on training
data is refused unless it is explicitly allowed.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

from zsad_jax.datasets import duplicates, index, naming, references, registry
from zsad_jax.datasets.references import References
from zsad_jax.inference.tiling import Tiling
from zsad_jax.metrics import accumulators


@dataclasses.dataclass(frozen=True)
class Protocol:
  """Evaluation protocol of a run.

  Attributes:
    train_data: data sets used for training.
    test_data: data sets to evaluate on.
    selection: how the checkpoint was chosen, "last" or "official".
    selection_data: data sets used to choose it.
    shots: numbers of references per class, 0 for zero-shot.
    seeds: seeds of reference sampling.
    variant: definition of the metrics, a key of `accumulators.VARIANTS`.
    allow_trained: whether testing on training data is allowed.
    given_references: whether the user gave references.
    tiling: size and overlap of the tiles that images are scored by; None for
      whole images.
    per_category: whether it learns from normal training images of the
      categories that are tested.
  """

  train_data: tuple[str, ...]
  test_data: tuple[str, ...]
  selection: str
  selection_data: tuple[str, ...]
  shots: tuple[int, ...] = (0,)
  seeds: tuple[int, ...] = ()
  variant: str = "streamed"
  allow_trained: bool = False
  given_references: bool = False
  tiling: Tiling | None = None
  per_category: bool = False

  def __post_init__(self):
    streamed = accumulators.variant(self.variant).streamed  # Or ValueError.
    if self.tiling is not None and not streamed:
      raise ValueError(
        f"--variant={self.variant} needs maps of one size, but those merged "
        "from tiles have the sizes of the images: leave out --tile, or use "
        "--variant=streamed."
      )

  @classmethod
  def from_config(cls, config: Any, **settings: Any) -> "Protocol":
    """Return the protocol of a configuration, with these fields replaced."""
    used = config.selection_data if config.selection != "last" else ()
    return cls(
      **{
        "train_data": tuple(config.train_data),
        "test_data": tuple(config.test_data),
        "selection": config.selection,
        "selection_data": tuple(used),
        "per_category": bool(config.get("per_category", False)),
        **settings,
      }
    )

  def check(self, dataset: index.Dataset, data_root: str | None) -> list[str]:
    """Return notes that belong to results on this data set.

    Raises:
      ValueError: it, or an image of it, was trained on, and that is not
        allowed.
    """
    notes = []
    trained = _used(_opened(self.train_data, data_root), self.per_category)
    if problem := _trained_on(dataset, trained):
      if not self.allow_trained:
        raise ValueError(
          f"{dataset.name} ({dataset.root}){problem}: this would be "
          "no zero-shot result. --allow_trained evaluates it nevertheless."
        )
      notes.append(f"{dataset.name}{problem}: no zero-shot result.")
    elif copies := _copies(dataset, trained):
      notes.append(
        f"{dataset.name}: {copies} of {len(dataset.test)} test images are "
        "copies of images that were trained on: no zero-shot result for these."
      )
    if self.selection == "official":
      names = ", ".join(self.selection_data)
      chosen_on = _opened(self.selection_data, data_root)
      root = os.path.realpath(dataset.root)
      target = root in {os.path.realpath(d.root) for d in chosen_on}
      images = "this target set" if target else f"target images ({names})"
      notes.append(f'checkpoint "official": chosen by the results on {images}.')
    return notes

  def with_references(self, choices: Sequence[References]) -> "Protocol":
    """Return the protocol with the shots and seeds of these choices."""
    sampled = [c for c in choices if c.seed is not None]
    zero_shot = [c for c in choices if not c.images]
    shots = {c.shots for c in (*zero_shot, *sampled) if c.shots is not None}
    return dataclasses.replace(
      self,
      shots=tuple(sorted(shots)),
      seeds=tuple(dict.fromkeys(c.seed for c in sampled if c.seed is not None)),
      given_references=any(c.images and c.seed is None for c in choices),
    )

  def describe(self) -> str:
    """Return the protocol in one line of text."""
    shots = ", ".join(map(str, self.shots)) or "none"
    seeds = f", seeds {', '.join(map(str, self.seeds))}" if self.seeds else ""
    given = ", given references" if self.given_references else ""
    tiles = f"; {self.tiling.describe()}" if self.tiling else ""
    return (
      f"trained on {', '.join(self.train_data)}; tested on "
      f"{', '.join(self.test_data)}; checkpoint {self.selection}; shots "
      f"{shots}{seeds}{given}; metrics {self.variant}{tiles}"
    )


def check_names(config: Any) -> None:
  """Check before training that nothing is used for training and testing.

  Data sets that are missing are not checked.

  Raises:
    ValueError: a data set, or an image, is in both, and `config.allow_trained`
      is not set; or a data set has an image that is normal and anomalous, or
      in its training and test part.
  """
  place = functools.partial(naming.place, data_root=config.data_root)
  trained = {place(name) for name in config.train_data}
  normal_alone = bool(config.get("per_category", False))
  both = [name for name in config.test_data if place(name) in trained]
  if normal_alone:  # Of the same categories, other images.
    both = []
  if both and not config.allow_trained:
    raise ValueError(
      f"{', '.join(sorted(both))} is in config.train_data and in "
      "config.test_data: its results would mean nothing. "
      "--config.allow_trained=True evaluates it nevertheless."
    )
  found = _opened(config.train_data, config.data_root)
  found = _used(found, normal_alone)
  for dataset in _opened(config.test_data, config.data_root):
    problem = _trained_on(dataset, found)
    if problem and not config.allow_trained:
      raise ValueError(
        f"config.test_data: {dataset.name} ({dataset.root}){problem}. "
        "--config.allow_trained=True evaluates it nevertheless."
      )
  for name in dict.fromkeys((*config.train_data, *config.test_data)):
    for dataset in _opened([name], config.data_root):
      published = bool(place(name).key)
      duplicates.check_dataset(dataset, published=published)


def trained_images(config: Any) -> list[str]:
  """Return the images that a run was trained on, where they still exist."""
  found = _opened(config.train_data, config.data_root)
  if config.get("per_category", False):
    drawn = [references.sample(data, **config.references) for data in found]
    each = [paths for one in drawn for paths in one.images.values()]
    return [path for paths in each for path in paths]
  return [sample.image_path for data in found for sample in data.test]


def _opened(names: Sequence[str], data_root: str | None) -> list[index.Dataset]:
  """Return data sets, without those that are missing."""
  found = []
  for name in names:
    with contextlib.suppress(FileNotFoundError):
      found.append(registry.open_dataset(name, data_root=data_root))
  return found


def _used(
  datasets: Sequence[index.Dataset], per_category: bool
) -> list[index.Dataset]:
  """Return data sets whose `test` is what is trained on.

  Args:
    datasets: the auxiliary data sets.
    per_category: whether normal training images are trained on instead; they
      get another root, because the data set itself may be tested.
  """
  if not per_category:
    return list(datasets)
  return [
    dataclasses.replace(data, root=f"{data.root}#train", test=data.train)
    for data in datasets
  ]


def _trained_on(
  dataset: index.Dataset, trained: Sequence[index.Dataset]
) -> str:
  """Return how a data set was trained on; "" if it was not."""
  root = os.path.realpath(dataset.root)
  if root in {os.path.realpath(data.root) for data in trained}:
    return " was trained on"
  files = {
    duplicates.file_key(sample.image_path)
    for data in trained
    for sample in data.test
  }
  tested = [duplicates.file_key(sample.image_path) for sample in dataset.test]
  shared = sum(key in files for key in tested)
  if not shared:
    return ""
  return f" has {shared} test images of {len(tested)} that were trained on"


def _copies(dataset: index.Dataset, trained: Sequence[index.Dataset]) -> int:
  """Return the number of test images with the content of a training image."""
  if dataset.name in registry.ENTRIES:
    trained = [data for data in trained if data.name not in registry.ENTRIES]
  paths = [sample.image_path for data in trained for sample in data.test]
  if not paths:
    return 0
  tested = [sample.image_path for sample in dataset.test]
  return len(duplicates.equal_to(tested, paths))
