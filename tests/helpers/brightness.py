"""A model that detects bright pixels, without any compilation."""

from typing import Any

import numpy as np


class BrightnessModel:
  """In the role of `predictor.Predictor`.

  The map of an image is its brightness, less that of the references; the score
  is the largest value of the map.

  Attributes:
    batches: number of images of each call.
    references: images of the memory banks, one after the other.
  """

  def __init__(self) -> None:
    self.batches: list[int] = []
    self.references: list[np.ndarray] = []

  def encode(self, batch: Any) -> Any:
    """Return the pixels."""
    self.batches.append(len(batch["image"]))
    return batch["image"]

  def build_memory_bank_of(
    self, chunks: Any, class_id: int, *, batch_size: int
  ) -> Any:
    """Return the mean brightness of references."""
    parts = [np.array(chunk) for chunk in chunks]
    assert all(len(part) <= batch_size for part in parts)
    return self.build_memory_bank(
      np.concatenate(parts), class_id, batch_size=batch_size
    )

  def build_memory_bank(
    self, images: np.ndarray, class_id: int, *, batch_size: int
  ) -> Any:
    """Return the mean brightness of references."""
    self.references += list(images)
    return float(np.mean(images, dtype=np.float64)) / 255

  def predict(
    self, params: Any, stats: Any, features: Any, memory_banks: Any = (None,)
  ) -> list[dict[str, np.ndarray]]:
    """Return maps and scores for each memory bank."""
    bright = features.mean(axis=-1, dtype=np.float64) / 255
    maps = [
      np.maximum(bright - (bank or 0.0), 0).astype(np.float32)
      for bank in memory_banks
    ]
    return [{"anomaly_map": m, "pred_score": m.max((1, 2))} for m in maps]
