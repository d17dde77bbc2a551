"""Detectors of commands: from flags, a calibration and the run.

Thresholds are read once: those stored in the run later have no effect.
"""

import dataclasses
import hashlib
import logging
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from zsad_jax import backbones
from zsad_jax.datasets import image_files, index
from zsad_jax.inference import tiling as tiling_lib
from zsad_jax.runs import (
  calibration_file,
  calibrations,
  ensemble,
  ensemble_detector,
  set_scores,
)
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import processes

_WARM_UP_SIDE = 64  # Pixels of the images before the first one.
_log = logging.getLogger(__name__)

# Of `Opened.settings`: when the calibration was made.
CALIBRATED = "the date of the calibration"
TILE_NOTE = (
  "warning: the threshold stored with the run was set for whole images, and "
  "--tile changes scores. Set one for tiles by `zsad calibrate --name=NAME "
  "--tile=SIZE` and use --calibration=NAME, or give --threshold."
)


@dataclasses.dataclass(frozen=True)
class Choice:
  """References, class name and tiles of a detector.

  Attributes:
    class_name: object class in the images.
    references: normal images to compare with, may be empty.
    tiling: tiles of images; None for whole images.
    calibration: the calibration that sets these values; None: the user does.
  """

  class_name: str = "object"
  references: tuple[str, ...] = ()
  tiling: tiling_lib.Tiling | None = None
  calibration: calibration_file.Calibration | None = None


class Opened(NamedTuple):
  """A detector and how it was made.

  Attributes:
    run: the run.
    detector: the detector.
    choice: references, class name and tiles.
  """

  run: run_lib.Run
  detector: detector_lib.Detector
  choice: Choice

  @property
  def name(self) -> str:
    """Name of the run's configuration."""
    config: Any = self.run.config
    return config.name

  def settings(self) -> dict[str, Any]:
    """Return by flag all that results depend on; JSON values."""
    choice, limits = self.choice, self.detector.limits
    tiling, stored = choice.tiling, choice.calibration
    return {
      "--calibration": stored and stored.name,
      "--class_name": choice.class_name,
      "--workdir": os.path.realpath(self.run.workdir),
      CALIBRATED: stored and stored.date,
      "--tile": tiling and tiling.size,
      "--tile_overlap": tiling and tiling.overlap,
      "--references": [_described(path) for path in choice.references],
      "the digest of the run": calibrations.run_digest(self.run),
      "--threshold": limits.image_score,
      "the pixel threshold": limits.pixel,
    }


def define_flags(no_tiles: str = "") -> None:
  """Define the flags of a detector; --workdir is defined by the command.

  Args:
    no_tiles: help of --tile where it is refused.
  """
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
  tiling_lib.define_flags(no_tiles)
  flags.DEFINE_integer("batch_size", 8, "Images, or tiles, per call.", 1)


def load(workdir: str) -> run_lib.Run:
  """Load a run, and log the limits of its backbone."""
  run = ensemble.load(workdir)
  config: Any = run.config
  if note := backbones.note(config.backbone.name):
    _log.info(note)
  return run


def from_flags(options: Any, *, references_later: bool = False) -> Opened:
  """Return the detector that the flags of a command ask for.

  Args:
    options: those of `define_flags`, and --workdir.
    references_later: whether it is given other references later; then its
      thresholds are read when images are scored, for they differ.

  Raises:
    ValueError, FileNotFoundError: a flag or a file is missing or invalid.
  """
  limit = options.threshold
  tiling = check_flags(options)
  _log.info("Loading %s.", options.workdir)
  run = load(options.workdir)
  set_scores.check_single_images(run, "This command")
  choice = choose(
    run,
    options.calibration,
    class_name=options.class_name,
    references=options.references,
    tiling=tiling,
  )
  detector = make(
    run,
    choice,
    limit=limit,
    batch_size=options.batch_size,
    references_later=references_later,
  )
  if tiling and limit is None:
    _log.warning(TILE_NOTE)
  if detector.limits.is_of_training:
    _log.info("note: %s", threshold_lib.TRAINING_NOTE)
  return Opened(run, detector, choice)


def check_flags(options: Any) -> tiling_lib.Tiling | None:
  """Check the flags of `define_flags` before anything is read.

  Returns:
    The tiling they ask for.

  Raises:
    ValueError: a value is invalid, or flags contradict each other.
  """
  limit = options.threshold
  if limit is not None and not math.isfinite(limit):
    raise ValueError(f"--threshold is {limit}; expected a finite number.")
  tiling, name = tiling_lib.from_flags(options), options.calibration
  if name is not None:
    fixed = ("references", "class_name", "tile", "tile_overlap")
    given = {flag: bool(options[flag].present) for flag in fixed}
    calibrations.check_alone(name, given)
  image_files.check_normal(options.references)
  return tiling


def choose(
  run: run_lib.Run,
  calibration: str | None = None,
  *,
  class_name: str = "object",
  references: Sequence[str] = (),
  tiling: tiling_lib.Tiling | None = None,
) -> Choice:
  """Return the values of a calibration, or those given.

  Args:
    run: the run.
    calibration: its name; None: the other arguments are used.
    class_name: object class in the images.
    references: images, folders, patterns or .txt lists.
    tiling: tiles of images.

  Raises:
    ValueError, FileNotFoundError: there is no such calibration, it is corrupt,
      or a reference is missing.
  """
  if calibration is None:
    found = image_files.find(references) if references else ()
    return Choice(class_name, tuple(found), tiling)
  stored = calibrations.read(run.workdir, calibration)
  paths = calibrations.reference_paths(run.workdir, stored)
  return Choice(stored.class_name, tuple(paths), stored.tiling, stored)


def make(
  run: run_lib.Run,
  choice: Choice,
  *,
  limit: float | None = None,
  batch_size: int = 8,
  check: Callable[[threshold_lib.Threshold], object] = lambda limits: None,
  references_later: bool = False,
) -> detector_lib.Detector:
  """Return the detector of a run.

  Args:
    run: the run.
    choice: references, class name and tiles.
    limit: threshold of scores that replaces the stored one.
    batch_size: images, or tiles, per call of the model.
    check: receives the thresholds before references are encoded.
    references_later: see `from_flags`.

  Raises:
    FileNotFoundError: the run has no threshold.
    ValueError: the run has changed since the calibration or needs references,
      or an image cannot be read.
  """
  if choice.calibration:
    check(choice.calibration.threshold)
    return ensemble_detector.from_calibration(
      run, choice.calibration, threshold=limit, batch_size=batch_size
    )
  if not (choice.references or references_later):
    detector_lib.check_works_alone(run)
  limits = threshold_lib.read_or_replace(
    run.workdir, few_shot=bool(choice.references), image_score=limit
  )
  check(limits)
  detector = ensemble_detector.make_detector(
    run,
    class_name=choice.class_name,
    threshold=limit if references_later else None,
    batch_size=batch_size,
    limits=None if references_later else limits,
    tiling=choice.tiling,
  )
  if not choice.references:
    return detector
  return detector.with_references(list(choice.references))


def warm_up(
  detector: detector_lib.Detector, numbers: Iterable[int] = (1,)
) -> None:
  """Compile the programs of a detector before the first image.

  Args:
    detector: scores images of noise, larger than a tile if it has tiles.
    numbers: of images per call.

  Raises:
    ValueError: the detector needs references and has none.
  """
  tiling = detector.tiling
  side = tiling.size + 1 if tiling else _WARM_UP_SIDE
  noise = np.random.default_rng(0).integers(0, 255, (side, side, 3))
  for number in numbers:
    list(detector.stream([noise.astype(np.uint8)] * number))


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
