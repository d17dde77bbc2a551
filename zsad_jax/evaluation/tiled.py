"""Evaluation of images by tiles: one image after the other, at its own size."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from scipy import ndimage

from zsad_jax.datasets import index, masks, preprocess
from zsad_jax.inference import predictor as predictor_lib
from zsad_jax.inference import tile_stream
from zsad_jax.inference.tiling import Tiling
from zsad_jax.runtime import distributed


@dataclasses.dataclass(frozen=True)
class Batches:
  """Messages about images and masks, as `pipeline.Batches` collects them.

  Attributes:
    skipped: one message for each image that could not be read so far.
    findings: what is suspicious about masks, by the number of the sample.
  """

  skipped: list[str]
  findings: dict[int, masks.Finding]


@dataclasses.dataclass(frozen=True)
class TiledImages:
  """Predicts test images by tiles.

  Attributes:
    tiling: size and overlap of tiles.
    side: height and width of a tile as the model reads it.
    batch_size: tiles per call.
    smooth_sigma: sigma of the Gaussian that smooths merged maps, in pixels of
      these maps; 0: none.
    skip_corrupt: collect messages about images that cannot be read instead of
      stopping.
  """

  tiling: Tiling
  side: int
  batch_size: int
  smooth_sigma: float
  skip_corrupt: bool

  def predict(
    self,
    samples: Sequence[index.Sample],
    class_id: int,
    run: Callable[[dict[str, np.ndarray], Callable[[Any], Any]], Any],
  ) -> tuple[Batches, Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]]:
    """Predict images of one class.

    Every process reads all images, predicts its rows of each batch of tiles,
    and counts the images whose numbers are its own modulo the number of
    processes.

    Args:
      samples: the images.
      class_id: their class.
      run: predicts this process's rows of a batch with "image" and "class_id",
        and collects the predictions by a function.

    Returns:
      Messages, and an iterator over a batch of one image, like those of
      `pipeline.eval_batches` with its "digest" instead of "image", and its
      predictions by references, maps smoothed. The weight of images that
      another process counts is 0.
    """
    messages = Batches([], {})
    opened = tile_stream.open_ahead(
      lambda number: self._open(number, samples[number]),
      [sample.image_path for sample in samples],
      skip_corrupt=self.skip_corrupt,
    )

    def of_tiles(tiles):
      ids = np.full(len(tiles), class_id, np.int32)
      batch = distributed.local_slice({"image": tiles, "class_id": ids})
      return run(batch, distributed.all_gather)

    def predict():
      for found in tile_stream.predict(
        opened,
        of_tiles,
        tiling=self.tiling,
        side=self.side,
        batch_size=predictor_lib.round_up(self.batch_size),
      ):
        if isinstance(found, str):
          if found not in messages.skipped:
            messages.skipped.append(found)
          continue
        number, mask, finding = found.more
        if finding:
          messages.findings[number] = finding
        own = number % jax.process_count() == jax.process_index()
        yield (
          {
            "index": np.array([number]),
            "mask": mask[None],
            "has_mask": np.array([samples[number].has_mask]),
            "weight": np.array([own], np.float32),
            "digest": found.digest,
          },
          [self._one_row(each, smooth=own) for each in found.predictions],
        )

    return messages, predict()

  def build_memory_bank(
    self, predictor: Any, paths: Sequence[str], class_id: int
  ) -> Any:
    """Return the memory bank of all tiles of reference images."""
    opened = tile_stream.open_ahead(
      lambda number: _reference(paths[number]), paths
    )
    bank, _ = tile_stream.build_memory_bank(
      predictor,
      opened,
      class_id,
      tiling=self.tiling,
      side=self.side,
      batch_size=self.batch_size,
    )
    return bank

  def digest(self, path: str) -> bytes:
    """Return the digest of an image, as `predict` does."""
    return tile_stream.digest(_reference(path), self.tiling, self.side)

  def _open(self, number, sample):
    """Return an image with its number, mask and findings."""
    pair = preprocess.inspect_pair(sample)
    size = pair.image.height, pair.image.width
    mask = preprocess.resize_mask(
      pair.mask, self.tiling.grid(size, self.side).shape
    )
    finding = pair.findings
    if pair.mask.getbbox() and not mask.any():
      finding |= masks.Finding.VANISHES
    more = number, mask, finding
    return tile_stream.Opened(sample.image_path, pair.image, more)

  def _one_row(self, prediction, *, smooth):
    """Return the prediction of an image as a batch of one."""
    anomaly_map = prediction["anomaly_map"]
    if smooth and self.smooth_sigma:
      anomaly_map = ndimage.gaussian_filter(anomaly_map, self.smooth_sigma)
    score = np.array([prediction["pred_score"]], np.float32)
    return {"anomaly_map": anomaly_map[None], "pred_score": score}


def _reference(path):
  return tile_stream.Opened(path, preprocess.open_image(path))
