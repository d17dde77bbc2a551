"""Programs of detectors for export, their reference results and description."""

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

import zsad_jax
from zsad_jax import backbones
from zsad_jax.datasets import index
from zsad_jax.inference import few_shot, inputs, program
from zsad_jax.runs import calibrations, ensemble, opening, set_scores
from zsad_jax.runs import detector as detector_lib

TILES = (
  "A program scores whole images: export it without --tile, or with a "
  "--calibration that has no tiles. docs/export.md describes crops instead."
)


class Expected(NamedTuple):
  """Results of the live model.

  Attributes:
    pixels: resized images, uint8 (n, s, s, 3).
    scores: float32 (n,).
    maps: smoothed, float32 (n, s, s).
  """

  pixels: np.ndarray
  scores: np.ndarray
  maps: np.ndarray


def make_program(detector: detector_lib.Detector) -> program.Program:
  """Return the program of a detector, with its references.

  Raises:
    ValueError: it is an ensemble, has tiles, or lacks required references.
  """
  run = detector._run
  config: Any = run.config
  if isinstance(run, ensemble.Ensemble):
    raise ValueError(
      f"{run.workdir} is an ensemble, and a program has one model: export its "
      "runs one by one, and average their scores and maps."
    )
  if detector.tiling is not None:
    raise ValueError(TILES)
  set_scores.check_single_images(run, "zsad export")
  method = run.method
  if method.image_only:
    raise ValueError(
      f"{config.name} has image scores only, and a program has a map as well: "
      "use `zsad predict`."
    )
  if detector.has_references:
    method = few_shot.with_memory_bank(method, **config.memory)
  elif method.needs_references and not config.get("per_category", False):
    raise ValueError(
      f"{config.name} needs references, normal images of the same class: give "
      "--references."
    )
  return program.make(
    method,
    run.backbone,
    params=run.params,
    stats=run.stats,
    class_name=detector._class_name,
    memory_bank=detector._memory_bank,
    image_size=config.image_size,
    smooth_sigma=config.smooth_sigma,
    matmul_precision=config.matmul_precision,
  )


def expected(
  detector: detector_lib.Detector, images: Sequence[Any]
) -> Expected:
  """Return the results of a detector for sample images.

  Raises:
    TypeError, ValueError: see `Detector.__call__`.
  """
  size = detector._config.image_size
  names = inputs.check_all(list(images))
  found = detector(list(images))
  smooth = lambda x: ndimage.gaussian_filter(x.raw_map, x.smooth_sigma)
  decoded = [inputs.decode(x, n, size) for x, n in zip(images, names)]
  return Expected(
    np.stack([each.pixels for each in decoded]),
    np.array([each.score for each in found], np.float32),
    np.stack(list(map(smooth, found))),
  )


def describe(
  opened: opening.Opened,
  written: Sequence[pathlib.Path],
  differences: Mapping[str, float],
) -> dict[str, Any]:
  """Return the content of the side file, without the format's own fields.

  Args:
    opened: the exported detector and its settings.
    written: files of the program, the one to open first.
    differences: see `export.differences`.
  """
  run, limits, choice = opened.run, opened.detector.limits, opened.choice
  config: Any = run.config
  size = config.image_size
  return {
    "file": written[0].name,
    "sha256": {path.name: _sha256(path) for path in written},
    "date": calibrations.now(),
    "zsad_jax": zsad_jax.__version__,
    "run": {
      "folder": os.path.basename(os.path.realpath(run.workdir)),
      "name": config.name,
      "step": run.step,
      "digest": calibrations.run_digest(run),
    },
    "method": config.method_name,
    "backbone": _backbone(config.backbone),
    "text_backbone": _backbone(config.get("text_backbone")),
    "train_data": list(config.train_data) if config.epochs else [],
    "class_name": choice.class_name,
    "calibration": choice.calibration and choice.calibration.name,
    "references": [_reference(path) for path in choice.references],
    **_interface(size),
    "smoothing": {
      "sigma": config.smooth_sigma,
      "where": "inside the program: anomaly_map is smoothed, and pred_score is "
      "that of the map before",
    },
    "threshold": {
      "image_score": limits.image_score,
      "pixel": limits.pixel,
      "map_low": limits.map_low,
      "map_high": limits.map_high,
      "source": limits.source,
    },
    "largest_difference": dict(differences),
  }


def _backbone(settings):
  """Return name, origin and licence of a backbone's weights; None for none."""
  if not settings or not settings.name:
    return None
  entry = backbones.identify(settings.name, settings.path)
  origin, licence = "the package zsad_jax", "Apache-2.0"
  if entry:
    origin, licence = entry.repo, entry.licence
  elif settings.path:
    origin = licence = "not known: converted from a file"
  return {"name": settings.name, "weights": origin, "licence": licence}


def _interface(size):
  """Return inputs and outputs, and `preprocess.load_image` in words."""
  shape = [program.BATCH, size, size]
  given = {
    "name": program.INPUT,
    "dtype": "uint8",
    "shape": [*shape, 3],
    "colors": "RGB, 0 to 255; the program normalizes them",
  }
  steps = {
    "orientation": "the EXIF orientation is applied",
    "mode": "RGB; transparency is dropped; 16-bit grey v becomes "
    "(v + 128) // 257",
    "resize": [size, size],
    "keep_aspect": False,
    "filter": "bicubic of Pillow (antialiased)",
  }
  outputs = {
    "pred_score": {"dtype": "float32", "shape": [program.BATCH]},
    "anomaly_map": {"dtype": "float32", "shape": shape},
  }
  return {"input": given, "preprocessing": steps, "outputs": outputs}


def _reference(path):
  file = index.file_and_box(path)[0]
  return {
    "file": os.path.basename(path),
    "sha256": _sha256(pathlib.Path(file)),
  }


def _sha256(path):
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
