"""Frozen features for training, computed once instead of at every step.

What `Method.encode` returns depends on no trained parameter. Where an image is
always shown the same way, one pass computes it for all images and references;
a step then reads rows of a store. `config.features`:

  storage    auto     device if they fit there, else host, else disk
           device   split over the devices
           host     in memory
           disk     mapped files, which later runs use again
           none     encode at each step
  dtype    float32 (exact) or bfloat16 (half the room)
  folder   for "disk"; "" for one in the package's cache
"""

import functools
import hashlib
import pathlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.datasets import cache, index, pipeline
from zsad_jax.inference import predictor
from zsad_jax.runtime import distributed, environment
from zsad_jax.training import feature_store

STORAGES = ("auto", "device", "host", "disk", "none")
DTYPES = ("float32", "bfloat16")
_SHARE = 0.5  # Of the free memory that features may take.
_PATIENCE = 30.0  # Seconds between two lines about how far the pass is.
_TRUTH = ("has_mask", "label", "weight")  # Kept as they are, with the mask.


def make(config, method, backbone, mesh, datasets, skipped: list[str]):
  """Returns the features of the auxiliary images, or None.

  Args:
    config: see configs/common.py.
    method: whose `encode`.
    backbone: frozen CLIP, on the devices.
    mesh: devices.
    datasets: the auxiliary data sets.
    skipped: gets a message for each image that was left out.

  Returns:
    None where each step has to encode: because it was asked for, or because
    mosaics show images differently each time.

  Raises:
    OSError: there is no room on the disk.
    ValueError: a setting is unknown or cannot be met, an image cannot be read.
  """
  storage, dtype = config.features.storage, config.features.dtype
  fields = (("storage", storage, STORAGES), ("dtype", dtype, DTYPES))
  for name, value, known in fields:
    if value not in known:
      raise ValueError(
        f"config.features.{name} is one of {', '.join(known)}, got {value!r}."
      )
  mosaics = any(data.mosaic_prob for data in datasets)
  if mosaics and storage not in ("auto", "none"):
    raise ValueError(
      f'config.features.storage is "{storage}", but mosaics show images '
      "differently each time: set config.mosaic_prob to 0, or the storage to "
      '"none".'
    )
  if mosaics or storage == "none":
    return None
  features = Features(config, method, backbone, mesh, datasets)
  return features if features.compute(skipped) else None


class Features:
  """Rows of features and masks for all images that training reads.

  Images come first; then, for a method that learns from references, the normal
  images of all classes.

  Args: see `make`.
  """

  def __init__(self, config, method, backbone, mesh, datasets):
    self._config, self._method, self._datasets = config, method, datasets
    self._backbone, self._mesh = backbone, mesh
    self._batch_size = predictor.round_up(config.eval_batch_size)
    normal = index.normal_images(datasets) if method.num_references else []
    self._samples = [sample for data in datasets for sample in data.test]
    self._images = len(self._samples)
    self._samples += sum(normal, [])
    counts = [len(samples) for samples in normal]
    self._first = self._images + np.cumsum([0, *counts])  # Of each class.
    ids = index.class_ids(datasets)
    ids += [i for i, count in enumerate(counts) for _ in range(count)]
    self._class_ids = np.array(ids, np.int32)

    stored = jnp.dtype(config.features.dtype)
    shrink = lambda x: x.astype(stored) if x.dtype == jnp.float32 else x

    @jax.jit
    def encode(backbone, batch):
      features = dict(predictor.encode(method, backbone, batch))
      if "pixels" in features:  # A method that looks again, with prompts.
        features["pixels"] = batch["image"]  # Bytes: a quarter of the room.
      return jax.tree.map(shrink, features)

    self._encode = encode

  def compute(self, skipped: list[str]) -> bool:
    """Runs the pass; False, with a line printed, where there is no room."""
    row = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
      jax.eval_shape(self._encode, self._backbone, self._nothing()),
    )
    count = len(self._samples)
    room = count * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(row))
    asked = self._config.features.storage
    storage = _choose_storage(room) if asked == "auto" else asked
    if jax.process_count() > 1 and storage != "device":
      if asked != "auto":
        raise ValueError(
          f'config.features.storage is "{asked}", but processes do not share '
          'their memory and files: use "auto", "device" or "none".'
        )
      print(
        f"Features take {room / 1e9:.2f} GB: too much for the devices, and "
        "processes do not share their memory; each step encodes its images.",
        flush=True,
      )
      return False
    where = self._open(storage, row, count)
    references = count - self._images
    beside = f" and {references} references" if references else ""
    print(
      f"Features of {self._images} images{beside}: {room / 1e9:.2f} GB in "
      f"{self._config.features.dtype}, {where}",
      flush=True,
    )
    if storage == "disk":
      with feature_store.locked(self._folder):
        self._fill(skipped)
    else:
      self._fill(skipped)
    return True

  def _nothing(self):
    size = self._config.image_size
    shape = (self._batch_size, size, size, 3)
    return {
      "image": jax.ShapeDtypeStruct(shape, jnp.uint8),
      "class_id": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }

  def _open(self, storage, row, count):
    """Opens the stores; returns where they are, in words."""
    size = self._config.image_size
    shape = jax.ShapeDtypeStruct
    truth = {
      "mask": shape((-(-size * size // 8),), np.uint8),
      "has_mask": shape((), bool),
      "label": shape((), np.int32),
      "weight": shape((), np.float32),
    }
    if storage == "disk":
      folder = self._folder
      with feature_store.locked(folder):
        self._rows = feature_store.Disk(row, count, folder / "features")
        self._truth = feature_store.Disk(truth, count, folder / "truth")
      return f"in {folder}"
    self._truth = feature_store.Memory(truth, count)
    if storage == "device":
      self._rows = feature_store.Device(
        row, count, self._mesh, self._batch_size
      )
      return "on the devices"
    self._rows = feature_store.Memory(row, count)
    return "in memory"

  @functools.cached_property
  def _folder(self):
    """A folder for what is computed, from what and by which weights."""
    digest = hashlib.sha256()
    lowered = self._encode.lower(self._backbone, self._nothing())
    digest.update(lowered.as_text().encode())
    for leaf in jax.tree.leaves(self._backbone):
      digest.update(np.ascontiguousarray(leaf))
    for sample in self._samples:
      digest.update(cache.facts(sample, self._config.image_size).encode())
    parent = self._config.features.folder or (
      pathlib.Path(environment.default_cache_dir()) / "features"
    )
    return pathlib.Path(parent) / digest.hexdigest()[:32]

  def _fill(self, skipped):
    missing = sorted({*self._rows.missing(), *self._truth.missing()})
    if not missing:
      return
    chosen = [self._samples[i] for i in missing]
    config, missing = self._config, np.array(missing)
    batches = pipeline.eval_batches(
      chosen,
      class_names=pipeline.class_names(self._datasets),
      image_size=config.image_size,
      batch_size=self._batch_size,
      skip_corrupt=config.skip_corrupt,
      **distributed.shard(),
      cache=cache.open_cache(config.decoded_cache),
    )
    watch = _Watch(len(missing))
    for batch in batches:
      truth = {key: batch[key] for key in _TRUTH}
      truth["mask"] = _packed(batch["mask"])
      truth["index"] = batch["index"]
      truth = distributed.all_gather(truth)
      places = truth.pop("index")
      numbers = missing[places[places >= 0]]
      keep = functools.partial(_lead, len(numbers))
      shown = {"image": batch["image"], "class_id": self._ids(batch, missing)}
      rows = self._encode(
        self._backbone, predictor.put_batch(shown, self._mesh)
      )
      if not isinstance(self._rows, feature_store.Device):
        rows = jax.tree.map(keep, rows)
      self._rows.write(numbers, rows)
      truth = jax.tree.map(keep, truth)
      # An image that could not be read is tried again by the next run.
      self._truth.write(numbers, truth, done=truth["weight"] > 0)
      watch.look(int(places.max()) + 1)
    skipped += batches.skipped

  def _ids(self, batch, missing):
    """Class of each row: names may occur in two data sets."""
    return self._class_ids[missing[np.maximum(batch["index"], 0)]]

  def batches(self, *, start_step: int) -> Iterator[dict[str, object]]:
    """Yields what a training step reads, without end.

    The keys are those of `pipeline.train_batches`, but "features" and, for a
    method that learns from references, "reference_features" (b, k, ...) stand
    for the images.
    """
    config, references = self._config, self._method.num_references
    steps = pipeline.train_numbers(
      self._datasets,
      batch_size=config.batch_size,
      seed=config.seed,
      start_step=start_step,
      num_references=references,
      **distributed.shard(),
    )
    for chosen in steps:
      numbers = chosen["index"]
      batch = self._truth.read(numbers)
      batch["mask"] = _unpacked(batch["mask"], config.image_size)
      batch["weight"] = batch["weight"] * (numbers >= 0)
      batch["class_id"] = self._class_ids[numbers]
      batch["features"] = self._rows.read(numbers)
      if references:
        places = self._first[batch["class_id"]][:, None] + chosen["references"]
        batch["reference_features"] = self._rows.read(places)
        readable = self._truth.read(places)["weight"].min(axis=1)
        batch["weight"] = batch["weight"] * readable
      yield batch


def _choose_storage(room: int) -> str:
  """Where this many bytes fit."""
  stats = jax.local_devices()[0].memory_stats()
  if stats is None:  # A CPU's memory is the host's.
    free = distributed.free_memory() / jax.local_device_count()
    near = "device" if jax.process_count() > 1 else "host"
  else:
    free, near = stats["bytes_limit"] - stats["bytes_in_use"], "device"
  if room / jax.device_count() <= _SHARE * free:
    return near
  return "host" if room <= _SHARE * distributed.free_memory() else "disk"


def _lead(count, x):
  return np.asarray(x)[:count]


def _packed(masks):
  return np.packbits(masks.reshape(len(masks), -1), axis=1)


def _unpacked(packed, size):
  flat = np.unpackbits(packed, axis=1, count=size * size)
  return flat.reshape(-1, size, size)


class _Watch:
  """Says now and then how far a pass is."""

  def __init__(self, total: int):
    self._total, self._start = total, time.perf_counter()
    self._said = self._start

  def look(self, done: int) -> None:
    now = time.perf_counter()
    if now - self._said < _PATIENCE:
      return
    self._said = now
    left = (now - self._start) / done * (self._total - done)
    print(f"  {done} of {self._total}, {left / 60:.1f} min left", flush=True)
