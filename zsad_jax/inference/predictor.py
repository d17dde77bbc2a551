"""Compiled inference: features, anomaly maps and scores of image batches."""

import copy
import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax import types
from zsad_jax.layers import coreset as coreset_lib
from zsad_jax.layers import kernels, smoothing
from zsad_jax.runtime import distributed


def round_up(batch_size: int) -> int:
  """Return the smallest multiple of the device count >= `batch_size`."""
  devices = jax.device_count()
  return -(-batch_size // devices) * devices


def put_batch(
  batch: Mapping[str, Any], mesh: jax.sharding.Mesh
) -> dict[str, Any]:
  """Shard this process's slice of a batch over its devices.

  Arrays that are on the devices already are returned unchanged.

  Raises:
    ValueError: the mesh is not in process order.
  """
  split = distributed.row_sharding(mesh)

  def put(x):
    if isinstance(x, jax.Array):
      return x
    return jax.make_array_from_process_local_data(split, x)

  return jax.tree.map(put, dict(batch))


def encode(
  method: types.DetectionModel,
  backbone: types.ImageBackbone,
  batch: types.Batch,
) -> types.Features:
  """Compute the features of a batch; runs inside jit.

  Args:
    method: a `types.FewShotDetector` where the batch has references.
    backbone: frozen CLIP.
    batch: either "image" uint8 (b, s, s, 3), "class_id" (b,) and optionally
      "references" uint8 (b, k, s, s, 3), k for each image; or precomputed
      "features" and optionally "reference_features".

  Returns:
    The method's features; with references also "memory_bank".
  """
  if "features" in batch:
    features = _widen(backbone, batch["features"])
    if "reference_features" not in batch:
      return features
    references = _widen(backbone, batch["reference_features"])
    return _with_memory_bank(method, features, references)
  images = backbone.normalize(batch["image"])
  features = method.encode(backbone, {**batch, "image": images})
  if "references" not in batch:
    return features
  b, k, *shape = batch["references"].shape
  flat = method.encode(
    backbone,
    {
      "image": backbone.normalize(batch["references"].reshape(b * k, *shape)),
      "class_id": jnp.repeat(batch["class_id"], k),
    },
  )
  references = jax.tree.map(lambda x: x.reshape(b, k, *x.shape[1:]), flat)
  return _with_memory_bank(method, features, references)


def _with_memory_bank(method, features, references):
  """Add the memory bank of the features of references to the features."""
  return {**features, "memory_bank": method.build_memory_bank(references)}


def _widen(backbone, features):
  """Convert stored features to float32, and stored images to pixels."""

  def widen(x):
    if x.dtype == jnp.uint8:  # Images.
      return backbone.normalize(x)
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x

  return jax.tree.map(widen, features)


def prediction(
  method: types.DetectionModel,
  mesh: jax.sharding.Mesh,
  *,
  smooth_sigma: float = 0.0,
) -> Callable[..., list[dict[str, jax.Array]]]:
  """Return the compiled prediction from features; see `Predictor.predict`.

  Args:
    method: the method.
    mesh: devices.
    smooth_sigma: see `Predictor`.

  Returns:
    A function of params, stats, the backbone, the result of `method.prepare`,
    features and a tuple of memory banks.
  """
  fuses = isinstance(method, types.FusesZeroShot)
  return jax.jit(
    functools.partial(predict, method, fuses, smooth_sigma),
    out_shardings=distributed.row_sharding(mesh),
  )


class Predictor:
  """Anomaly maps and scores of batches, for one set of class names."""

  def __init__(
    self,
    method: types.DetectionModel,
    backbone: types.ImageBackbone,
    class_names: Sequence[str],
    mesh: jax.sharding.Mesh,
    *,
    smooth_sigma: float = 0.0,
    coreset: coreset_lib.Coreset | None = None,
  ):
    """Prepare the class names and define the compiled functions.

    Args:
      method: the method.
      backbone: frozen CLIP.
      class_names: names that `class_id` refers to, as used in text prompts.
      mesh: devices.
      smooth_sigma: standard deviation in pixels of the Gaussian that smooths
        maps, where `kernels.smooths_maps()`.
      coreset: share of memory banks that is kept; None for all.
    """
    self._method = method
    self._fuses = isinstance(method, types.FusesZeroShot)
    self._mesh = mesh
    self._local_backbone = backbone
    self._backbone, self._aux = distributed.replicate(
      (backbone, method.prepare(backbone, class_names)), mesh
    )
    self._encode = jax.jit(functools.partial(encode, method))
    self._build_memory_bank = jax.jit(
      functools.partial(shared_memory_bank, method, coreset=coreset)
    )
    self._predict = prediction(method, mesh, smooth_sigma=smooth_sigma)

  def with_class_names(self, class_names: Sequence[str]) -> "Predictor":
    """Return a predictor for other class names, with the same programs."""
    other = copy.copy(self)
    aux = self._method.prepare(self._local_backbone, class_names)
    other._aux = distributed.replicate(aux, self._mesh)
    return other

  def encode(self, batch: Mapping[str, np.ndarray]) -> types.Features:
    """Return the features of a batch of the pipeline, on the devices.

    Args:
      batch: this process's part of "image" uint8 (b, s, s, 3) and "class_id"
        int32 (b,); b is a multiple of the number of devices.
    """
    needed = {k: batch[k] for k in ("image", "class_id")}
    return self._encode(self._backbone, put_batch(needed, self._mesh))

  def build_memory_bank(
    self, images: np.ndarray, class_id: int, *, batch_size: int
  ) -> Any:
    """Return the memory bank of k references of one class, on all devices.

    Args:
      images: uint8 (k, s, s, 3).
      class_id: class of the references.
      batch_size: images per call.
    """
    batch_size = round_up(min(batch_size, len(images)))
    chunks = (
      images[first : first + batch_size]
      for first in range(0, len(images), batch_size)
    )
    return self.build_memory_bank_of(chunks, class_id, batch_size=batch_size)

  def build_memory_bank_of(
    self, chunks: Iterable[np.ndarray], class_id: int, *, batch_size: int
  ) -> Any:
    """Return the memory bank of references that come in batches.

    Args:
      chunks: uint8 (n, s, s, 3), n from 1 to `batch_size`.
      class_id: class of the references.
      batch_size: images per call, a multiple of the number of devices.
    """
    parts = []
    if isinstance(self._method, types.AugmentsReferences):
      chunks = _split(map(self._method.augment_references, chunks), batch_size)
    for chunk in chunks:
      padding = [(0, batch_size - len(chunk)), (0, 0), (0, 0), (0, 0)]
      batch = {
        "image": np.pad(chunk, padding),
        "class_id": np.full(batch_size, class_id, np.int32),
      }
      found = distributed.all_gather(
        self.encode(distributed.local_slice(batch))
      )
      rows = slice(len(chunk))
      parts.append(jax.tree.map(operator.itemgetter(rows), found))
    features = jax.tree.map(lambda *xs: np.concatenate(xs), *parts)
    return distributed.replicate(self._build_memory_bank(features), self._mesh)

  def predict(
    self,
    params: Any,
    stats: Any,
    features: types.Features,
    memory_banks: Sequence[Any] = (None,),
  ) -> list[dict[str, jax.Array]]:
    """Predict from features, once for each memory bank.

    Args:
      params: trained parameters.
      stats: running statistics.
      features: returned by `encode`.
      memory_banks: returned by `build_memory_bank`; None for zero-shot.

    Returns:
      For each memory bank: "anomaly_map" (b, s, s) and "pred_score" (b,),
      float32, on the devices, sharded as the batch was.
    """
    # No copy if they are on the devices already.
    params, stats = distributed.replicate((params, stats), self._mesh)
    # In one program if they share the zero-shot prediction, else one for each.
    groups = [memory_banks] if self._fuses else [(m,) for m in memory_banks]
    results = [
      self._predict(
        params, stats, self._backbone, self._aux, features, tuple(group)
      )
      for group in groups
    ]
    return sum(results, [])


def _split(chunks, batch_size):
  """Yield parts of at most `batch_size` images of each chunk."""
  for chunk in chunks:
    for first in range(0, len(chunk), batch_size):
      yield chunk[first : first + batch_size]


def shared_memory_bank(
  method: Any,
  features: types.Features,
  coreset: coreset_lib.Coreset | None = None,
) -> Any:
  """Build the memory bank that all images share; runs inside jit.

  Args:
    method: a `types.FewShotDetector`.
    features: of the references, every leaf (shots, ...).
    coreset: share of the memory bank that is kept; None for all.
  """
  bank = method.build_memory_bank(jax.tree.map(lambda x: x[None], features))
  return coreset.reduce(bank) if coreset else bank


def predict(
  method: Any,
  fuses: bool,
  smooth_sigma: float,
  params: Any,
  stats: Any,
  backbone: Any,
  aux: Any,
  features: types.Features,
  banks: Sequence[Any],
) -> list[dict[str, jax.Array]]:
  """Predict for each memory bank; runs inside jit.

  Args:
    method: the method.
    fuses: whether few-shot predictions extend the zero-shot one.
    smooth_sigma: see `Predictor`.
    params: trained parameters.
    stats: running statistics.
    backbone: frozen CLIP.
    aux: returned by `method.prepare`.
    features: returned by `encode`.
    banks: memory banks; None for zero-shot.

  Returns:
    For each memory bank: see `Predictor.predict`.
  """
  run = lambda f: method.predict(params, stats, backbone, aux, f)
  zero_shot: Any = None
  if fuses or any(bank is None for bank in banks):
    zero_shot = run(features)

  def few_shot(bank):
    given = {**features, "memory_bank": bank}
    return (
      method.fuse_with_references(zero_shot, given) if fuses else run(given)
    )

  results = [zero_shot if bank is None else few_shot(bank) for bank in banks]
  if not kernels.smooths_maps():
    return results

  def smooth(result):
    smooth_map = smoothing.gaussian(result["anomaly_map"], smooth_sigma)
    return {**result, "anomaly_map": smooth_map}

  return [smooth(result) for result in results]
