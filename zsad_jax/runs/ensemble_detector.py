"""Detectors of runs and of ensembles; `load` is part of the public API."""

import copy
import dataclasses
import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float32

from zsad_jax.inference import ensemble as inference
from zsad_jax.inference.inputs import ImageInputs
from zsad_jax.inference.tiling import Tiling
from zsad_jax.runs import calibration_file, calibrations
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import ensemble as ensemble_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runs.detection import Detection

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class EnsembleDetection(Detection):
  """Result of an ensemble for one image.

  Attributes:
    members: results of the members, with the limits of the ensemble. The
      raw map is the mean of theirs, in the shape of the largest one.
  """

  members: tuple[Detection, ...] = ()

  @functools.cached_property
  def anomaly_map(self) -> Float32[np.ndarray, "h w"]:
    """Mean of the members' smoothed maps, at the size of the image."""
    return np.mean([member.anomaly_map for member in self.members], axis=0)


class EnsembleDetector(detector_lib.Detector):
  """Mean of the scores and maps of several runs; see `Detector`.

  Each member reads the images at its own size.
  """

  def __init__(
    self,
    run: ensemble_lib.Ensemble,
    *,
    class_name: str = "object",
    threshold: float | None = None,
    batch_size: int = 8,
    limits: threshold_lib.Threshold | None = None,
    tiling: Tiling | None = None,
  ):
    """Wrap an ensemble that is loaded already; see `Detector`."""
    super().__init__(
      run,
      class_name=class_name,
      threshold=threshold,
      batch_size=batch_size,
      limits=limits,
      tiling=tiling,
    )
    self._members = [
      detector_lib.Detector(
        member,
        class_name=class_name,
        threshold=0.0,  # Only the one of the ensemble is used.
        batch_size=batch_size,
        tiling=tiling,
      )
      for member in run.members
    ]
    for member in self._members:
      member._shrinking = self._shrinking  # One warning of all.

  @property
  def has_references(self) -> bool:
    """Whether images are compared with references."""
    return self._members[0].has_references

  def with_references(
    self, images: ImageInputs, *, class_name: str | None = None
  ) -> "EnsembleDetector":
    """Return a detector that compares images with normal references.

    Args:
      images: see `Detector.with_references`.
      class_name: see `Detector.with_references`.
    """
    new = copy.copy(self)
    new._class_name = self._class_name if class_name is None else class_name
    new._members = [
      member.with_references(images, class_name=class_name)
      for member in self._members
    ]
    return new

  def _stream(
    self, images: Any, names: Any, limits: Any, skip_corrupt: bool
  ) -> Iterator[tuple[int, Detection | str]]:
    """Yield positions with detections or messages; see `stream`."""
    streams = [
      member._stream(images, names, limits, skip_corrupt)
      for member in self._members
    ]
    for parts in zip(*streams, strict=True):
      position, found = parts[0][0], [each for _, each in parts]
      messages = [each for each in found if isinstance(each, str)]
      yield position, messages[0] if messages else _mean(found, limits)


def _mean(found, limits) -> EnsembleDetection:
  """Return the mean of the members' results for one image."""
  score = _mean_score([each.score for each in found])
  zero_shot = [each.zero_shot_score for each in found]
  largest = max(found, key=lambda each: each.raw_map.size)
  return EnsembleDetection(
    score=score,
    limits=limits,
    raw_map=inference.mean_maps([each.raw_map for each in found]),
    image_size=largest.image_size,
    smooth_sigma=largest.smooth_sigma,
    zero_shot_score=None if None in zero_shot else _mean_score(zero_shot),
    members=tuple(found),
  )


def _mean_score(scores):
  return float(np.mean(np.array(scores, np.float32)))


def make_detector(
  run: run_lib.Run,
  *,
  class_name: str = "object",
  threshold: float | None = None,
  batch_size: int = 8,
  limits: threshold_lib.Threshold | None = None,
  tiling: Tiling | None = None,
) -> detector_lib.Detector:
  """Return the detector of a run or an ensemble; see `load` and `Detector`."""
  is_ensemble = isinstance(run, ensemble_lib.Ensemble)
  kind: Any = EnsembleDetector if is_ensemble else detector_lib.Detector
  return kind(
    run,
    class_name=class_name,
    threshold=threshold,
    batch_size=batch_size,
    limits=limits,
    tiling=tiling,
  )


def from_calibration(
  run: run_lib.Run,
  calibration: calibration_file.Calibration,
  *,
  threshold: float | None = None,
  batch_size: int = 8,
) -> detector_lib.Detector:
  """Return the detector of a named calibration of a run or an ensemble.

  It has the references, the class name, the tiles and the thresholds of the
  calibration.

  Args:
    run: the run.
    calibration: returned by `calibrations.read`.
    threshold: decision threshold of scores; None for that of the calibration.
    batch_size: largest number of images per call of the model.

  Raises:
    ValueError: the run has changed since.
  """
  calibrations.check_run(run, calibration)
  detector = make_detector(
    run,
    class_name=calibration.class_name,
    threshold=threshold,
    batch_size=batch_size,
    limits=calibration.threshold,
    tiling=calibration.tiling,
  )
  references = calibrations.reference_paths(run.workdir, calibration)
  return detector.with_references(references) if references else detector


def load(
  workdir: str | os.PathLike[str],
  *,
  class_name: str = "object",
  threshold: float | None = None,
  batch_size: int = 8,
  tile: int | None = None,
  tile_overlap: float = 0.25,
  calibration: str | None = None,
) -> detector_lib.Detector:
  """Load a trained run for prediction.

  Sets JAX's default matmul precision to that of the run.

  Args:
    workdir: folder of a run made by `zsad train` or `zsad convert`,
      or of an ensemble made by `zsad_jax.evaluate`; or hf:owner/name, a run
      on the Hugging Face hub that `zsad_jax.push` has uploaded.
    class_name: object class in the images, for methods whose text prompts
      contain it.
    threshold: decision threshold; None for the one stored with the run.
    batch_size: largest number of images, or of tiles, per call of the model.
    tile: side in pixels of the overlapping tiles that images are scored by, for
      large images with small defects; None for whole images.
    tile_overlap: share of a tile that the next one covers, at least.
    calibration: name of a calibration made by `zsad_jax.calibrate`, which has
      its own references, class name and tiles; None: the thresholds of the run.

  Returns:
    A detector, without references if there is no calibration; see
    `Detector.with_references`.

  Raises:
    FileNotFoundError: the folder holds no run, the run has no checkpoint or no
      weights, or no such calibration. A missing threshold is an error when
      images are scored.
    ValueError: the files do not match, an argument is out of range or contained
      in the calibration, or the run has changed since the calibration.
  """
  if calibration is not None:
    given = {"tile": tile is not None, "class_name": class_name != "object"}
    calibrations.check_alone(calibration, given)
    run = ensemble_lib.load(os.fspath(workdir))
    return from_calibration(
      run,
      calibrations.read(run.workdir, calibration),
      threshold=threshold,
      batch_size=batch_size,
    )
  if tile is not None and threshold is None:
    _log.warning(
      "warning: tile=%d: the threshold of the run is that of whole images, and "
      "tiles change scores. Give threshold, or use a calibration with tiles.",
      tile,
    )
  return make_detector(
    ensemble_lib.load(os.fspath(workdir)),
    class_name=class_name,
    threshold=threshold,
    batch_size=batch_size,
    tiling=Tiling.of(tile, tile_overlap),
  )
