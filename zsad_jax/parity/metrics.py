"""Parity of the exact metrics and of the published variants."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import ndimage

from zsad_jax import metrics
from zsad_jax.metrics import variants
from zsad_jax.parity import golden as golden_lib

_FOUR, _EIGHT = ndimage.generate_binary_structure(2, 1), np.ones((3, 3))


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value) for each expected value."""
  del golden  # Metrics need no backbone.
  for number, structure in ((4, _FOUR), (8, _EIGHT)):
    yield (
      f"n_components_{number}conn",
      np.array([_count(mask, structure) for mask in entry["masks"]]),
    )
  for kind, scores in (("maps", "scores"), ("ties", "scores_ties")):
    values = _values(
      entry["labels"], entry[scores], entry["masks"], entry[kind]
    )
    for name, value in values.items():
      yield f"{kind}/{name}_f64", np.float64(value)


def _count(mask, structure):
  """Count the connected components of a mask."""
  regions = np.zeros(mask.shape, np.int32)
  ndimage.label(mask, structure, output=regions)
  return int(regions.max())


def _values(label, score, gt_mask, anomaly_map):
  """Compute every stored value of one set of maps, by name."""
  image = metrics.image_metrics(label, score)
  pixel = metrics.pixel_metrics(gt_mask, anomaly_map)
  aupro_200 = lambda **options: variants.aupro_200(
    gt_mask, anomaly_map, **options
  )
  of_code = {
    "image-auroc": image["image_auroc"],
    "image-ap": image["image_ap"],
    "pixel-auroc": pixel["pixel_auroc"],
    "pixel-aupro": aupro_200(),
  }
  groups = {
    "sklearn": _of_sklearn(image, pixel),
    "AnomalyCLIP": of_code,
    "FAPrompt": of_code,
    "AdaCLIP": _of_adaclip(image, pixel),
    "AdaptCLIP": _of_adaptclip(
      image, pixel, (label, score), (gt_mask, anomaly_map)
    ),
  }
  return {
    f"{group}/{name}": value
    for group, values in groups.items()
    for name, value in values.items()
  } | {
    "cal_pro_score": aupro_200(),
    "cal_pro_score_fpr1": aupro_200(max_fpr=1.01),
    "cal_pro_score_step50": aupro_200(steps=50),
    "aupro_exact_fpr0.3": pixel["pixel_aupro"],
  }


def _of_sklearn(image, pixel):
  return {
    f"{level}_{name.replace('f1_max', 'f1max')}": row[f"{level}_{name}"]
    for level, row in (("image", image), ("pixel", pixel))
    for name in ("auroc", "ap", "f1_max")
  }


def _of_adaclip(image, pixel):
  return {
    f"{name}_{short}": 100 * row[f"{level}_{ours}"]
    for level, short, row in (("image", "im", image), ("pixel", "px", pixel))
    for name, ours in (("auroc", "auroc"), ("f1", "f1_max"), ("ap", "ap"))
  }


def _of_adaptclip(image, pixel, items, maps):
  (label, score), (gt_mask, anomaly_map) = items, maps
  return {
    "I-AUROC": image["image_auroc"],
    "I-AP": variants.aupr_reordered(label, score),
    "I-F1max": image["image_f1_max"],
    "P-AUROC": pixel["pixel_auroc"],
    "P-AP": variants.aupr_reordered(gt_mask.ravel(), anomaly_map.ravel()),
    "P-F1max": pixel["pixel_f1_max"],
    "P-AUPRO": variants.aupro_resampled(gt_mask, anomaly_map),
    "I-Overkill@5": variants.overkill(label, score, 0.05),
  }
