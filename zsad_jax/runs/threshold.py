"""Thresholds of a run, and the range of its anomaly maps for display."""

import dataclasses
import json
import math
import pathlib
import sys

from zsad_jax.runtime import files

FILE = "threshold.json"
_LARGEST = sys.float_info.max
FEW_SHOT_FILE = "threshold_few_shot.json"


@dataclasses.dataclass(frozen=True)
class Threshold:
  """Decision threshold and color limits of anomaly maps.

  Attributes:
    image_score: images with at least this score are labelled anomalous.
    map_low: anomaly-map value of the lowest color.
    map_high: anomaly-map value of the highest color.
    source: description of how they were found.
  """

  image_score: float
  map_low: float
  map_high: float
  source: str

  def write(self, workdir: pathlib.Path, file: str = FILE) -> None:
    """Write the threshold into the folder of the run.

    Raises:
      ValueError: a number is not finite.
    """
    values = dataclasses.asdict(self)
    for name, value in values.items():
      if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
          f"{workdir / file} is not written: {name} is {value}. Scores or "
          "maps that are not finite are the usual reason."
        )
    text = json.dumps(values, indent=1) + "\n"
    files.write_text(workdir / file, text)


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
      f"{path} does not exist: the auxiliary data had no normal images to "
      "serve as references. Give a --threshold (in Python, `threshold=`)."
    )
  if (workdir / "ensemble.json").is_file():
    raise FileNotFoundError(
      f"{path} does not exist: not all runs of the ensemble have a threshold. "
      f"Set one: python -m zsad_jax.calibrate --workdir={workdir}."
    )
  raise FileNotFoundError(
    f"{path} does not exist: training was not finished. Run the training "
    "command again; it goes on where it stopped."
  )


def _from_file(path):
  """Return the threshold in a file, the content of which is checked."""
  hint = (
    f"Set it again: python -m zsad_jax.calibrate --workdir={path.parent}, or "
    "remove the file and run the training command again."
  )
  try:
    values = files.read_json_object(path)
  except ValueError as error:
    raise ValueError(f"{error} {hint}") from error
  fields = {field.name: field for field in dataclasses.fields(Threshold)}
  for name, field in fields.items():
    if name not in values:
      if field.default is not dataclasses.MISSING:
        continue
      raise ValueError(f"{path} is corrupt: {name} is missing. {hint}")
    value = values[name]
    if field.type in (str, "str") and not isinstance(value, str):
      raise ValueError(f"{path}: {name} is {value!r}, expected text. {hint}")
    if field.type in (float, "float") and not _is_finite(value):
      raise ValueError(
        f"{path}: {name} is {str(value)[:40]!r}, expected a finite number. "
        f"{hint}"
      )
    if field.type in (float, "float"):
      values[name] = float(value)
  if unknown := sorted(values.keys() - fields.keys()):
    raise ValueError(f"{path}: the field {unknown[0]!r} is unknown. {hint}")
  if values["map_low"] > values["map_high"]:
    raise ValueError(f"{path}: map_low is larger than map_high. {hint}")
  return Threshold(**values)


def _is_finite(value):
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return number and abs(value) <= _LARGEST


def read_or_replace(
  workdir: pathlib.Path, *, few_shot: bool, image_score: float | None
) -> Threshold:
  """Read the threshold of a run, with another image score if one is given.

  Args:
    workdir: folder of the run.
    few_shot: read the threshold of scores with references. With an
      `image_score`, that of zero-shot scores serves where there is none.
    image_score: replaces the stored one.

  Raises:
    FileNotFoundError: the run has no threshold.
  """
  try:
    stored = read(workdir, few_shot=few_shot)
  except FileNotFoundError:
    if image_score is None:
      raise
    stored = read(workdir)
  if image_score is None:
    return stored
  return dataclasses.replace(stored, image_score=image_score, source="given")


def check_image_score(image_score: float) -> None:
  """Check a threshold that is given by the user.

  Raises:
    ValueError: it is NaN: no score would exceed it.
  """
  if math.isnan(image_score):
    raise ValueError("The threshold is NaN; expected a number.")
