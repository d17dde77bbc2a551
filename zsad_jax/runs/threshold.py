"""Thresholds of a run, and the range of its anomaly maps for display."""

import bisect
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from zsad_jax.runs import finished
from zsad_jax.runtime import files

FILE = "threshold.json"
_LARGEST = sys.float_info.max
AUXILIARY = "the auxiliary images"  # In a `source`: those of the training.
TRAINING_NOTE = (
  "the threshold was set on the images of the training, not on yours: many "
  "normal images may be labelled anomalous. Set it with normal images of yours "
  "by `zsad calibrate`."
)
FEW_SHOT_FILE = "threshold_few_shot.json"


@dataclasses.dataclass(frozen=True)
class Threshold:
  """Decision threshold and color limits of anomaly maps.

  Attributes:
    image_score: images with at least this score are labelled anomalous.
    map_low: anomaly-map value of the lowest color.
    map_high: anomaly-map value of the highest color.
    source: description of how they were found.
    pixel: pixels whose value in the smoothed map is at least this are
      anomalous; None for a run that was trained before there was one.
    normal_scores: sorted scores of the normal images that it was set with;
      empty if it was set with other images.
    pixel_source: description of how `pixel` was found.
  """

  image_score: float
  map_low: float
  map_high: float
  source: str
  pixel: float | None = None
  normal_scores: tuple[float, ...] = ()
  pixel_source: str = ""

  @property
  def is_of_training(self) -> bool:
    """Whether it was set on the auxiliary images of the training."""
    return AUXILIARY in self.source

  def normalized(self, score: float) -> float:
    """Return a score in [0, 1] on a scale on which the threshold is 0.5.

    It is linear from 0 to the threshold and from there to 1.

    Args:
      score: in [0, 1].
    """
    limit = self.image_score
    if score >= limit:
      above = (score - limit) / (1 - limit) if limit < 1 else 0.0
      return 0.5 + 0.5 * min(above, 1.0)
    return 0.5 * max(score, 0.0) / limit if limit > 0 else 0.0

  def normal_percentile(self, score: float) -> float | None:
    """Return the percentage of `normal_scores` below a score; None if empty."""
    if not self.normal_scores:
      return None
    below = bisect.bisect_left(self.normal_scores, score)
    return 100 * below / len(self.normal_scores)

  def write(self, workdir: pathlib.Path, file: str = FILE) -> None:
    """Write the threshold into the folder of the run.

    Raises:
      ValueError: a number is not finite.
    """
    text = json.dumps(self.to_values(workdir / file), indent=1) + "\n"
    files.write_text(workdir / file, text)

  def to_values(self, path: pathlib.Path) -> dict[str, Any]:
    """Return the content of a file; see `from_values`.

    Args:
      path: the file, for the message.

    Raises:
      ValueError: a number is not finite.
    """
    values = dataclasses.asdict(self)
    for name, value in values.items():
      numbers = value if isinstance(value, tuple) else (value,)
      if bad := [
        x for x in numbers if isinstance(x, float) and not math.isfinite(x)
      ]:
        raise ValueError(
          f"{path} is not written: {name} is {bad[0]}. Scores or maps that "
          "are not finite are the usual reason."
        )
    return values


def read(workdir: pathlib.Path, *, few_shot: bool = False) -> Threshold:
  """Read the threshold of a run.

  Args:
    workdir: folder of the run.
    few_shot: read the threshold of scores with references.

  Raises:
    FileNotFoundError: the run has none.
    ValueError: the file is corrupt; the message has the path and the field.
  """
  path = workdir / (FEW_SHOT_FILE if few_shot else FILE)
  if path.is_file():
    return _from_file(path)
  if few_shot and (workdir / FILE).is_file():
    raise FileNotFoundError(
      f"{path} does not exist: the auxiliary data had no normal images in "
      "their training part to serve as references. Set a threshold: zsad "
      f"calibrate --workdir={workdir} --references=few_good/ good/; or give a "
      "--threshold (in Python, `threshold=`)."
    )
  if (workdir / "ensemble.json").is_file():
    raise FileNotFoundError(
      f"{path} does not exist: not all runs of the ensemble have a threshold. "
      f"Set one: zsad calibrate --workdir={workdir}."
    )
  if (workdir / finished.FILE).is_file():
    raise FileNotFoundError(
      f"{path} does not exist: no threshold could be set after the training. "
      f"Set one: zsad calibrate --workdir={workdir} --name=NAME good/, with "
      "--references=few_good/ for a method that compares with references."
    )
  raise FileNotFoundError(
    f"{path} does not exist: training was not finished. Run the training "
    "command again; it goes on where it stopped."
  )


def _from_file(path):
  """Return the threshold in a file, the content of which is checked."""
  hint = (
    f"Set it again: zsad calibrate --workdir={path.parent}, or "
    "remove the file and run the training command again."
  )
  try:
    values = files.read_json_object(path)
  except ValueError as error:
    raise ValueError(f"{error} {hint}") from error
  return from_values(values, path, hint)


def from_values(
  values: Mapping[str, Any], path: pathlib.Path, hint: str
) -> Threshold:
  """Return the threshold that a file contains.

  Args:
    values: content of the file, by field.
    path: the file, for messages.
    hint: what to do about an error, for messages.

  Raises:
    ValueError: a field is missing, unknown, or not of its type.
  """
  fields = {field.name: field for field in dataclasses.fields(Threshold)}
  checked = {}
  for name, field in fields.items():
    if name in values:
      checked[name] = _checked(name, values[name], path, hint)
    elif field.default is dataclasses.MISSING:
      raise ValueError(f"{path} is corrupt: {name} is missing. {hint}")
  if unknown := sorted(values.keys() - fields.keys()):
    raise ValueError(f"{path}: the field {unknown[0]!r} is unknown. {hint}")
  found = Threshold(**checked)
  if found.map_low > found.map_high:
    raise ValueError(f"{path}: map_low is larger than map_high. {hint}")
  return found


def _checked(name, value, path, hint) -> Any:
  """Return the value of a field, after checking its type."""
  if name in ("source", "pixel_source"):
    if not isinstance(value, str):
      raise ValueError(f"{path}: {name} is {value!r}, expected text. {hint}")
    return value
  if name == "normal_scores":
    if not (isinstance(value, list) and all(map(_is_finite, value))):
      raise ValueError(
        f"{path}: {name} is {str(value)[:40]!r}, expected a list of finite "
        f"numbers. {hint}"
      )
    return tuple(sorted(map(float, value)))
  if name == "pixel" and value is None:
    return None
  if not _is_finite(value):
    raise ValueError(
      f"{path}: {name} is {str(value)[:40]!r}, expected a finite number. {hint}"
    )
  return float(value)


def _is_finite(value):
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return number and abs(value) <= _LARGEST


def read_or_replace(
  workdir: pathlib.Path,
  *,
  few_shot: bool,
  image_score: float | None,
  given: Threshold | None = None,
) -> Threshold:
  """Read the threshold of a run, with another image score if one is given.

  Args:
    workdir: folder of the run.
    few_shot: read the threshold of scores with references.
    image_score: replaces the stored one. The rest is that of zero-shot scores
      where the run has none of scores with references, and without a pixel
      threshold, over the whole range of maps, where it has none at all.
    given: replaces the stored threshold.

  Raises:
    FileNotFoundError: the run has no threshold, and none is given.
  """
  stored = given
  for kind in (few_shot, False):
    if stored is None:
      try:
        stored = read(workdir, few_shot=kind)
      except FileNotFoundError:
        if image_score is None:
          raise
  if image_score is None:
    assert stored is not None
    return stored
  stored = stored or Threshold(image_score, 0.0, 1.0, "given")
  return dataclasses.replace(stored, image_score=image_score, source="given")


def check_image_score(image_score: float) -> None:
  """Check a threshold that is given by the user.

  Raises:
    ValueError: it is NaN: no score would exceed it.
  """
  if math.isnan(image_score):
    raise ValueError("The threshold is NaN; expected a number.")
