"""Rows of a batch: the sample of each row, and its decoded arrays.

The sample of a training row is a function of (seed, step, row); nothing here
imports TensorFlow.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from zsad_jax.datasets import augmentation as augmentation_lib
from zsad_jax.datasets import index, mosaic, preprocess
from zsad_jax.datasets import masks as masks_lib
from zsad_jax.datasets.cache import DecodedCache
from zsad_jax.types import ANOMALOUS

Row = dict[str, np.ndarray | int | float | bool | bytes]


@dataclasses.dataclass(frozen=True)
class Order:
  """Order of the samples in training.

  Epoch e is the permutation of all samples drawn from (seed, e).

  Attributes:
    num_samples: samples per epoch.
    batch_size: samples per step, over all shards.
    seed: of the permutations.
  """

  num_samples: int
  batch_size: int
  seed: int

  @property
  def steps_per_epoch(self) -> int:
    """Steps after which every sample was used once."""
    return -(-self.num_samples // self.batch_size)

  def __call__(self, step: int, row: int | None) -> tuple[int, int | None]:
    """Return the epoch and the number of the sample, None for padding.

    Args:
      step: training step, counted from 0.
      row: in [0, batch_size), or None for padding, see `spread`.
    """
    epoch, step = divmod(step, self.steps_per_epoch)
    if row is None:
      return epoch, None
    position = step * self.batch_size + row
    if position >= self.num_samples:
      return epoch, None
    return epoch, int(
      _permutation(self.seed, epoch, self.num_samples)[position]
    )


@functools.lru_cache(maxsize=8)  # Prefetching works on few epochs at a time.
def _permutation(
  seed: int, epoch: int, num_samples: int
) -> Int64[np.ndarray, " n"]:
  return np.random.default_rng([seed, epoch]).permutation(num_samples)


class TrainSource:
  """Loads training samples, or mosaics in their place, changed at random.

  Args:
    datasets: the auxiliary data sets.
    samples: their test images.
    seed: of augmentation and references.
    augmentation: random changes of the images.
    num_references: normal images per sample.
    cache: of decoded images, or None.

  Raises:
    ValueError: references are drawn from a class without normal images.
  """

  def __init__(
    self,
    datasets: Sequence[index.Dataset],
    samples: Sequence[index.Sample],
    *,
    seed: int,
    augmentation: augmentation_lib.Augmentation = augmentation_lib.NONE,
    num_references: int = 0,
    cache: DecodedCache | None = None,
  ):
    self._samples = samples
    self._seed = seed
    self._augmentation = augmentation
    self._num_references, self._cache = num_references, cache
    self._class_ids = index.class_ids(datasets)
    self._probs = [data.mosaic_prob for data in datasets for _ in data.test]
    # Of each class, the samples that mosaics consist of.
    self._siblings: dict[int, list[int]] = {k: [] for k in self._class_ids}
    for i, class_id in enumerate(self._class_ids):
      if augmentation.mosaic_images == "all" or samples[i].label == ANOMALOUS:
        self._siblings[class_id].append(i)
    self._normal = index.normal_images(datasets)
    if num_references:
      names = [(data, name) for data in datasets for name in data.class_names]
      for (data, name), normal in zip(names, self._normal):
        if not normal:
          raise ValueError(
            f"{data.root}: class {name!r} has no normal training image to "
            "serve as reference, which this method learns from."
          )

  def load(self, epoch: int, i: int, image_size: int) -> Row:
    """Return the row of sample `i` in an epoch."""
    class_id, label = self._class_ids[i], self._samples[i].label
    cells = mosaic.draw(
      self._siblings[class_id],
      prob=self._probs[i],
      seed=self._seed,
      epoch=epoch,
      sample=i,
      distinct=self._augmentation.mosaic_images == "all",
    )
    shown = [self._samples[j] for j in cells or (i,)]
    if self._augmentation.mosaic_label == "any":
      label = max(sample.label for sample in shown)
    row = load(
      shown,
      label=label,
      class_id=class_id,
      number=i,
      image_size=image_size,
      cache=self._cache,
      change=self._augmentation.draw(self._seed, epoch, i),
    )
    return row | self._references(epoch, i, image_size)

  def references(self, epoch: int, i: int) -> Int64[np.ndarray, " k"]:
    """Draw normal images of the sample's class, with replacement.

    Returns:
      Positions in `index.normal_images` of the class.
    """
    normal = self._normal[self._class_ids[i]] if self._num_references else [0]
    rng = np.random.default_rng([self._seed, epoch, i])
    return rng.integers(len(normal), size=self._num_references)

  def _references(self, epoch: int, i: int, image_size: int) -> Row:
    """Return the images of `references`."""
    if not self._num_references:
      return {}
    normal = self._normal[self._class_ids[i]]
    chosen = self.references(epoch, i)
    try:
      images = [
        preprocess.load_image(normal[j].image_path, image_size) for j in chosen
      ]
      return {"references": np.stack(images)}
    except ValueError as error:
      empty = padding(image_size, num_references=len(chosen))
      return empty | {"error": str(error).encode(errors="surrogateescape")}


def load(
  shown: Sequence[index.Sample],
  *,
  label: int,
  class_id: int,
  number: int,
  image_size: int,
  cache: DecodedCache | None,
  change: augmentation_lib.Change | None = None,
) -> Row:
  """Return the row of one sample, or of the four of a mosaic.

  Args:
    shown: the sample, or the samples of the mosaic.
    label: of the image.
    class_id: of the image.
    number: position of the sample in the run's list.
    image_size: side of the image in pixels.
    cache: of decoded images, or None.
    change: of image and mask before they are resized, or None.

  Returns:
    The row, with the message of a file that cannot be read in "error".
  """
  row = padding(image_size)
  row |= {"label": label, "class_id": class_id, "index": number}
  try:
    image, mask, finding = _pair(shown, image_size, cache, change)
  except ValueError as error:
    # Raised by `Batches`: TensorFlow would wrap it into pages of its own.
    return row | {"error": str(error).encode(errors="surrogateescape")}
  return row | {
    "image": image,
    "mask": mask,
    "weight": 1.0,
    "finding": int(finding),
    "has_mask": all(sample.has_mask for sample in shown),
  }


def _pair(
  shown: Sequence[index.Sample],
  image_size: int,
  cache: DecodedCache | None,
  change: augmentation_lib.Change | None,
) -> tuple[np.ndarray, np.ndarray, masks_lib.Finding]:
  """Return image, mask, findings; changed images are used once, not cached."""
  if len(shown) == 1 and not change:
    load = cache.load if cache else preprocess.load_inspected
    return load(shown[0], image_size)
  pairs = [preprocess.inspect_pair(sample) for sample in shown]
  findings = pairs[0].findings
  image, mask = pairs[0].image, pairs[0].mask
  if len(shown) > 1:
    image = mosaic.paste([pair.image for pair in pairs])
    mask = mosaic.paste([pair.mask for pair in pairs])
    findings = masks_lib.Finding.NONE
  if change:
    image, mask = change(image, mask)
  return (
    preprocess.resize_image(image, image_size),
    preprocess.resize_mask(mask, image_size),
    findings,
  )


def padding(image_size: int, *, num_references: int = 0) -> Row:
  """Return a black row of weight 0."""
  shape = (image_size, image_size, 3)
  return {
    "image": np.zeros(shape, np.uint8),
    "references": np.zeros((num_references, *shape), np.uint8),
    "mask": np.zeros((image_size, image_size), np.uint8),
    "has_mask": False,
    "label": 0,
    "class_id": 0,
    "index": -1,
    "weight": 0.0,
    "finding": 0,
    "error": b"",
  }


def spread(batch_size: int, num_devices: int) -> list[int | None]:
  """Return the row of the batch at each position of a padded batch.

  Every device has the same number of consecutive positions. Rows keep their
  order and are spread evenly over the devices, and so over the processes that
  decode them: 3 rows on 2 devices give [0, None, 1, 2]. A batch size that is a
  multiple of the number of devices needs no padding.

  Args:
    batch_size: rows of the batch.
    num_devices: number of devices.

  Returns:
    Rows in ascending order, with None for padding.
  """
  size = -(-batch_size // num_devices)
  limits = [i * batch_size // num_devices for i in range(num_devices + 1)]
  positions: list[int | None] = []
  for first, end in itertools.pairwise(limits):
    positions += [*range(first, end), *[None] * (size - (end - first))]
  return positions


def of_shard(
  samples: Sequence[index.Sample], batch_size: int, num_shards: int, shard: int
) -> range:
  """Return the rows of each batch that a shard reads.

  Raises:
    ValueError: there is no sample, or an argument is out of range.
  """
  if not samples:
    raise ValueError("There is no sample to read; expected at least one.")
  if batch_size < 1 or batch_size % num_shards:
    raise ValueError(
      f"batch_size: {batch_size} images cannot be split over "
      f"{num_shards} hosts; use a multiple of it."
    )
  if not 0 <= shard < num_shards:
    raise ValueError(f"shard: expected 0 to {num_shards - 1}, found {shard}.")
  size = batch_size // num_shards
  return range(shard * size, (shard + 1) * size)
