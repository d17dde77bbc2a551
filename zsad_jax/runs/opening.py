"""Detectors of commands that score images for a long time.

Their thresholds are read once: what is stored in the run later has no effect.
"""

import hashlib
import logging
import math
import os
import pathlib
from typing import Any, NamedTuple

from absl import flags

from zsad_jax import backbones
from zsad_jax.datasets import image_files, index
from zsad_jax.inference import tiling as tiling_lib
from zsad_jax.runs import calibrations, ensemble, ensemble_detector
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import processes

_log = logging.getLogger(__name__)

TILE_NOTE = (
  "warning: the threshold stored with the run was set for whole images, and "
  "--tile changes scores. Set one for tiles by `zsad calibrate --name=NAME "
  "--tile=SIZE` and use --calibration=NAME, or give --threshold."
)


class Opened(NamedTuple):
  """A detector and how it was made.

  Attributes:
    name: name of the run's configuration.
    detector: the detector.
    class_name: object class in the images.
    references: the references.
    settings: by flag, all that scores and labels depend on; JSON values.
  """

  name: str
  detector: detector_lib.Detector
  class_name: str
  references: list[str]
  settings: dict[str, Any]


def define_flags() -> None:
  """Define the flags of a detector; --workdir is defined by the command."""
  flags.DEFINE_string("class_name", "object", "Object class in the images.")
  flags.DEFINE_list(
    "references",
    [],
    "Normal images to compare with: images, folders, patterns or .txt lists.",
  )
  flags.DEFINE_float(
    "threshold", None, "Threshold that replaces the one stored with the run."
  )
  flags.DEFINE_string(
    "calibration",
    None,
    "Calibration to use, a --name of `zsad calibrate`: its thresholds, "
    "references, class name and tiles.",
  )
  tiling_lib.define_flags()
  flags.DEFINE_integer("batch_size", 8, "Images, or tiles, per call.", 1)


def from_flags(options: Any, *, references_later: bool = False) -> Opened:
  """Return the detector that the flags of a command ask for.

  Args:
    options: those of `define_flags`, and --workdir.
    references_later: whether it is given other references later; then its
      thresholds are read when images are scored, for they differ.

  Raises:
    ValueError, FileNotFoundError: a flag or a file is missing or invalid.
  """
  limit, name = options.threshold, options.calibration
  if limit is not None and not math.isfinite(limit):
    raise ValueError(f"--threshold is {limit}; expected a finite number.")
  tiling = tiling_lib.from_flags(options)
  class_name = options.class_name
  if name:
    fixed = ("references", "class_name", "tile", "tile_overlap")
    given = {flag: bool(options[flag].present) for flag in fixed}
    calibrations.check_alone(name, given)
  image_files.check_normal(options.references)
  run = ensemble.load(options.workdir)
  config: Any = run.config
  if note := backbones.note(config.backbone.name):
    _log.info(note)
  if name:
    stored = calibrations.read(run.workdir, name)
    class_name, tiling = stored.class_name, stored.tiling
    normal = calibrations.reference_paths(run.workdir, stored)
    detector = ensemble_detector.from_calibration(
      run, name, threshold=limit, batch_size=options.batch_size
    )
  else:
    found = image_files.find(options.references) if options.references else []
    normal = list(found)
    limits = threshold_lib.read_or_replace(
      run.workdir, few_shot=bool(normal), image_score=limit
    )
    detector = ensemble_detector.make_detector(
      run,
      class_name=class_name,
      threshold=limit if references_later else None,
      batch_size=options.batch_size,
      limits=None if references_later else limits,
      tiling=tiling,
    )
    if normal:
      detector = detector.with_references(normal)
  if tiling and limit is None and not name:
    _log.warning(TILE_NOTE)
  if detector.limits.is_of_training:
    _log.info("note: %s", threshold_lib.TRAINING_NOTE)
  settings = {"--calibration": name, "--class_name": class_name}
  settings |= _settings(run, detector, tiling, normal)
  return Opened(config.name, detector, class_name, normal, settings)


def _settings(run, detector, tiling, normal) -> dict[str, Any]:
  """Return the settings that do not come from one flag."""
  return {
    "--workdir": os.path.realpath(run.workdir),
    "--tile": tiling and tiling.size,
    "--tile_overlap": tiling and tiling.overlap,
    "--references": [_described(path) for path in normal],
    "the digest of the run": calibrations.run_digest(run),
    "--threshold": detector.limits.image_score,
    "the pixel threshold": detector.limits.pixel,
  }


def check_alone(what: str) -> None:
  """Refuse a run of several processes.

  Args:
    what: the flag or command, for the message.

  Raises:
    ValueError: there are several.
  """
  if (number := processes.count()) > 1:
    raise ValueError(
      f"{what} needs a single process, but {number} were started: start the "
      "command once, without a launcher."
    )


def _described(path: str) -> str:
  """Return the name of a reference and a digest of its file."""
  file = pathlib.Path(index.file_and_box(path)[0])
  digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
  return f"{os.path.basename(path)} {digest}"
