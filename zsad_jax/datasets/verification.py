"""Checks the files of a data set."""

import collections
import concurrent.futures
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zsad_jax.datasets import index, preprocess, registry
from zsad_jax.datasets.entries import Entry
from zsad_jax.types import ANOMALOUS, NORMAL

PAPERS_SIZE = 518  # Pixels.


def verify(
  dataset: index.Dataset, entry: Entry | None
) -> tuple[list[str], list[str]]:
  """Open every file and compare the counts with the published ones.

  Args:
    dataset: the data set.
    entry: its metadata, if it is registered.

  Returns:
    Problems and notes, one sentence each.
  """
  problems = list(dataset.notes)
  if entry is not None:
    problems += filter(None, [registry.count_note(dataset, entry)])
    problems += _category_problems(dataset, entry)
  problems += _duplicates(dataset)
  samples = [*dataset.train, *dataset.test]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    inspections = list(pool.map(_inspect, samples))
  problems += [found.problem for found in inspections if found.problem]
  lossy = bool(entry and entry.lossy_masks)
  return problems, list(_mask_notes(inspections, lossy))


class Inspection(NamedTuple):
  """Result of opening the files of a sample.

  Attributes:
    problem: message about a file that cannot be used, or "".
    between: fraction of the mask's pixels that are neither black nor white.
    vanishes: whether the mask is empty at the papers' image size.
  """

  problem: str = ""
  between: float = 0.0
  vanishes: bool = False


def _inspect(sample: index.Sample) -> Inspection:
  try:
    _, mask = preprocess.open_pair(sample)
    if not sample.mask_path:
      return Inspection()
    between = preprocess.fraction_between(sample.mask_path)
  except ValueError as error:
    return Inspection(str(error))
  if not mask.getbbox():
    return Inspection(f"{sample.mask_path}: empty, but its image is anomalous.")
  vanishes = not preprocess.resize_mask(mask, PAPERS_SIZE).any()
  return Inspection("", between, vanishes)


def _duplicates(dataset: index.Dataset) -> Iterator[str]:
  """Yield a message for each image that is listed more than once."""
  samples = [*dataset.train, *dataset.test]
  paths = collections.Counter(s.image_path for s in samples)
  yield from (f"{p}: listed {n} times." for p, n in paths.items() if n > 1)
  train = {s.image_path for s in dataset.train}
  for sample in dataset.test:
    if sample.image_path in train:
      yield f"{sample.image_path}: both a training and a test image."


def _mask_notes(
  inspections: Sequence[Inspection], lossy: bool
) -> Iterator[str]:
  """Yield notes about masks that can be read."""
  between = [found.between for found in inspections if found.between]
  if lossy and between:
    yield (
      f"{len(between)} masks have values between black and white "
      f"({100 * sum(between) / len(between):.2g} % of their pixels on "
      "average): they are JPEG files. Every value but 0 counts as "
      "anomalous, as in the papers' code; --config.masks=robust counts "
      "values above one half."
    )
  if vanishing := sum(found.vanishes for found in inspections):
    yield (
      f"{vanishing} masks are empty at {PAPERS_SIZE} pixels: their anomalies "
      "are too small for this size; the images stay anomalous."
    )


def _category_problems(dataset: index.Dataset, entry: Entry) -> Iterator[str]:
  """Yield differences from the published categories, a sentence each."""
  count = collections.Counter()
  for sample in dataset.train:
    count[sample.class_name, "train"] += 1
  for sample in dataset.test:
    count[sample.class_name, sample.label] += 1
  known = {name for name, _ in count}
  missing = [name for name in entry.categories if name not in known]
  if missing:
    yield f"missing categories: {', '.join(missing)}."
  for name, published in entry.category_counts.items():
    if name in missing:
      continue
    found = tuple(count[name, k] for k in ("train", NORMAL, ANOMALOUS))
    if found != published:
      show = lambda counts: "/".join(map(str, counts))
      yield f"{name}: {show(found)} images, published are {show(published)}."
