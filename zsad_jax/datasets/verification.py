"""Checks the files of a data set."""

import collections
import concurrent.futures
import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zsad_jax.datasets import index, preprocess, registry
from zsad_jax.datasets.entries import Entry
from zsad_jax.datasets.masks import Finding
from zsad_jax.runtime import progress
from zsad_jax.types import ANOMALOUS, NORMAL

PAPERS_SIZE = 518  # Pixels.

_log = logging.getLogger(__name__)

Found = tuple[index.Sample, Finding]

# Of masks, for `verify`.
_PROBLEMS = Finding.EMPTY | Finding.INVERTED | Finding.OF_NORMAL
# Of data sets that are used as published: their masks are read as the papers'
# code does, and large anomalies or numbers of defects are as published.
_OF_OWN_DATA = (
  Finding.INVERTED
  | Finding.VOID
  | Finding.GRADED
  | Finding.PALETTE
  | Finding.OF_NORMAL
)
_REMARKS = {  # With the number of masks, the first one, the size of images.
  Finding.EMPTY: "{} masks of anomalous images are empty ({}): all pixels of "
  "such an image count as normal. Complete the masks, or remove the images.",
  Finding.INVERTED: "{} masks mark most of the image and of its border ({}): "
  "is the background white? It has value 0 (black, index 0 of a palette); "
  "invert such masks.",
  Finding.OF_NORMAL: "{} masks of normal images mark anomalous pixels ({}): "
  "they are not used. Correct the label of the image, or remove the mask.",
  Finding.GRADED: "{} masks have values between black and white ({}): they "
  "are JPEG files, or have smooth borders. Every value but 0 counts as "
  "anomalous, as in the papers' code; --masks=robust (in training "
  "--config.masks=robust) counts values above one half.",
  Finding.VOID: "{} masks have small numbers and 255 ({}): 255 counts as "
  'anomalous, although it means "ignore" in some formats (PASCAL VOC). Set '
  "such pixels to 0 if they are normal.",
  Finding.PALETTE: "{} masks show index 0 in a colour and another index in "
  "black ({}): index 0 is the background, whatever its colour. Save the masks "
  "without palette, white on black, if it is not.",
  Finding.TURNED: "{} masks have another EXIF orientation than their image "
  "({}), such as none: a mask that was drawn on the stored pixels lies on the "
  "wrong side. Save the images turned, without orientation.",
  Finding.RESIZED: "{} masks were resized to their images ({}).",
  Finding.VANISHES: "{} masks are empty at {size} pixels ({}): their anomalies "
  "are too small for this size; the images stay anomalous.",
}


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
  inspections, reported = [], progress.Progress("Verification", len(samples))
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for found in pool.map(_inspect, samples):
      inspections.append(found)
      reported.add(1)
  problems += [found.problem for found in inspections if found.problem]
  pairs = [(s, i.finding) for s, i in zip(samples, inspections)]
  problems += mask_problems(pairs, entry)
  notes = [
    *missing_masks(dataset),
    *mask_notes(pairs, entry, without=_PROBLEMS),
  ]
  copies = list(_copies(dataset, [found.digest for found in inspections]))
  (problems if entry is None else notes).extend(copies)
  return problems, notes


class Inspection(NamedTuple):
  """Result of opening the files of a sample.

  Attributes:
    problem: message about a file that cannot be used, or "".
    finding: what is suspicious about the mask.
    digest: of the pixels of the image, b"" if it cannot be read.
  """

  problem: str = ""
  finding: Finding = Finding.NONE
  digest: bytes = b""


def _inspect(sample: index.Sample) -> Inspection:
  try:
    image, mask, finding = preprocess.inspect_pair(sample)
  except ValueError as error:
    return Inspection(str(error))
  if mask.getbbox() and not preprocess.resize_mask(mask, PAPERS_SIZE).any():
    finding |= Finding.VANISHES
  digest = hashlib.blake2b(image.tobytes(), digest_size=16)
  digest.update(str(image.size).encode())
  return Inspection("", finding, digest.digest())


def mask_problems(found: Sequence[Found], entry: Entry | None) -> list[str]:
  """Return a sentence for each mask that cannot be right.

  Args:
    found: samples, and what is suspicious about their masks.
    entry: metadata of the data set, if it is registered.
  """
  problems = []
  for sample, finding in found:
    if finding & Finding.EMPTY:
      problems.append(f"{sample.mask_path}: empty, but its image is anomalous.")
    elif finding & Finding.INVERTED and not entry:
      problems.append(
        f"{sample.mask_path}: anomalous in most of the image and of its "
        "border; expected a background of value 0 (black, index 0 of a "
        "palette). Invert the mask if its background is white."
      )
    elif finding & Finding.OF_NORMAL and not entry:
      problems.append(
        f"{sample.unused_mask}: marks anomalous pixels, but its image is "
        f"normal: {sample.image_path}. Correct the label, or remove the mask."
      )
  return problems


def mask_notes(
  found: Sequence[Found],
  entry: Entry | None,
  *,
  size: int = PAPERS_SIZE,
  without: Finding = Finding.NONE,
) -> list[str]:
  """Return a sentence for each kind of suspicious masks.

  Args:
    found: samples, and what is suspicious about their masks.
    entry: metadata of the data set, if it is registered: its masks are not
      suspected of what is usual in published data.
    size: side of the images in pixels.
    without: kinds to leave out.
  """
  hidden = without | (_OF_OWN_DATA if entry else Finding.NONE)
  if entry and entry.lossy_masks:
    hidden &= ~Finding.GRADED
  notes = []
  for kind, text in _REMARKS.items():
    paths = [s.mask_path or s.unused_mask for s, f in found if f & kind]
    if not paths or kind & hidden:
      continue
    first = paths[0] if len(paths) == 1 else f"first {paths[0]}"
    notes.append(text.format(len(paths), first, size=size))
  return notes


def missing_masks(dataset: index.Dataset) -> list[str]:
  """Return a note if some anomalous images have a mask and others do not."""
  anomalous = [s for s in dataset.test if s.label == ANOMALOUS]
  bare = [sample for sample in anomalous if not sample.has_mask]
  if not bare or len(bare) == len(anomalous):
    return []
  return [
    f"{len(bare)} of {len(anomalous)} anomalous images have no mask, first "
    f"{bare[0].image_path}: pixel metrics leave them out."
  ]


class MaskLog:
  """Logs a note on the first mask of each kind while training data are read.

  Args:
    datasets: the data sets; samples are numbered over their test parts.
  """

  def __init__(self, datasets: Sequence[index.Dataset]):
    self._samples = [(s, data) for data in datasets for s in data.test]
    self._logged: dict[str, Finding] = {}

  def __call__(self, number: int, finding: Finding) -> None:
    """Log what is new about the mask of a sample."""
    sample, dataset = self._samples[number]
    logged = self._logged.setdefault(dataset.root, Finding.NONE)
    self._logged[dataset.root] |= finding
    entry = registry.ENTRIES.get(dataset.name)
    for note in mask_notes([(sample, finding)], entry, without=logged):
      _log.warning("note: %s: %s", dataset.name, note)


def _duplicates(dataset: index.Dataset) -> Iterator[str]:
  """Yield a message for each image that is listed more than once."""
  samples = [*dataset.train, *dataset.test]
  paths = collections.Counter(s.image_path for s in samples)
  yield from (f"{p}: listed {n} times." for p, n in paths.items() if n > 1)
  train = {s.image_path for s in dataset.train}
  for sample in dataset.test:
    if sample.image_path in train:
      yield f"{sample.image_path}: both a training and a test image."


def _copies(dataset: index.Dataset, digests: Sequence[bytes]) -> Iterator[str]:
  """Yield a message for each role that images of equal pixels contradict.

  Args:
    dataset: the data set.
    digests: of the pixels of the images of both parts.
  """
  roles = ["a training image"] * len(dataset.train)
  roles += [
    "anomalous" if sample.label == ANOMALOUS else "a normal test image"
    for sample in dataset.test
  ]
  samples = [*dataset.train, *dataset.test]
  first: dict[bytes, tuple[str, str]] = {}
  found: dict[tuple[str, str], list[str]] = {}
  for sample, role, digest in zip(samples, roles, digests):
    path, other = first.setdefault(digest, (sample.image_path, role))
    if digest and other != role and path != sample.image_path:
      pair = f"{sample.image_path} has the pixels of {path}"
      found.setdefault((other, role), []).append(pair)
  for (other, role), pairs in found.items():
    yield (
      f"{pairs[0]}, but is {role}, not {other}; {len(pairs)} such images: "
      "remove one of each two."
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
