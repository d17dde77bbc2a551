"""Batches for training and evaluation: tf.data around the Pillow loaders.

TensorFlow runs the loaders in parallel and uses no accelerator. A batch is a
dict of NumPy arrays:

  image       uint8   (b, s, s, 3)  see `ImageBackbone.normalize`
  mask        uint8   (b, s, s)     1 = anomalous
  has_mask    bool    (b,)          False: the labels of pixels are unknown
  label       int32   (b,)          0 = normal, 1 = anomalous
  class_id    int32   (b,)          position in `class_names(datasets)`
  index       int32   (b,)          position in the samples, -1: padding
  weight      float32 (b,)          0 for padding and skipped images, else 1
  references  uint8   (b, k, s, s, 3)  k normal images of the same class, if
                                       `num_references` is k > 0

The batch of a training step is a function of (seed, step), so a run resumes at
any step without reading earlier ones.
"""

import itertools
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np

from zsad_jax.datasets import augmentation as augmentation_lib
from zsad_jax.datasets import index, masks, verification
from zsad_jax.datasets import rows as rows_lib
from zsad_jax.datasets.cache import DecodedCache
from zsad_jax.runtime import stopping

# Read at import; both only suppress messages on the terminal.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
import tensorflow as tf  # noqa: E402

try:
  tf.config.set_visible_devices([], "GPU")  # Left to JAX.
except RuntimeError:
  pass  # Already initialized by the caller, who chose its devices.

_DTYPES = dict(
  image=tf.uint8,
  references=tf.uint8,
  mask=tf.uint8,
  has_mask=tf.bool,
  label=tf.int32,
  class_id=tf.int32,
  index=tf.int32,
  weight=tf.float32,
  finding=tf.int32,
  error=tf.string,
)
_ENDLESS = np.iinfo(np.int64).max


class Batches:
  """Iterator of batches.

  Attributes:
    skipped: one message for each image that could not be read so far; empty
      unless `skip_corrupt` is set.
    findings: what is suspicious about masks so far, by the number of the
      sample.
  """

  def __init__(
    self,
    dataset: tf.data.Dataset,
    *,
    skip_corrupt: bool,
    on_finding: Callable[[int, masks.Finding], None] | None = None,
  ):
    self.skipped: list[str] = []
    self.findings: dict[int, masks.Finding] = {}
    self._on_finding = on_finding
    iterator = cast(Iterator[dict[str, Any]], dataset.as_numpy_iterator())
    self._open = [iterator]
    # Its threads call Python and, left running, block the interpreter's exit.
    weakref.finalize(self, self._open.clear)
    self._skip_corrupt = skip_corrupt

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    with stopping.unreplaced():
      batch = next(self._open[0])
    for error in filter(None, batch.pop("error")):
      message = error.decode(errors="surrogateescape")
      if not self._skip_corrupt:
        raise ValueError(message)
      if message not in self.skipped:
        self.skipped.append(message)
    found = batch.pop("finding")
    for i in np.flatnonzero(found):
      number, finding = int(batch["index"][i]), masks.Finding(int(found[i]))
      if self._on_finding and number not in self.findings:
        self._on_finding(number, finding)
      self.findings[number] = finding
    return batch


def class_names(datasets: Sequence[index.Dataset]) -> tuple[str, ...]:
  """Return the classes of all data sets in the order of `class_id`.

  Equal names of two data sets remain two classes.
  """
  return tuple(name for data in datasets for name in data.class_names)


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
  """Return the training steps after which every image was used once."""
  return rows_lib.Order(num_samples, batch_size, seed=0).steps_per_epoch


def train_batches(
  datasets: Sequence[index.Dataset],
  *,
  image_size: int,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  augmentation: augmentation_lib.Augmentation = augmentation_lib.NONE,
  num_references: int = 0,
  skip_corrupt: bool = False,
  num_devices: int = 1,
  num_shards: int = 1,
  shard: int = 0,
  cache: DecodedCache | None = None,
) -> Batches:
  """Yield batches of the test images of `datasets` without end.

  Epoch e is the permutation of all images drawn from (seed, e). Where the
  batch size does not divide their number, the last batch of an epoch is
  padded with black images of weight 0 (the papers' last batch is smaller). So
  is every batch whose size is no multiple of the number of devices; its
  images, and their order, do not depend on that number.

  Args:
    datasets: the auxiliary data sets; each has its own probability of mosaics.
    image_size: side of the images in pixels.
    batch_size: images per step, over all shards.
    seed: of the order and of the augmentation, not negative.
    start_step: first step to yield, counted from 0.
    augmentation: random changes of the images.
    num_references: normal images with each image, see `references` above.
    skip_corrupt: give weight 0 to an image that cannot be read, instead of
      stopping.
    num_devices: devices of all shards; each gets equally many rows, see
      `rows.spread`.
    num_shards: hosts that share a step; each reads its slice of the batch.
    shard: this host, from 0.
    cache: of decoded images; None decodes every image when it is used.

  Raises:
    ValueError: an argument is out of range or, while iterating, an image or a
      mask cannot be read.
  """
  samples = tuple(sample for data in datasets for sample in data.test)
  spread = rows_lib.spread(batch_size, num_devices)
  rows = rows_lib.of_shard(samples, len(spread), num_shards, shard)
  if seed < 0 or start_step < 0:
    raise ValueError(
      "seed and start_step must not be negative, found "
      f"{seed} and {start_step}."
    )
  order = rows_lib.Order(len(samples), batch_size, seed)
  source = rows_lib.TrainSource(
    datasets,
    samples,
    seed=seed,
    augmentation=augmentation,
    num_references=num_references,
    cache=cache,
  )

  def load(number: int) -> rows_lib.Row:
    step, row = divmod(number, len(rows))
    epoch, i = order(step, spread[rows[row]])
    if i is None:
      return rows_lib.padding(image_size, num_references=num_references)
    return source.load(epoch, i, image_size)

  numbers = tf.data.Dataset.range(start_step * len(rows), _ENDLESS)
  return Batches(
    _parallel(numbers, load, image_size, len(rows), num_references),
    skip_corrupt=skip_corrupt,
    on_finding=verification.MaskLog(datasets),
  )


def train_numbers(
  datasets: Sequence[index.Dataset],
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  num_references: int = 0,
  num_devices: int = 1,
  num_shards: int = 1,
  shard: int = 0,
) -> Iterator[dict[str, np.ndarray]]:
  """Yield the numbers of the images that `train_batches` reads.

  Nothing is drawn but references. Arguments are those of `train_batches`.

  Yields:
    index int32 (b,), -1 for padding; references int32 (b, k), positions in
    `index.normal_images` of the sample's class.
  """
  samples = tuple(sample for data in datasets for sample in data.test)
  spread = rows_lib.spread(batch_size, num_devices)
  rows = rows_lib.of_shard(samples, len(spread), num_shards, shard)
  order = rows_lib.Order(len(samples), batch_size, seed)
  source = rows_lib.TrainSource(
    datasets, samples, seed=seed, num_references=num_references
  )
  for step in itertools.count(start_step):
    places = [order(step, spread[row]) for row in rows]
    chosen = [
      # Padding has no class: the first reference of any class exists.
      [0] * num_references if i is None else source.references(epoch, i)
      for epoch, i in places
    ]
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
  """Yield every sample once, in order.

  The last batch is padded with black images of weight 0 and index -1, so that
  all have one shape and every shard the same number of batches.

  Args:
    samples: for example `dataset.test`.
    class_names: the list that `class_id` refers to.
    image_size: side of the images in pixels.
    batch_size: images per batch, over all shards.
    skip_corrupt: see `train_batches`.
    num_shards: hosts that share a batch; each reads its slice of it.
    shard: this host, from 0.
    cache: see `train_batches`.
    workers: threads that decode; None lets tf.data choose.

  Raises:
    ValueError: an argument is out of range, a sample's class is not in
      `class_names` or, while iterating, an image or a mask cannot be read.
  """
  rows = rows_lib.of_shard(samples, batch_size, num_shards, shard)
  unknown = {sample.class_name for sample in samples} - set(class_names)
  if unknown:
    raise ValueError(
      f"class_names: {sorted(unknown)} occur in the samples but "
      f"not in {list(class_names)}."
    )

  def load(number: int) -> rows_lib.Row:
    batch, row = divmod(number, len(rows))
    i = batch * batch_size + rows[row]
    if i >= len(samples):
      return rows_lib.padding(image_size)
    class_id = class_names.index(samples[i].class_name)
    return rows_lib.load(
      [samples[i]],
      label=samples[i].label,
      class_id=class_id,
      number=i,
      image_size=image_size,
      cache=cache,
    )

  num_batches = -(-len(samples) // batch_size)
  numbers = tf.data.Dataset.range(num_batches * len(rows))
  dataset = _parallel(numbers, load, image_size, len(rows))
  if workers:
    options = tf.data.Options()
    options.threading.private_threadpool_size = workers
    dataset = dataset.with_options(options)
  return Batches(dataset, skip_corrupt=skip_corrupt)


def _parallel(
  numbers: tf.data.Dataset,
  load: Callable[[int], rows_lib.Row],
  image_size: int,
  batch_size: int,
  num_references: int = 0,
) -> tf.data.Dataset:
  """Call `load` in threads and keep the order; Pillow releases the GIL."""

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
