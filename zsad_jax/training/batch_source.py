"""Source of training batches: cached features, or images.

Both sources have `batches(start_step=...)` and `skipped`, and yield batches
with the same keys but for the images, see `FeatureCache.batches`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax

from zsad_jax import types
from zsad_jax.datasets import augmentation, cache, index, pipeline
from zsad_jax.runtime import distributed
from zsad_jax.training import feature_cache


@runtime_checkable
class BatchSource(Protocol):
  """Endless batches of the auxiliary images."""

  @property
  def skipped(self) -> Sequence[str]:
    """One message for each image that could not be read so far."""
    ...

  def batches(self, *, start_step: int) -> Iterator[dict[str, Any]]:
    """Yield one batch for each training step from `start_step` on."""
    ...


class Images:
  """Batches of decoded images, which each step encodes."""

  def __init__(
    self,
    config: types.Config,
    method: types.Method,
    datasets: Sequence[index.Dataset],
  ) -> None:
    self.skipped: Sequence[str] = ()
    self._config, self._method, self._datasets = config, method, datasets

  def batches(self, *, start_step: int) -> Iterator[dict[str, Any]]:
    """Return the batches of `pipeline.train_batches` from `start_step` on."""
    found = pipeline.train_batches(
      self._datasets,
      image_size=self._config.image_size,
      batch_size=self._config.batch_size,
      seed=self._config.seed,
      start_step=start_step,
      augmentation=augmentation.Augmentation(
        mosaic_label=self._config.mosaic_label,
        mosaic_images=self._config.mosaic_images,
        policy=self._config.augmentation,
      ),
      num_references=self._method.num_references,
      skip_corrupt=self._config.skip_corrupt,
      num_devices=jax.device_count(),
      **distributed.shard(),
      cache=cache.open_cache(self._config.decoded_cache),
    )
    self.skipped = found.skipped
    return found


def make(
  config: types.Config,
  method: types.Method,
  backbone: types.ImageBackbone,
  mesh: jax.sharding.Mesh,
  datasets: Sequence[index.Dataset],
) -> BatchSource:
  """Return the source of batches that `config.features` asks for.

  Args:
    config: see configs/common.py.
    method: encodes the images.
    backbone: frozen, replicated on the devices.
    mesh: devices.
    datasets: the auxiliary data sets.

  Raises:
    ValueError: a field of config.features has an unknown or impossible value.
  """
  cached = feature_cache.make(config, method, backbone, mesh, datasets)
  return cached or Images(config, method, datasets)
