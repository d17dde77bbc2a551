"""Frozen backbone features for training, precomputed and cached.

The result of `Method.encode` depends on no trainable parameter. Unless mosaics
change the images at random, one pass computes it for all images and
references; a training step then reads rows of a store. `config.features`:

  storage  auto     device if they fit there, else host, else disk
           device   split over the devices
           host     in memory
           disk     memory-mapped files, which later runs reuse
           none     encode at each step
  dtype    float32 (exact) or bfloat16 (half the memory)
  folder   for "disk"; "" for one in the package's cache
"""

import functools
import hashlib
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax import types
from zsad_jax.datasets import cache, index, pipeline, verification
from zsad_jax.inference import predictor
from zsad_jax.runtime import distributed, environment, progress, stopping
from zsad_jax.training import feature_store, storage_choice

STORAGES = ("auto", "device", "host", "disk", "none")
DTYPES = ("float32", "bfloat16")
_LABELS = ("has_mask", "label", "weight")  # Stored unchanged, with the mask.

_log = logging.getLogger(__name__)


def make(
  config: types.Config,
  method: types.Method,
  backbone: types.ImageBackbone,
  mesh: jax.sharding.Mesh,
  datasets: Sequence[index.Dataset],
) -> "FeatureCache | None":
  """Return a cache of the auxiliary images' features, still empty.

  Args:
    config: see configs/common.py.
    method: encodes the images.
    backbone: frozen, replicated on the devices.
    mesh: devices.
    datasets: the auxiliary data sets.

  Returns:
    None where each step has to encode its images: because the configuration
    asks for it, because mosaics or augmentation change the images at random,
    or because no storage has room.

  Raises:
    ValueError: a setting is unknown or cannot be met.
  """
  storage, dtype = config.features.storage, config.features.dtype
  fields = (("storage", storage, STORAGES), ("dtype", dtype, DTYPES))
  for name, value, known in fields:
    if value not in known:
      raise ValueError(
        f"config.features.{name} is one of {', '.join(known)}, got {value!r}."
      )
  changes = {
    "mosaics": ("mosaic_prob", "0", any(d.mosaic_prob for d in datasets)),
    "augmentations": ("augmentation", '"none"', config.augmentation != "none"),
  }
  for name, (field, off, applied) in changes.items():
    if applied and storage not in ("auto", "none"):
      raise ValueError(
        f'config.features.storage is "{storage}", but {name} change the '
        f"images at random: set config.{field} to {off}, or the storage to "
        '"none".'
      )
  if storage == "none" or any(applied for *_, applied in changes.values()):
    return None
  features = FeatureCache(config, method, backbone, mesh, datasets)
  return None if features.storage == "none" else features


class FeatureCache:
  """Rows of features and masks for all images that training reads.

  The images come first, followed by the normal images of all classes for a
  method that learns from references.

  Args:
    config, method, backbone, mesh, datasets: see `make`.

  Attributes:
    storage: where the features are kept; "none" where no storage has room.
    skipped: one message for each image that could not be read.
  """

  _features: feature_store.Store
  _labels: feature_store.Store

  def __init__(
    self,
    config: types.Config,
    method: types.Method,
    backbone: types.ImageBackbone,
    mesh: jax.sharding.Mesh,
    datasets: Sequence[index.Dataset],
  ) -> None:
    self._config, self._method, self._datasets = config, method, datasets
    self._backbone, self._mesh = backbone, mesh
    self._batch_size = predictor.round_up(config.eval_batch_size)
    normal = index.normal_images(datasets) if method.num_references else []
    self._samples = [sample for data in datasets for sample in data.test]
    self._num_images = len(self._samples)
    self._samples += sum(normal, [])
    counts = [len(samples) for samples in normal]
    # Row of the first reference of each class.
    self._first_reference = self._num_images + np.cumsum([0, *counts])
    ids = index.class_ids(datasets)
    ids += [i for i, count in enumerate(counts) for _ in range(count)]
    self._class_ids = np.array(ids, np.int32)
    self._encode = encoder(method, jnp.dtype(config.features.dtype))
    self._row = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
      jax.eval_shape(self._encode, backbone, self._empty_batch()),
    )
    self._computed = False
    self.skipped: list[str] = []
    self.storage = self._choose_storage()

  @property
  def num_bytes(self) -> int:
    """Bytes of all features."""
    row = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self._row))
    return len(self._samples) * row

  def compute(self) -> None:
    """Compute the features that the storage does not hold yet.

    Raises:
      OSError: the disk is full.
      ValueError: an image cannot be read.
    """
    place = self._open_stores()
    references = len(self._samples) - self._num_images
    more = f" and {references} references" if references else ""
    _log.info(
      f"Features of {self._num_images} images{more}: "
      f"{self.num_bytes / 1e9:.2f} GB in {self._config.features.dtype}, {place}"
    )
    if self.storage == "disk":
      with feature_store.locked(self._folder):
        try:
          self._fill()
        except stopping.Stopped as error:
          error.add_note(f"The features so far are kept in {self._folder}.")
          raise
    else:
      self._fill()
    self._computed = True

  def batches(self, *, start_step: int) -> Iterator[dict[str, Any]]:
    """Yield one batch for each training step, without end.

    The features are computed before the first batch. The keys are those of
    `pipeline.train_batches`, with "features" and, for a method that learns
    from references, "reference_features" (b, k, ...) instead of the images.

    Args:
      start_step: first step, counted from 0.
    """
    if not self._computed:
      self.compute()
    config, references = self._config, self._method.num_references
    steps = pipeline.train_numbers(
      self._datasets,
      batch_size=config.batch_size,
      seed=config.seed,
      start_step=start_step,
      num_references=references,
      num_devices=jax.device_count(),
      **distributed.shard(),
    )
    for chosen in steps:
      numbers = chosen["index"]
      batch = self._labels.read(numbers)
      batch["mask"] = _unpack(batch["mask"], config.image_size)
      batch["weight"] = batch["weight"] * (numbers >= 0)
      batch["class_id"] = self._class_ids[numbers]
      batch["features"] = self._features.read(numbers)
      if references:
        first = self._first_reference[batch["class_id"]]
        rows = first[:, None] + chosen["references"]
        batch["reference_features"] = self._features.read(rows)
        readable = self._labels.read(rows)["weight"].min(axis=1)
        batch["weight"] = batch["weight"] * readable
      yield batch

  def _choose_storage(self) -> str:
    """Return the storage to use; "none", with a message, without room.

    Raises:
      ValueError: several processes cannot use the storage that is asked for.
    """
    wanted = self._config.features.storage
    storage = wanted
    if wanted == "auto":
      storage = storage_choice.nearest_storage(
        self.num_bytes, self._on_devices, self._reads
      )
    if jax.process_count() == 1 or storage == "device":
      return storage
    if wanted != "auto":
      raise ValueError(
        f'config.features.storage is "{wanted}", but processes do not share '
        'their memory and files: use "auto", "device" or "none".'
      )
    _log.info(
      f"Features take {self.num_bytes / 1e9:.2f} GB: too much for the devices, "
      "and processes do not share their memory; each step encodes its images."
    )
    return "none"

  @functools.cached_property
  def _on_devices(self) -> feature_store.Device:
    """Store on the devices; it takes no memory before it is written."""
    return feature_store.Device(
      self._row, len(self._samples), self._mesh, self._batch_size
    )

  @property
  def _reads(self) -> list[tuple[int, ...]]:
    """Shapes of the numbers that a training step reads, of all processes."""
    size = predictor.round_up(self._config.batch_size)
    references = self._method.num_references
    return [(size,), (size, references)] if references else [(size,)]

  def _empty_batch(self):
    """Return shapes of the batch that the pass encodes."""
    size = self._config.image_size
    shape = (self._batch_size, size, size, 3)
    return {
      "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
      "class_id": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }

  def _open_stores(self) -> str:
    """Open the stores of features and labels; return where they are."""
    size, count = self._config.image_size, len(self._samples)
    shape = jax.ShapeDtypeStruct
    labels = {
      "mask": shape((-(-size * size // 8),), np.uint8),
      "has_mask": shape((), bool),
      "label": shape((), np.int32),
      "weight": shape((), np.float32),
    }
    if self.storage == "disk":
      folder = self._folder
      with feature_store.locked(folder):
        self._labels = feature_store.Disk(labels, count, folder / "truth")
        self._features = feature_store.Disk(
          self._row, count, folder / "features"
        )
      return f"in {folder}"
    self._labels = feature_store.Memory(labels, count)
    if self.storage == "device":
      self._features = self._on_devices
      return "on the devices"
    self._features = feature_store.Memory(self._row, count)
    return "in memory"

  @functools.cached_property
  def _folder(self) -> pathlib.Path:
    """Folder named by a digest of the program, the weights and the images."""
    digest = hashlib.sha256()
    lowered = self._encode.lower(self._backbone, self._empty_batch())
    digest.update(lowered.as_text().encode())
    for leaf in jax.tree.leaves(self._backbone):
      digest.update(np.asarray(leaf).tobytes())
    for sample in self._samples:
      digest.update(
        cache.facts(sample, self._config.image_size).encode(
          errors="surrogatepass"
        )
      )
    parent = self._config.features.folder or (
      pathlib.Path(environment.default_cache_dir()) / "features"
    )
    return pathlib.Path(parent) / digest.hexdigest()[:32]

  def _fill(self) -> None:
    """Encode the images whose rows are missing."""
    missing = np.array(
      sorted({*self._features.missing(), *self._labels.missing()}), int
    )
    if not missing.size:
      return
    config = self._config
    batches = pipeline.eval_batches(
      [self._samples[i] for i in missing],
      class_names=pipeline.class_names(self._datasets),
      image_size=config.image_size,
      batch_size=self._batch_size,
      skip_corrupt=config.skip_corrupt,
      **distributed.shard(),
      cache=cache.open_cache(config.decoded_cache),
    )
    reported = progress.Progress("Features", len(missing))
    for batch in batches:
      stopping.sync_point()
      reported.update(self._write(batch, missing))
    self.skipped += batches.skipped
    log_mask = verification.MaskLog(self._datasets)
    for i, finding in batches.findings.items():
      log_mask(int(missing[i]), finding)

  def _write(self, batch, missing: np.ndarray) -> int:
    """Encode and store a batch; return how many missing rows are done.

    Args:
      batch: this process's rows; "index" refers to `missing`.
      missing: rows of the stores.
    """
    labels = {key: batch[key] for key in _LABELS}
    labels["mask"] = _pack(batch["mask"])
    labels["index"] = batch["index"]
    labels = distributed.all_gather(labels)
    positions = labels.pop("index")
    numbers = missing[positions[positions >= 0]]
    # Names of classes may occur in two data sets: ids are those of all.
    ids = self._class_ids[missing[np.maximum(batch["index"], 0)]]
    encoded = self._encode(
      self._backbone,
      predictor.put_batch(
        {"image": batch["image"], "class_id": ids}, self._mesh
      ),
    )
    without_padding = lambda x: np.asarray(x)[: len(numbers)]
    if not isinstance(self._features, feature_store.Device):
      encoded = jax.tree.map(without_padding, encoded)
    self._features.write(numbers, encoded)
    labels = jax.tree.map(without_padding, labels)
    # The next run tries again to read an image that could not be read.
    self._labels.write(numbers, labels, done=labels["weight"] > 0)
    return int(positions.max()) + 1


@functools.cache  # A program for each method, not for each cache.
def encoder(
  method: types.Method, dtype: np.dtype
) -> Callable[..., types.Features]:
  """Return the compiled function (backbone, batch) -> stored features."""
  cast = lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x

  @jax.jit
  def encode(backbone, batch):
    features = dict(predictor.encode(method, backbone, batch))
    if "pixels" in features:  # A method that encodes again, with prompts.
      features["pixels"] = batch["image"]  # Bytes: a quarter of the memory.
    return jax.tree.map(cast, features)

  return encode


def _pack(masks: np.ndarray) -> np.ndarray:
  """Pack masks (b, h, w) into bits, (b, ceil(h * w / 8)) uint8."""
  return np.packbits(masks.reshape(len(masks), -1), axis=1)


def _unpack(packed: np.ndarray, size: int) -> np.ndarray:
  """Unpack masks (b, size, size)."""
  flat = np.unpackbits(packed, axis=1, count=size * size)
  return flat.reshape(-1, size, size)
