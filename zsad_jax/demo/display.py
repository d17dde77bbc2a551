"""Texts, tables and overlays of the page, for thresholds that users choose."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import PIL.Image

from zsad_jax.demo import scoring
from zsad_jax.inference import regions as regions_lib
from zsad_jax.reporting import overlays, region_files
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runs.detector import Detection

STEP = 0.0001  # Of the sliders.
NO_PIXEL = 1.0  # Position of the slider without a pixel threshold.
RESULT_COLUMNS = ("image", "label", "score", "normalized", "percentile")
REGION_COLUMNS = region_files.COLUMNS[1:]
NO_REGIONS = (
  "The run has no pixel threshold: choose one by the slider, or set one by "
  "`zsad calibrate` with normal images."
)


@dataclasses.dataclass(frozen=True)
class Chosen:
  """Thresholds that a user has chosen.

  Attributes:
    score: of the image.
    pixel: of the map; None for none.
  """

  score: float
  pixel: float | None


def positions(limits: threshold_lib.Threshold) -> tuple[float, float]:
  """Return the positions of the two sliders for the thresholds of a detector.

  Args:
    limits: its thresholds.
  """
  pixel = NO_PIXEL if limits.pixel is None else limits.pixel
  return limits.image_score, pixel


def interval(value: float) -> tuple[float, float]:
  """Return the ends of a slider that has a value, [0, 1] if it is there."""
  return min(0.0, value), max(1.0, value)


def chosen(
  score: float, pixel: float, limits: threshold_lib.Threshold
) -> Chosen:
  """Return the thresholds at the positions of the sliders.

  A slider has steps: at the position of a stored threshold the exact value is
  used, so that labels are those of `zsad predict`.

  Args:
    score: position of the slider of the score.
    pixel: position of the slider of the pixels.
    limits: thresholds of the detector.
  """
  stored_score, stored_pixel = positions(limits)
  if abs(score - stored_score) <= STEP:
    score = stored_score
  if abs(pixel - stored_pixel) <= STEP:
    return Chosen(score, limits.pixel)
  return Chosen(score, pixel)


def with_thresholds(detection: Detection, values: Chosen) -> Detection:
  """Return a result with other thresholds; the model is not run.

  Args:
    detection: the result.
    values: the thresholds.
  """
  limits = dataclasses.replace(
    detection.limits, image_score=values.score, pixel=values.pixel
  )
  return dataclasses.replace(detection, limits=limits)


@dataclasses.dataclass(frozen=True, eq=False)
class View:
  """Texts and images that show a result.

  Attributes:
    verdict: Markdown.
    overlay: the image with map, outlines and caption.
    regions: rows of `REGION_COLUMNS`.
    note: Markdown about the regions.
  """

  verdict: str
  overlay: PIL.Image.Image
  regions: list[list[Any]]
  note: str


def view(item: scoring.Scored, values: Chosen) -> View:
  """Return what is shown of an image.

  Args:
    item: the image and its result.
    values: the thresholds.
  """
  stored = item.detection.threshold == values.score
  found = with_thresholds(item.detection, values)
  rows, note = _regions(found)
  return View(
    _verdict(found, stored),
    overlays.draw(item.image, found, side=0),
    rows,
    note,
  )


def _verdict(found, stored):
  sign = "≥" if found.label == "anomalous" else "<"
  origin = "" if stored else ", chosen by the slider"
  text = (
    f"**{found.label}**: score {found.score:.6g} {sign} threshold "
    f"{found.threshold:.6g}{origin}"
  )
  if found.zero_shot_score is not None:
    text += f"; without references {found.zero_shot_score:.6g}"
  if (percentile := found.normal_percentile) is not None:
    text += f"; higher than {percentile:.3g} % of the normal images"
  return f"{text}."


def _regions(found) -> tuple[list[list[Any]], str]:
  """Return the rows of the regions, and a note."""
  if found.limits.pixel is None:
    return [], NO_REGIONS
  regions = regions_lib.find(found.anomaly_map, found.mask)
  rows = []
  for record in region_files.records(regions):
    rounded = {name: f"{record[name]:.6g}" for name in ("peak", "mean")}
    rows.append([{**record, **rounded}[name] for name in REGION_COLUMNS])
  height, width = found.image_size
  size = f"{width} x {height} pixels"
  note = f"{_count(regions.count, 'region')} in an image of {size}"
  if regions.count > len(rows):
    note += f"; the {len(rows)} with the largest peaks are listed"
  return rows, f"{note}."


def result_rows(
  items: Sequence[scoring.Scored], values: Chosen
) -> list[list[Any]]:
  """Return a row of `RESULT_COLUMNS` for each image.

  Args:
    items: the images and their results.
    values: the thresholds.
  """
  rows = []
  for item in items:
    found = with_thresholds(item.detection, values)
    percentile = found.normal_percentile
    rows.append(
      [
        item.name,
        found.label,
        f"{found.score:.6g}",
        f"{found.normalized_score:.4f}",
        "" if percentile is None else f"{percentile:.3g}",
      ]
    )
  return rows


def summary(batch: scoring.Batch, values: Chosen) -> str:
  """Return the line above the results, and the images without one.

  Args:
    batch: the results.
    values: the thresholds.
  """
  labels = [
    with_thresholds(item.detection, values).label for item in batch.scored
  ]
  line = (
    f"{_count(len(labels), 'image')}, {labels.count('anomalous')} anomalous"
  )
  if batch.num_references:
    line += f", compared with {_count(batch.num_references, 'reference')}"
  return f"{line}.\n\n{left_out(batch)}"


def left_out(batch: scoring.Batch) -> str:
  """Return why images have no result; "" if all have one."""
  if not batch.messages:
    return ""
  lines = [f"- {plain(message)}" for message in batch.messages]
  return "\n".join(["**Not scored:**", *lines])


def _count(number: int, noun: str) -> str:
  return f"{number} {noun}{'s' * (number != 1)}"


def plain(text: str) -> str:
  """Return text, such as the name of a file, without markup."""
  return "".join("\\" + c if c in "\\`*_{}[]()<>#+-!|~$&" else c for c in text)
