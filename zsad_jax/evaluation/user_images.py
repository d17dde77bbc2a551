"""Thresholds from scores, maps and masks of images of the user."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float32

from zsad_jax.datasets import (
  index,
  mask_files,
  preprocess,
  verification,
)
from zsad_jax.datasets import masks as masks_lib
from zsad_jax.evaluation import calibration
from zsad_jax.metrics import exact, streaming
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import set_scores
from zsad_jax.runs.detection import Detection
from zsad_jax.runs.threshold import Threshold
from zsad_jax.runtime import copies
from zsad_jax.types import ANOMALOUS

Masks = Mapping[str, index.Sample]


def check_run(run: run_lib.Run, *, named: bool, masks: bool) -> None:
  """Check that thresholds of a run can be set.

  Args:
    run: the run.
    named: whether they are those of a calibration.
    masks: whether masks are given.

  Raises:
    ValueError: it scores images together, needs a calibration for each
      category, or has no maps.
  """
  set_scores.check_single_images(run, "zsad calibrate")
  if run.categories and not named:
    raise ValueError(
      "A run with parameters per category has no threshold for all: give "
      "--name and --class_name, one calibration for each category."
    )
  if masks and run.method.image_only:
    raise ValueError(
      "--anomalous_masks: this method has image scores only, without maps."
    )


@dataclasses.dataclass
class Results:
  """Results of images of one kind.

  Attributes:
    score: scores of the images.
    peak: largest value of the smoothed map of each image, at its own size.
  """

  score: list[float] = dataclasses.field(default_factory=list)
  peak: list[float] = dataclasses.field(default_factory=list)

  def add(self, found: Detection) -> None:
    """Add an image."""
    self.score.append(found.score)
    if not found.image_only:
      self.peak.append(float(found.anomaly_map.max()))

  @property
  def scores(self) -> Float32[np.ndarray, " n"]:
    """Scores as an array."""
    return np.array(self.score, np.float32)

  @property
  def peaks(self) -> Float32[np.ndarray, " n"]:
    """Largest values of the maps as an array."""
    return np.array(self.peak, np.float32)


class UserImages:
  """Results from which thresholds are found; maps are kept as histograms.

  Args:
    rate: false-positive rate, in (0, 1).
    with_masks: whether masks of anomalous images are added.

  Attributes:
    normal: results of the normal images.
    anomalous: results of the anomalous images.
    raw_maps: histogram of the unsmoothed maps of normal images.
  """

  def __init__(self, rate: float, *, with_masks: bool = False) -> None:
    self.rate = rate
    self.normal, self.anomalous = Results(), Results()
    self.raw_maps = streaming.PixelState.init()
    self._pixels = streaming.PixelState.init() if with_masks else None
    self._num_masks = 0
    self._warnings: list[str] = []

  def add_normal(self, found: Detection) -> None:
    """Add a normal image."""
    self.normal.add(found)
    maps = found.raw_map[None]
    self.raw_maps.update(np.zeros(maps.shape, bool), maps)
    if self._pixels is not None:
      maps = found.anomaly_map[None]
      self._pixels.update(np.zeros(maps.shape, bool), maps)

  def add_anomalous(
    self, found: Detection, mask: Bool[np.ndarray, "h w"] | None = None
  ) -> None:
    """Add an anomalous image.

    Args:
      found: its result.
      mask: its anomalous pixels; None if not known.
    """
    self.anomalous.add(found)
    if self._pixels is not None and mask is not None:
      self._num_masks += 1
      self._pixels.update(mask[None], found.anomaly_map[None])

  @property
  def used_rate(self) -> float | None:
    """The rate, None where both thresholds have the best F1."""
    return self.rate if self._pixels is None else None

  def thresholds(
    self, map_range: tuple[float, float], details: str = ""
  ) -> Threshold:
    """Return the thresholds of scores and pixels.

    Args:
      map_range: color limits of maps.
      details: end of the descriptions, such as ", with 4 references".

    Raises:
      ValueError: the masks mark no pixel.
    """
    self._warnings = []
    score, source = self._image_threshold()
    pixel, pixel_source = self._pixel_threshold()
    return Threshold(
      score,
      *map_range,
      source=f"{source} images{details}",
      pixel=pixel,
      normal_scores=tuple(sorted(map(float, self.normal.scores))),
      pixel_source=f"{pixel_source} images{details}",
    )

  def _image_threshold(self) -> tuple[float, str]:
    normal, anomalous = self.normal.scores, self.anomalous.scores
    if not len(anomalous):
      value = self._normal_threshold(normal)
      rate = self._rate_text(len(normal))
      return value, f"{rate} false alarms, from {len(normal)} normal"
    label = np.repeat([0, 1], [len(normal), len(anomalous)])
    value = calibration.f1_threshold(label, np.concatenate([normal, anomalous]))
    counts = f"{len(normal)} normal and {len(anomalous)} anomalous"
    return float(value), f"best F1 on {counts}"

  def _pixel_threshold(self) -> tuple[float | None, str]:
    normal = self.normal.peaks
    if not len(normal):
      return None, "no maps of"
    if self._pixels is None:
      value = self._normal_threshold(normal)
      rate = self._rate_text(len(normal))
      return value, f"{rate} of images flagged, from {len(normal)} normal"
    value = calibration.pixel_f1_threshold(self._pixels)
    if value is None:
      raise ValueError(
        f"The {self._num_masks} masks of the anomalous images that were scored "
        "mark no pixel: give others, or leave out --anomalous_masks."
      )
    counts = f"{len(normal)} normal and {self._num_masks} masked"
    return value, f"best pixel F1 on {counts}"

  def _rate_text(self, number: int) -> str:
    """Return the rate; the one that holds if the images are too few for it."""
    possible = 1 / (number + 1)
    if self.rate * (1 + 1e-12) >= possible:
      return f"{100 * self.rate:g} %"
    return f"up to {100 * possible:.2g} %"

  def _normal_threshold(self, values: np.ndarray) -> float:
    value, warning = calibration.normal_threshold(values, self.rate)
    if warning and warning not in self._warnings:
      self._warnings.append(warning)
    return value

  def remarks(self, found: Threshold) -> Iterator[str]:
    """Yield what is unusual about thresholds of `thresholds`."""
    yield from (f"warning: {text}" for text in self._warnings)
    scores = self.normal.scores
    if len(scores) > 1 and np.ptp(scores) == 0:
      yield (
        f"warning: all {len(scores)} normal images have the score "
        f"{scores[0]:.6g}: the run does not distinguish them, and any other "
        "score is above or below all of them."
      )
    anomalous = self.anomalous.scores
    if not len(anomalous):
      yield (
        "note: no anomalous image was given, so that nothing is known about "
        "how many defects are found: check with images of known defects."
      )
    else:
      auroc = exact.auroc(
        np.repeat([0, 1], [len(scores), len(anomalous)]),
        np.concatenate([scores, anomalous]),
      )
      yield (
        f"AUROC of these images: {100 * auroc:.1f} % (50 %: the scores do not "
        "distinguish anomalous from normal images; 100 %: they always do)."
      )
      if auroc < 0.5:
        yield (
          "warning: the anomalous images have lower scores than the normal "
          "ones: use another run or other references."
        )
    for what, value, flagged in (
      ("score", found.image_score, "image"),
      ("pixel", found.pixel, "pixel"),
    ):
      if value is not None and value > 1:
        yield (
          f"warning: no {what} can reach the threshold {value:.8g}, because "
          f"values are at most 1 and normal images have them: no {flagged} "
          "will be labelled anomalous. Give more normal images or a larger "
          "--rate, or use another run."
        )


def find_masks(
  images: Sequence[str],
  folder: str,
  reading: str,
  *,
  skip_corrupt: bool = False,
) -> tuple[Masks, list[str]]:
  """Return the masks of anomalous images, by image, and notes about them.

  All of them are read, so that errors come before any image is scored.

  Args:
    images: paths of the anomalous images.
    folder: folder of their masks, or its URL; see `mask_files`.
    reading: how masks are read, see `masks.parse`.
    skip_corrupt: leave out a mask that cannot be used, or whose image cannot
      be read, with a note.

  Raises:
    FileNotFoundError: the folder does not exist.
    ValueError: no image has a mask, two masks belong to one image, or a mask
      is corrupt or of another size than its image.
  """
  option = masks_lib.parse(reading)
  root = pathlib.Path(copies.local(folder))
  if not root.is_dir():
    raise FileNotFoundError(
      f"--anomalous_masks: {folder} is no folder; expected the folder of the "
      "masks of the anomalous images."
    )
  paths = {pathlib.Path(image).absolute(): image for image in images}
  common = _common_folder([*paths])
  pairing = mask_files.pair([*paths], common, root)
  if not pairing.masks:
    raise ValueError(
      f"--anomalous_masks: none of the {pairing.num_files} masks in {folder} "
      f"has the name of an anomalous image, such as {images[0]}."
    )
  found = {
    paths[path]: index.Sample(
      paths[path],
      str(masks[0]),
      class_name="",
      specie_name="",
      label=ANOMALOUS,
      more_masks=tuple(map(str, masks[1:])),
      lossy_mask=option.robust,
      resize_mask=option.resize,
    )
    for path, masks in pairing.masks.items()
  }
  notes = list(pairing.notes)
  notes += _check_masks(found, skip_corrupt)
  if bare := [image for image in images if image not in found]:
    notes.append(
      f"{len(bare)} of {len(images)} anomalous images have no mask, first "
      f"{bare[0]}: the pixel threshold leaves them out."
    )
  return found, notes


def _check_masks(samples, skip_corrupt):
  """Read all masks, remove those that cannot be used, and return notes."""
  findings, notes = [], []
  for image, sample in list(samples.items()):
    try:
      findings.append((sample, preprocess.inspect_pair(sample).findings))
    except ValueError as error:
      if not skip_corrupt:
        raise
      del samples[image]
      notes.append(f"A mask is left out: {error}")
  return notes + verification.mask_notes(findings, None)


def _common_folder(paths: Sequence[pathlib.Path]) -> pathlib.Path:
  """Return the deepest folder that contains all files."""
  first = paths[0].parent
  for folder in (first, *first.parents):
    if all(folder in path.parents for path in paths):
      return folder
  return pathlib.Path(first.anchor)
