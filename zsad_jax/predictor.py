"""One compiled program from a batch of images to maps and scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zsad_jax import api
from zsad_jax.datasets import preprocess


def make_mesh() -> jax.sharding.Mesh:
  """All devices along one axis, "data": images are split, all else copied."""
  return jax.make_mesh(
      (jax.device_count(),),
      ("data",),
      # The explicit mode rejects a ViT's concatenation of class and patches.
      axis_types=(jax.sharding.AxisType.Auto,),
  )


def round_up(batch_size: int) -> int:
  """Smallest multiple of the number of devices that holds the batch."""
  devices = jax.device_count()
  return -(-batch_size // devices) * devices


def put_batch(batch: Mapping[str, np.ndarray], mesh) -> dict[str, jax.Array]:
  """Splits a host's slice of a batch over its devices."""
  split = NamedSharding(mesh, P("data"))
  return {
      k: jax.make_array_from_process_local_data(split, v)
      for k, v in batch.items()
  }


def with_network_input(batch: api.Batch) -> api.Batch:
  """The batch with its uint8 image normalised for CLIP; runs inside jit."""
  return {**batch, "image": preprocess.normalize(batch["image"])}


class Predictor:
  """Maps and scores of batches, for one set of class names."""

  def __init__(
      self,
      method: api.Method,
      backbone: api.Backbone,
      class_names: Sequence[str],
      mesh: jax.sharding.Mesh,
  ):
    self._mesh, self._everywhere = mesh, NamedSharding(mesh, P())
    self._backbone, self._aux = jax.device_put(
        (backbone, method.prepare(backbone, class_names)), self._everywhere
    )

    @jax.jit
    def run(params, stats, backbone, aux, batch):
      features = method.encode(backbone, with_network_input(batch))
      return method.predict(params, stats, backbone, aux, features)

    self._run = run

  def __call__(
      self, params: Any, stats: Any, batch: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """Predicts one batch of the pipeline.

    Args:
      params: trained parameters.
      stats: running statistics.
      batch: "image" uint8 (b, s, s, 3) and "class_id" int32 (b,); b is a
        multiple of the number of devices.

    Returns:
      "anomaly_map" (b, s, s) and "pred_score" (b,), float32 on the host.
    """
    needed = {k: batch[k] for k in ("image", "class_id")}
    on_device = put_batch(needed, self._mesh)
    # No copy where they are already.
    params, stats = jax.device_put((params, stats), self._everywhere)
    result = self._run(params, stats, self._backbone, self._aux, on_device)
    return jax.device_get(result)
