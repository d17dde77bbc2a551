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
    predictions: of the same b images: "anomaly_map" (b, m, n), where m and n
      may differ between detectors, and "pred_score" (b,).

  Returns:
    The same of the ensemble, maps at the size of the largest ones.
  """
  scores = [np.asarray(each["pred_score"]) for each in predictions]
  maps = mean_maps([np.asarray(each["anomaly_map"]) for each in predictions])
  return {"anomaly_map": maps, "pred_score": np.mean(scores, axis=0)}


def mean_maps(
  maps: Sequence[Float32[np.ndarray, "*b _ _"]],
) -> Float32[np.ndarray, "*b m n"]:
  """Return the mean of maps of several detectors, in the largest shape."""
  shape = max((each.shape[-2:] for each in maps), key=np.prod)
  return np.mean([_resize(each, shape) for each in maps], axis=0)


def _resize(maps, shape):
  """Resize maps (..., h, w) to a larger shape, by bilinear weights."""
  if maps.shape[-2:] == shape:
    return maps
  flat = maps.reshape(-1, *maps.shape[-2:])
  resized = [
    np.asarray(
      Image.fromarray(each).resize(shape[::-1], Image.Resampling.BILINEAR)
    )
    for each in flat
  ]
  return np.array(resized, np.float32).reshape(*maps.shape[:-2], *shape)
