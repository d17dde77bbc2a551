"""Result files of `predict`: score table, overlays and raw anomaly maps."""

import collections
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from zsad_jax.datasets import preprocess
from zsad_jax.reporting import figures
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import (
  copies,
  distributed,
  file_names,
  files,
  stopping,
  text_files,
)

SCORES, PARTIAL_SCORES = "scores.csv", "scores.partial.csv"
_COLUMNS = ("image", "score", "label", "threshold", "zero_shot_score")
_STATUS = "status"


@dataclasses.dataclass(frozen=True, eq=False)
class ImageResult:
  """Result for one image file.

  Attributes:
    path: the image.
    name: name of its result files, without ending.
    detection: its scores and map.
  """

  path: str
  name: str
  detection: detector_lib.Detection


def output_names(images: Sequence[str]) -> list[str]:
  """Return distinct names of result files, without ending.

  A name is the path below the common folder, with "/" as "_". Long names, names
  that some systems do not allow and names that would be equal have a digest,
  see `file_names`.

  Args:
    images: distinct paths.
  """
  if len(images) == 1:
    return file_names.unique_names([pathlib.Path(images[0]).stem], images)
  absolute = [os.path.abspath(i) for i in images]
  common = os.path.commonpath([os.path.dirname(path) for path in absolute])
  relative = [os.path.relpath(path, common) for path in absolute]
  flat = [path.replace(os.sep, "_") for path in relative]
  stems = [os.path.splitext(path)[0] for path in flat]
  # a.png and a.jpg in the same folder keep their endings.
  counts = collections.Counter(map(file_names.folded, stems))
  names = [
    full if counts[file_names.folded(stem)] > 1 else stem
    for full, stem in zip(flat, stems)
  ]
  return file_names.unique_names(names, relative)


def check_replaces_no_image(
  output: pathlib.Path, images: Sequence[str]
) -> None:
  """Check that no result would overwrite an image that is scored.

  Raises:
    ValueError: an image in `output` has the name of a result.
  """
  scored = {os.path.realpath(image) for image in images}
  for name in output_names(images):
    path = output / f"{name}_overlay.png"
    if os.path.realpath(path) in scored:
      raise ValueError(
        f"{path} is an image that is scored, and would be overwritten by a "
        "result; give another folder by --output."
      )


def overlay(
  result: ImageResult, limits: threshold_lib.Threshold
) -> Image.Image:
  """Draw the anomaly map over the image, at the size of the image.

  Args:
    result: the image and its map.
    limits: color limits of the map.
  """
  blended = figures.overlay(
    np.asarray(preprocess.open_image(result.path)),
    result.detection.anomaly_map,
    low=limits.map_low,
    high=limits.map_high,
  )
  return Image.fromarray(blended)


def save_overlay(
  output: pathlib.Path, result: ImageResult, limits: threshold_lib.Threshold
) -> None:
  """Write <name>_overlay.png; see `overlay`."""
  path = output / f"{result.name}_overlay.png"
  figures.save_png(path, overlay(result, limits))


def save_map(output: pathlib.Path, result: ImageResult) -> None:
  """Write <name>_map.npy: the unsmoothed map, float32 (s, s), in [0, 1]."""
  data = io.BytesIO()
  np.save(data, result.detection.raw_map)
  files.write_bytes(output / f"{result.name}_map.npy", data.getvalue())


class ScoreTable:
  """The table of scores, a context in which its rows are written.

  Rows are appended to scores.partial.csv. At the end, also at an error or a
  signal, the images without a row get one with the reason as status, and the
  file is renamed to scores.csv. Only a process that is killed leaves
  scores.partial.csv. Of several processes, only the primary one writes.

  Args:
    output: folder of the table; created if missing.
    images: all images that are to be scored, in order.
    has_references: whether there is a zero-shot score as well.
  """

  def __init__(
    self, output: pathlib.Path, images: Sequence[str], *, has_references: bool
  ) -> None:
    self._partial, self._final = output / PARTIAL_SCORES, output / SCORES
    self._images = images
    self._columns = [*_COLUMNS[: None if has_references else -1], _STATUS]
    self._rows = 0
    self.scored = 0

  def __enter__(self) -> "ScoreTable":
    primary = distributed.is_primary()
    if primary:
      self._partial.parent.mkdir(parents=True, exist_ok=True)
    # Bytes that are not UTF-8, as \\udcdf: the table itself is UTF-8.
    self._file = open(
      self._partial if primary else os.devnull,
      "w",
      encoding="utf-8",
      errors="backslashreplace",
      newline="",
    )
    self._writer = text_files.CsvWriter(self._file)
    self._write(self._columns)
    self._rows = 0
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: object,
  ) -> None:
    missing = len(self._images) - self._rows
    try:
      while self._rows < len(self._images):
        self.skip(f"not scored: {_one_line(error)}")
      self._file.close()
      if distributed.is_primary():
        os.replace(self._partial, self._final)
    except OSError:  # Such as a full disk, which is the error already.
      if error is None:
        raise
      return
    if error is not None and missing:
      error.add_note(
        f"{self._final} has the scores of {self.scored} of "
        f"{len(self._images)} images."
      )

  def add(self, result: ImageResult) -> None:
    """Write the row of the next image."""
    found = result.detection
    row = [copies.origin(result.path), f"{found.score:.6g}", found.label]
    row.append(f"{found.threshold:.6g}")
    if _COLUMNS[-1] in self._columns:
      assert found.zero_shot_score is not None
      row.append(f"{found.zero_shot_score:.6g}")
    with stopping.postponed():
      self._write([*row, "scored"])
      self.scored += 1

  def skip(self, status: str) -> None:
    """Write the row of the next image, which has no score."""
    empty = [""] * (len(self._columns) - 2)
    with stopping.postponed():
      image = copies.origin(self._images[self._rows])
      self._write([image, *empty, status])

  def _write(self, row):
    self._writer.writerow(row)
    self._file.flush()
    self._rows += 1


def _one_line(error) -> str:
  """Return the first line of an error's text."""
  return (str(error).splitlines() or [type(error).__name__])[0]


def save_references(
  output: pathlib.Path, class_name: str, paths: Sequence[str]
) -> None:
  """Write references.json: {class: [path, ...]}, absolute paths or URLs."""
  absolute = [copies.origin(os.path.abspath(path)) for path in paths]
  text = json.dumps({class_name: absolute}, indent=1) + "\n"
  files.write_text(output / "references.json", text)
