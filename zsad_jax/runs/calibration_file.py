"""File of a calibration: the content of `calibrations/NAME.json` of a run."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from zsad_jax.datasets import index
from zsad_jax.inference import tiling as tiling_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import file_names, files

_FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


@dataclasses.dataclass(frozen=True)
class Reference:
  """Reference image of a calibration.

  Attributes:
    name: path of the original.
    file: name of the copy.
    sha256: digest of its content.
    box: left, upper, right and lower border of the part that is the reference;
      None: the whole image.
  """

  name: str
  file: str
  sha256: str
  box: index.Box | None = None


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Thresholds of a product, and what scores are computed with.

  Attributes:
    name: its name, see `check_name`.
    threshold: thresholds of scores and pixels, and color limits.
    class_name: object class in the images.
    tiling: the tiles of images; None: images are scored as a whole.
    references: normal images to compare with.
    rate: false-positive rate of a threshold from normal images; None if both
      thresholds have the best F1.
    num_normal: number of normal images.
    num_anomalous: number of anomalous images.
    date: time of the calibration, in UTC (ISO 8601).
    run_digest: digest of the run, see `run_digest`.
  """

  name: str
  threshold: threshold_lib.Threshold
  class_name: str
  tiling: tiling_lib.Tiling | None
  references: tuple[Reference, ...]
  rate: float | None
  num_normal: int
  num_anomalous: int
  date: str
  run_digest: str


def hint(path: pathlib.Path) -> str:
  """Return what to do about a calibration that cannot be used."""
  return (
    "Make the calibration again: zsad calibrate "
    f"--workdir={path.parent.parent} --name={path.stem} --overwrite with "
    "normal images."
  )


def to_text(calibration: Calibration, path: pathlib.Path) -> str:
  """Return the content of the file of a calibration.

  Args:
    calibration: its name is that of the file.
    path: the file, for the message.

  Raises:
    ValueError: a number is not finite.
  """
  values = dataclasses.asdict(calibration)
  del values["name"]
  values |= {"threshold": calibration.threshold.to_values(path)}
  return json.dumps(values, indent=1) + "\n"


def read(path: pathlib.Path) -> Calibration:
  """Return the calibration in a file, the content of which is checked.

  Raises:
    ValueError: a field is missing, unknown, or not of its type.
    OSError: the file cannot be read.
  """
  remedy = hint(path)
  try:
    values = files.read_json_object(path)
  except ValueError as error:
    raise ValueError(f"{error} {remedy}") from error
  known = [f.name for f in dataclasses.fields(Calibration) if f.name != "name"]
  for field in known:
    if field not in values:
      raise ValueError(f"{path} is corrupt: {field} is missing. {remedy}")
  if unknown := sorted(values.keys() - set(known)):
    raise ValueError(f"{path}: the field {unknown[0]!r} is unknown. {remedy}")
  for field, problem in _problems(values):
    shown = file_names.shown(str(values[field])[:40])
    raise ValueError(
      f"{path}: {field} is {shown}, expected {problem}. {remedy}"
    )
  tiling = values["tiling"]
  try:
    values["tiling"] = tiling and tiling_lib.Tiling(**tiling)
  except ValueError as error:
    raise ValueError(f"{path}: tiling: {error} {remedy}") from error
  values["threshold"] = threshold_lib.from_values(
    values["threshold"], path, remedy
  )
  values["references"] = tuple(
    Reference(**each | {"box": each["box"] and tuple(each["box"])})
    for each in values["references"]
  )
  return Calibration(path.stem, **values)


def _problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
  """Yield each field that has another type, and what is expected."""
  for field in ("class_name", "date", "run_digest"):
    if not isinstance(values[field], str):
      yield field, "text"
  for field in ("num_normal", "num_anomalous"):
    if not _is_count(values[field]):
      yield field, "a number of images"
  if not isinstance(values["threshold"], dict):
    yield "threshold", "an object"
  rate = values["rate"]
  if rate is not None and not (isinstance(rate, float) and 0 < rate < 1):
    yield "rate", "null or a number in (0, 1)"
  tiling = values["tiling"]
  if tiling is not None and not (
    isinstance(tiling, dict)
    and tiling.keys() == {"size", "overlap"}
    and _is_count(tiling["size"])
    and isinstance(tiling["overlap"], (int, float))
  ):
    yield "tiling", "null or an object of size and overlap"
  references = values["references"]
  if not (isinstance(references, list) and all(map(_is_reference, references))):
    yield "references", "a list of objects of name, file, sha256 and box"


def _is_count(value: Any) -> bool:
  is_number = isinstance(value, int) and not isinstance(value, bool)
  return is_number and 0 <= value < 2**53


def _is_reference(value: Any) -> bool:
  """Return whether a value is a reference whose file is in the folder."""
  if not isinstance(value, dict) or value.keys() != {
    field.name for field in dataclasses.fields(Reference)
  }:
    return False
  texts = [value[field] for field in ("name", "file", "sha256")]
  box = value["box"]
  is_box = isinstance(box, list) and len(box) == 4 and all(map(_is_count, box))
  return (
    all(isinstance(text, str) for text in texts)
    and bool(_FILE.fullmatch(value["file"]))
    and (box is None or is_box)
  )
