"""Data sets as lists of samples.

A data set is two lists of `Sample`; no image is opened here.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

from zsad_jax.types import ANOMALOUS, NORMAL

BUILT = "tfds://"  # Prefix of the path of a record; see tfds_builders.py.
_PART = re.compile(r"(.*)#xywh=(\d+),(\d+),(\d+),(\d+)", re.DOTALL)

Box = tuple[int, int, int, int]  # Left, upper, right, lower border in pixels.


def part(path: str | os.PathLike[str], box: Box) -> str:
  """Return the path of a part of an image, a media fragment (W3C)."""
  left, upper, right, lower = box
  return f"{path}#xywh={left},{upper},{right - left},{lower - upper}"


def file_and_box(path: str | os.PathLike[str]) -> tuple[str, Box | None]:
  """Split a path into the file and the box of its part; None: the whole."""
  found = _PART.fullmatch(str(path))
  if not found:
    return str(path), None
  x, y, width, height = map(int, found.groups()[1:])
  return found[1], (x, y, x + width, y + height)


@dataclasses.dataclass(frozen=True)
class Sample:
  """One image with its annotation.

  Attributes:
    image_path: absolute path, of a part of a file with `part`'s ending.
    mask_path: absolute path, "" where there is no mask.
    class_name: the object or texture, as the data set spells it.
    specie_name: the type of anomaly, "" where unknown.
    label: NORMAL or ANOMALOUS.
    view: name of the view, such as "C1", where several images show a physical
      object.
    group: the physical object; "" where every image shows another one.
    more_masks: further masks; the union with the first is used.
    unused_mask: mask of a normal image, which is only checked to be empty.
    lossy_mask: threshold its mask at one half if it has graded values, see
      `masks.read`.
    resize_mask: resize a mask of another size to the image, see `masks.fit`.
  """

  image_path: str
  mask_path: str
  class_name: str
  specie_name: str
  label: int
  view: str = ""
  group: str = ""
  more_masks: tuple[str, ...] = ()
  lossy_mask: bool = False
  resize_mask: bool = False
  unused_mask: str = ""

  @property
  def compared_with(self) -> str:
    """Key of its reference images: the class, or the view of the class."""
    return f"{self.class_name}/{self.view}" if self.view else self.class_name

  @property
  def mask_files(self) -> tuple[str, ...]:
    """Paths of all masks, used or not."""
    paths = (self.mask_path, *self.more_masks, self.unused_mask)
    return tuple(path for path in paths if path)

  @property
  def has_mask(self) -> bool:
    """Whether every pixel's label is known; a normal image needs no file."""
    return self.label == NORMAL or bool(self.mask_path)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set on disk.

  Attributes:
    name: for logs and tables.
    root: absolute path of its folder.
    class_names: every class once; its position is the class index.
    train: normal images, from which few-shot references are drawn.
    test: normal and anomalous images; zero-shot methods train on this part
      of an auxiliary data set.
    has_masks: False if no anomalous test image has a mask, so that no pixel
      metric is defined.
    mosaic_prob: probability that a training sample is replaced by a mosaic.
    notes: messages for the user, one sentence each.
  """

  name: str
  root: str
  class_names: tuple[str, ...]
  train: tuple[Sample, ...]
  test: tuple[Sample, ...]
  has_masks: bool
  mosaic_prob: float = 0.0
  notes: tuple[str, ...] = ()

  @property
  def counts(self) -> tuple[int, int, int]:
    """Numbers of training, normal test and anomalous test images."""
    anomalous = sum(sample.label == ANOMALOUS for sample in self.test)
    return len(self.train), len(self.test) - anomalous, anomalous


def make_dataset(
  name: str,
  root: str | os.PathLike[str],
  *,
  train: Sequence[Sample] = (),
  test: Sequence[Sample],
  notes: Sequence[str] = (),
) -> Dataset:
  """Return a `Dataset`, its classes in the order of their first image.

  Args:
    name: of the data set.
    root: its folder.
    train: normal images, see `Dataset`.
    test: test images, see `Dataset`.
    notes: messages for the user, one sentence each.

  Raises:
    ValueError: `test` is empty.
  """
  if not test:
    raise ValueError(f"{root}: no test image found; expected at least one.")
  names = dict.fromkeys(sample.class_name for sample in (*test, *train))
  return Dataset(
    name=name,
    root=os.path.abspath(root),
    class_names=tuple(names),
    train=tuple(train),
    test=tuple(test),
    has_masks=any(sample.mask_path for sample in test),
    notes=tuple(notes),
  )


def class_ids(datasets: Sequence[Dataset]) -> list[int]:
  """Return the class of each test image, counted over all data sets."""
  found, first = [], 0
  for data in datasets:
    ids = {name: first + i for i, name in enumerate(data.class_names)}
    found += [ids[sample.class_name] for sample in data.test]
    first += len(ids)
  return found


def normal_images(
  datasets: Sequence[Dataset],
) -> list[list[Sample]]:
  """Return the images of each class that may be references in training."""
  return [
    [sample for sample in data.train if sample.class_name == name]
    for data in datasets
    for name in data.class_names
  ]
