"""From a batch of images to features, maps and scores, compiled."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zsad_jax import types
from zsad_jax.layers import kernels, smoothing
from zsad_jax.runtime import distributed


def round_up(batch_size: int) -> int:
  """Smallest multiple of the number of devices that holds the batch."""
  devices = jax.device_count()
  return -(-batch_size // devices) * devices


def put_batch(batch: Mapping[str, Any], mesh) -> dict[str, Any]:
  """Splits a host's slice of a batch over its devices.

  What is on the devices stays where it is.
  """
  split = NamedSharding(mesh, P("data"))

  def put(x):
    if isinstance(x, jax.Array):
      return x
    return jax.make_array_from_process_local_data(split, x)

  return jax.tree.map(put, dict(batch))


def encode(
  method: types.DetectionModel,
  backbone: types.ImageBackbone,
  batch: types.Batch,
):
  """Features of a batch of uint8 images; runs inside jit.

  Where the batch brings "references" (b, k, s, s, 3), each image's own, their
  memory stands in features["memory_bank"]. Where it brings "features" and
  "reference_features" instead of images, these are what was encoded before.
  """
  if "features" in batch:
    features = _widened(backbone, batch["features"])
    if "reference_features" not in batch:
      return features
    known = _widened(backbone, batch["reference_features"])
    return {**features, "memory_bank": method.build_memory_bank(known)}
  images = backbone.normalize(batch["image"])
  features = method.encode(backbone, {**batch, "image": images})
  if "references" not in batch:
    return features
  b, k, *shape = batch["references"].shape
  of_references = method.encode(
    backbone,
    {
      "image": backbone.normalize(batch["references"].reshape(b * k, *shape)),
      "class_id": jnp.repeat(batch["class_id"], k),
    },
  )
  each = jax.tree.map(lambda x: x.reshape(b, k, *x.shape[1:]), of_references)
  return {**features, "memory_bank": method.build_memory_bank(each)}


def _widened(backbone, features):
  """Features as they are computed with, however they were kept."""

  def wide(x):
    if x.dtype == jnp.uint8:  # Images.
      return backbone.normalize(x)
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x

  return jax.tree.map(wide, features)


class Predictor:
  """Maps and scores of batches, for one set of class names.

  Args:
    method: the method.
    backbone: frozen CLIP.
    class_names: what `class_id` refers to, as sentences use them.
    mesh: devices.
    smooth_sigma: of the Gaussian over maps in pixels, where
      `kernels.smooths_maps()`.
  """

  def __init__(
    self,
    method: types.DetectionModel,
    backbone: types.ImageBackbone,
    class_names: Sequence[str],
    mesh: jax.sharding.Mesh,
    *,
    smooth_sigma: float = 0.0,
  ):
    self._shares = isinstance(method, types.FusesZeroShot)
    self._mesh = mesh
    self._backbone, self._aux = distributed.replicate(
      (backbone, method.prepare(backbone, class_names)), mesh
    )
    self._encode = jax.jit(functools.partial(encode, method))
    # References are all one image's, as far as shapes are concerned.
    self._build_memory_bank = jax.jit(
      lambda features: method.build_memory_bank(jax.tree.map(_lead, features))
    )

    split = NamedSharding(mesh, P("data"))

    @functools.partial(jax.jit, out_shardings=split)
    def predict(params, stats, backbone, aux, features, memories):
      run = lambda f: method.predict(params, stats, backbone, aux, f)
      alone = run(features) if self._shares or None in memories else None
      beside = lambda f: (
        method.fuse_with_references(alone, f) if self._shares else run(f)
      )
      results = [
        alone if memory is None else beside({**features, "memory_bank": memory})
        for memory in memories
      ]
      if not kernels.smooths_maps():
        return results
      smooth = lambda x: smoothing.gaussian(x, smooth_sigma)
      return [{**r, "anomaly_map": smooth(r["anomaly_map"])} for r in results]

    self._predict = predict

  def encode(self, batch: Mapping[str, np.ndarray]) -> types.Features:
    """Returns the features of a batch of the pipeline, on the devices.

    Args:
      batch: this process's part of "image" uint8 (b, s, s, 3) and "class_id"
        int32 (b,); b is a multiple of the number of devices.
    """
    needed = {k: batch[k] for k in ("image", "class_id")}
    return self._encode(self._backbone, put_batch(needed, self._mesh))

  def build_memory_bank(
    self, images: np.ndarray, class_id: int, *, batch_size: int
  ) -> Any:
    """Returns the memory of k references of one class, on all devices.

    Args:
      images: uint8 (k, s, s, 3).
      class_id: their class.
      batch_size: images per call.
    """
    batch_size, parts = round_up(min(batch_size, len(images))), []
    for first in range(0, len(images), batch_size):
      chunk = images[first : first + batch_size]
      padding = [(0, batch_size - len(chunk)), (0, 0), (0, 0), (0, 0)]
      batch = {
        "image": np.pad(chunk, padding),
        "class_id": np.full(batch_size, class_id, np.int32),
      }
      parts.append(
        distributed.all_gather(self.encode(distributed.local_slice(batch)))
      )
    whole = lambda *xs: np.concatenate(xs)[: len(images)]
    joined = jax.tree.map(whole, *parts)
    return distributed.replicate(self._build_memory_bank(joined), self._mesh)

  def predict(
    self,
    params: Any,
    stats: Any,
    features: types.Features,
    memories: Sequence[Any] = (None,),
  ) -> list[dict[str, jax.Array]]:
    """Predicts what was encoded, once for each memory.

    Args:
      params: trained parameters.
      stats: running statistics.
      features: `encode`'s.
      memories: `build_memory_bank`'s; None for zero-shot.

    Returns:
      For each memory: "anomaly_map" (b, s, s) and "pred_score" (b,), float32,
      on the devices, split as the batch was.
    """
    # No copy where they are already.
    params, stats = distributed.replicate((params, stats), self._mesh)
    # Together where they share a prediction, else by one program for each.
    together = [memories] if self._shares else [(m,) for m in memories]
    results = [
      self._predict(
        params, stats, self._backbone, self._aux, features, tuple(part)
      )
      for part in together
    ]
    return sum(results, [])


def _lead(x):
  return x[None]
