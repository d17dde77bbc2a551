"""Batches for training and evaluation: tf.data around the Pillow loaders.

The only module that imports TensorFlow, which does the parallel work and never
sees an accelerator. A batch is a dict of NumPy arrays:

  image       uint8   (b, s, s, 3)  see `ImageBackbone.normalize`
  mask        uint8   (b, s, s)     1 = anomalous
  has_mask    bool    (b,)          False: the pixels' states are unknown
  label       int32   (b,)          0 = normal, 1 = anomalous
  class_id    int32   (b,)          position in `class_names(datasets)`
  index       int32   (b,)          position in the samples, -1: padding
  weight      float32 (b,)          0 for padding and skipped images, else 1
  references  uint8   (b, k, s, s, 3)  k normal images of the same class, if
                                       they were asked for

What a training step reads is a function of (seed, step), so a run resumes
where it stopped without reading what came before.
"""

import dataclasses
import functools
import itertools
import os
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Int64

from zsad_jax.datasets import index, mosaic, preprocess
from zsad_jax.datasets.cache import DecodedCache

# Read at the import; both only keep it from writing to the terminal.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
import tensorflow as tf  # noqa: E402

try:
  tf.config.set_visible_devices([], "GPU")  # They are JAX's.
except RuntimeError:
  pass  # The caller has used TensorFlow; what it sees is the caller's choice.

_DTYPES = dict(
  image=tf.uint8,
  references=tf.uint8,
  mask=tf.uint8,
  has_mask=tf.bool,
  label=tf.int32,
  class_id=tf.int32,
  index=tf.int32,
  weight=tf.float32,
  error=tf.string,
)
_ENDLESS = np.iinfo(np.int64).max

Row = dict[str, np.ndarray | int | float | bool | bytes]


class Batches:
  """Iterator of batches.

  Attributes:
    skipped: one message for each image that could not be read and was left
      out so far; stays empty unless `skip_corrupt` was asked for.
  """

  def __init__(self, dataset: tf.data.Dataset, *, skip_corrupt: bool):
    self.skipped: list[str] = []
    self._open = [dataset.as_numpy_iterator()]
    # Its threads call Python: left running, they block the interpreter's exit.
    weakref.finalize(self, self._open.clear)
    self._skip_corrupt = skip_corrupt

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    batch = next(self._open[0])
    for error in filter(None, batch.pop("error")):
      message = error.decode()
      if not self._skip_corrupt:
        raise ValueError(message)
      if message not in self.skipped:
        self.skipped.append(message)
    return batch


def class_names(datasets: Sequence[index.Dataset]) -> tuple[str, ...]:
  """Returns the classes of all data sets, in order, to which `class_id` refers.

  Equal names of two data sets remain two classes.
  """
  return tuple(name for data in datasets for name in data.class_names)


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
  """Returns the training steps after which every image was seen."""
  return -(-num_samples // batch_size)


def train_batches(
  datasets: Sequence[index.Dataset],
  *,
  image_size: int,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  mosaic_label: str = "stale",
  num_references: int = 0,
  skip_corrupt: bool = False,
  num_shards: int = 1,
  shard: int = 0,
  cache: DecodedCache | None = None,
) -> Batches:
  """Yields batches of the test images of `datasets`, without end.

  Epoch e is the permutation of all images drawn from (seed, e). Where the
  batch size does not divide their number, the last batch of an epoch is
  padded with black images of weight 0 (the papers' smaller last batch).

  Args:
    datasets: the auxiliary data sets; each brings its own rate of mosaics.
    image_size: side of the images in pixels.
    batch_size: images per step, over all shards.
    seed: of the order and of the mosaics, not negative.
    start_step: first step to yield, counted from 0.
    mosaic_label: the label of a mosaic: "stale" is that of the image it
      replaces (AdaCLIP, authors' code), "any" is 1 if it shows an anomaly.
    num_references: normal images beside each image, see `references` above.
    skip_corrupt: give weight 0 to an image that cannot be read, instead of
      stopping.
    num_shards: hosts that share a step; each gets its slice of the batch.
    shard: this host, from 0.
    cache: of decoded images; None: every image is decoded when it is needed.

  Raises:
    ValueError: an argument is out of range or, while iterating, an image or a
      mask cannot be read.
  """
  samples = tuple(sample for data in datasets for sample in data.test)
  rows = _local_rows(samples, batch_size, num_shards, shard)
  if mosaic_label not in ("stale", "any"):
    raise ValueError(
      f'mosaic_label: expected "stale" or "any", found {mosaic_label!r}.'
    )
  if seed < 0 or start_step < 0:
    raise ValueError(
      "seed and start_step must not be negative, found "
      f"{seed} and {start_step}."
    )
  order = _Order(len(samples), batch_size, seed)
  source = _TrainSource(
    datasets, samples, seed, mosaic_label, num_references, cache
  )

  def load(number: int) -> Row:
    step, row = divmod(number, len(rows))
    epoch, i = order(step, rows[row])
    if i is None:
      return _padding(image_size, num_references)
    return source.load(epoch, i, image_size)

  numbers = tf.data.Dataset.range(start_step * len(rows), _ENDLESS)
  return Batches(
    _parallel(numbers, load, image_size, len(rows), num_references),
    skip_corrupt=skip_corrupt,
  )


def train_numbers(
  datasets: Sequence[index.Dataset],
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  num_references: int = 0,
  num_shards: int = 1,
  shard: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields what `train_batches` reads, as numbers instead of images.

  Mosaics are not drawn. Arguments are those of `train_batches`.

  Yields:
    index int32 (b,), -1 for padding; references int32 (b, k), positions in
    `index.normal_images` of the sample's class.
  """
  samples = tuple(sample for data in datasets for sample in data.test)
  rows = _local_rows(samples, batch_size, num_shards, shard)
  order = _Order(len(samples), batch_size, seed)
  source = _TrainSource(datasets, samples, seed, "stale", num_references, None)
  for step in itertools.count(start_step):
    places = [order(step, row) for row in rows]
    chosen = [source.references(epoch, i or 0) for epoch, i in places]
    numbers = [-1 if i is None else i for _, i in places]
    yield {
      "index": np.array(numbers, np.int32),
      "references": np.array(chosen, np.int32),
    }


def eval_batches(
  samples: Sequence[index.Sample],
  *,
  class_names: Sequence[str],
  image_size: int,
  batch_size: int,
  skip_corrupt: bool = False,
  num_shards: int = 1,
  shard: int = 0,
  cache: DecodedCache | None = None,
  workers: int | None = None,
) -> Batches:
  """Yields every sample once, in order.

  The last batch is padded by black images of weight 0 and index -1, so that
  all have one shape and every shard the same number of batches.

  Args:
    samples: for example `dataset.test`.
    class_names: the list that `class_id` refers to.
    image_size: side of the images in pixels.
    batch_size: images per batch, over all shards.
    skip_corrupt: see `train_batches`.
    num_shards: hosts that share a batch; each gets its slice of it.
    shard: this host, from 0.
    cache: see `train_batches`.
    workers: threads that decode; None: as many as help.

  Raises:
    ValueError: an argument is out of range, a sample's class is not in
      `class_names` or, while iterating, an image or a mask cannot be read.
  """
  rows = _local_rows(samples, batch_size, num_shards, shard)
  unknown = {sample.class_name for sample in samples} - set(class_names)
  if unknown:
    raise ValueError(
      f"class_names: {sorted(unknown)} occur in the samples but "
      f"not in {list(class_names)}."
    )

  def load(number: int) -> Row:
    batch, row = divmod(number, len(rows))
    i = batch * batch_size + rows[row]
    if i >= len(samples):
      return _padding(image_size)
    class_id = class_names.index(samples[i].class_name)
    return _load([samples[i]], samples[i].label, class_id, i, image_size, cache)

  num_batches = -(-len(samples) // batch_size)
  numbers = tf.data.Dataset.range(num_batches * len(rows))
  dataset = _parallel(numbers, load, image_size, len(rows))
  if workers:
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    dataset = dataset.with_options(options)
  return Batches(dataset, skip_corrupt=skip_corrupt)


@dataclasses.dataclass(frozen=True)
class _Order:
  """Which image of which epoch fills a row of a training step."""

  num_samples: int
  batch_size: int
  seed: int

  def __call__(self, step: int, row: int) -> tuple[int, int | None]:
    """Returns the epoch and the number of the sample, None for padding."""
    epoch, step = divmod(
      step, steps_per_epoch(self.num_samples, self.batch_size)
    )
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


class _TrainSource:
  """Loads training samples, or mosaics in their place."""

  def __init__(
    self,
    datasets: Sequence[index.Dataset],
    samples: Sequence[index.Sample],
    seed: int,
    mosaic_label: str,
    num_references: int,
    cache: DecodedCache | None,
  ):
    self._samples = samples
    self._seed = seed
    self._mosaic_label = mosaic_label
    self._num_references, self._cache = num_references, cache
    self._class_ids = index.class_ids(datasets)
    self._probs = [data.mosaic_prob for data in datasets for _ in data.test]
    self._siblings: dict[int, list[int]] = {}  # Samples of each class.
    for i, class_id in enumerate(self._class_ids):
      self._siblings.setdefault(class_id, []).append(i)
    self._normal = index.normal_images(datasets)
    if num_references:
      names = [(data, name) for data in datasets for name in data.class_names]
      for (data, name), paths in zip(names, self._normal):
        if not paths:
          raise ValueError(
            f"{data.root}: class {name!r} has no normal training image to "
            "serve as reference, which this method learns from."
          )

  def load(self, epoch: int, i: int, image_size: int) -> Row:
    class_id, label = self._class_ids[i], self._samples[i].label
    cells = mosaic.draw(
      self._siblings[class_id],
      prob=self._probs[i],
      seed=self._seed,
      epoch=epoch,
      sample=i,
    )
    shown = [self._samples[j] for j in cells or (i,)]
    if self._mosaic_label == "any":
      label = max(sample.label for sample in shown)
    row = _load(shown, label, class_id, i, image_size, self._cache)
    return row | self._references(epoch, i, image_size)

  def references(self, epoch: int, i: int) -> Int64[np.ndarray, " k"]:
    """Numbers of normal images of the sample's class, with replacement."""
    normal = self._normal[self._class_ids[i]] if self._num_references else [0]
    rng = np.random.default_rng([self._seed, epoch, i])
    return rng.integers(len(normal), size=self._num_references)

  def _references(self, epoch: int, i: int, image_size: int) -> Row:
    """The images of these numbers."""
    if not self._num_references:
      return {}
    normal = self._normal[self._class_ids[i]]
    chosen = self.references(epoch, i)
    try:
      return dict(
        references=np.stack(
          [
            preprocess.load_image(normal[j].image_path, image_size)
            for j in chosen
          ]
        )
      )
    except ValueError as error:
      return _padding(image_size, len(chosen)) | dict(error=str(error).encode())


def _load(
  shown: Sequence[index.Sample],
  label: int,
  class_id: int,
  i: int,
  image_size: int,
  cache: DecodedCache | None,
) -> Row:
  """Reads one sample, or the four of a mosaic; an error is a value, too."""
  row = _padding(image_size) | dict(label=label, class_id=class_id, index=i)
  try:
    image, mask = _pair(shown, image_size, cache)
  except ValueError as error:
    # Raised by `Batches`: TensorFlow would wrap it into pages of its own.
    return row | dict(error=str(error).encode())
  return row | dict(
    image=image,
    mask=mask,
    weight=1.0,
    has_mask=all(sample.has_mask for sample in shown),
  )


def _pair(shown, image_size, cache):
  """Image and mask; mosaics, which do not come again, are not cached."""
  if len(shown) > 1:
    images, masks = zip(*map(preprocess.open_pair, shown))
    return (
      preprocess.resize_image(mosaic.paste(images), image_size),
      preprocess.resize_mask(mosaic.paste(masks), image_size),
    )
  load = cache.load if cache else preprocess.load_pair
  return load(shown[0], image_size)


def _padding(image_size: int, num_references: int = 0) -> Row:
  shape = (image_size, image_size, 3)
  return dict(
    image=np.zeros(shape, np.uint8),
    references=np.zeros((num_references, *shape), np.uint8),
    mask=np.zeros((image_size, image_size), np.uint8),
    has_mask=False,
    label=0,
    class_id=0,
    index=-1,
    weight=0.0,
    error=b"",
  )


def _parallel(
  numbers: tf.data.Dataset,
  load: Callable[[int], Row],
  image_size: int,
  batch_size: int,
  num_references: int = 0,
) -> tf.data.Dataset:
  """Calls `load` in threads (Pillow frees the interpreter), keeps the order."""

  def call(number) -> list[np.ndarray]:
    row = load(int(number))
    return [
      np.asarray(row[key], dtype.as_numpy_dtype)
      for key, dtype in _DTYPES.items()
    ]

  @tf.autograph.experimental.do_not_convert
  def load_tf(number: tf.Tensor) -> dict[str, tf.Tensor]:
    values = tf.numpy_function(call, [number], list(_DTYPES.values()))
    row = dict(zip(_DTYPES, values))
    row["image"].set_shape((image_size, image_size, 3))
    row["mask"].set_shape((image_size, image_size))
    shape = (num_references, image_size, image_size, 3)
    row["references"].set_shape(shape)
    if not num_references:
      row.pop("references")
    return row

  return (
    numbers.map(
      load_tf, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    .batch(batch_size, drop_remainder=True)
    .prefetch(tf.data.AUTOTUNE)
  )


def _local_rows(
  samples: Sequence[index.Sample], batch_size: int, num_shards: int, shard: int
) -> range:
  """Returns the rows of each batch that are this host's."""
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
