"""Texts, tables and overlays of the page, for thresholds that users choose."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import PIL.Image

from zsad_jax.demo import scoring
from zsad_jax.inference import regions as regions_lib
from zsad_jax.reporting import overlays, region_files
from zsad_jax.runs.detector import Detection

STEP = 0.0001  # Of the slider of the score.
_DIGITS = 12  # Of positions of sliders; more are errors of rounding.
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


class Scale(NamedTuple):
  """A slider.

  Attributes:
    low: its lowest value.
    high: its highest value.
    step: distance of two values.
    stored: its value for the threshold of the detector.
  """

  low: float
  high: float
  step: float
  stored: float

  def exact(self, value: float) -> float:
    """Return the value of the slider, or the threshold that it is nearest to.

    A browser rounds to steps; labels have to be those of `zsad predict`.

    Args:
      value: of the slider.
    """
    near = abs(value - self.stored) <= 0.5001 * self.step
    return self.stored if near else value

  @property
  def start(self) -> float:
    """Position of the slider for the threshold, rounded to a step."""
    return round(round(self.stored / self.step) * self.step, _DIGITS)


def scales(batch: scoring.Batch) -> tuple[Scale, Scale]:
  """Return the sliders of the score and of the pixels.

  That of the pixels ends at the largest value of all maps, which can be far
  below 1. Without a pixel threshold it is there at first.

  Args:
    batch: the results.
  """
  if batch.limits is None:
    return Scale(0.0, 1.0, STEP, 0.0), Scale(0.0, 1.0, STEP, 1.0)
  score, pixel = batch.limits.image_score, batch.limits.pixel
  largest = [float(item.detection.raw_map.max()) for item in batch.scored]
  high = max([*largest, pixel or 0.0]) or 1.0
  step = 10.0 ** math.floor(math.log10(high / 200))  # 200 to 2000 steps.
  high = round(math.ceil(high / step) * step, _DIGITS)
  return (
    Scale(min(0.0, score), max(1.0, score), STEP, score),
    Scale(0.0, high, step, high if pixel is None else pixel),
  )


def chosen(batch: scoring.Batch, score: float, pixel: float) -> Chosen:
  """Return the thresholds at the positions of the sliders.

  Args:
    batch: the results.
    score: position of the slider of the score.
    pixel: position of the slider of the pixels.
  """
  first, second = scales(batch)
  at, limits = second.exact(pixel), batch.limits
  none = limits is None or (limits.pixel is None and at == second.stored)
  return Chosen(first.exact(score), None if none else at)


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
