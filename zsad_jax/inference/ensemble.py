"""Ensembles: the mean of the scores and maps of several detectors."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32
from PIL import Image


def mean_prediction(
  predictions: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """Return the mean of scores and maps of several detectors.

  Args:
    predictions: of the same b images: "anomaly_map" (b, s, s), where s may
      differ between detectors, and "pred_score" (b,).

  Returns:
    The same of the ensemble, maps at the size of the largest ones.
  """
  scores = [np.asarray(each["pred_score"]) for each in predictions]
  maps = mean_maps([np.asarray(each["anomaly_map"]) for each in predictions])
  return {"anomaly_map": maps, "pred_score": np.mean(scores, axis=0)}


def mean_maps(
  maps: Sequence[Float32[np.ndarray, "*b _ _"]],
) -> Float32[np.ndarray, "*b s s"]:
  """Return the mean of maps of several detectors, at the largest size."""
  size = max(each.shape[-1] for each in maps)
  return np.mean([_resize(each, size) for each in maps], axis=0)


def _resize(maps, size):
  """Resize square maps (..., s, s) to a larger size, by bilinear weights."""
  if maps.shape[-1] == size:
    return maps
  flat = maps.reshape(-1, *maps.shape[-2:])
  resized = [
    np.asarray(
      Image.fromarray(each).resize((size, size), Image.Resampling.BILINEAR)
    )
    for each in flat
  ]
  return np.array(resized, np.float32).reshape(*maps.shape[:-2], size, size)
