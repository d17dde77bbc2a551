"""Result files of `predict`: score table, overlays and raw anomaly maps."""

import collections
import csv
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
from zsad_jax.runtime import file_names, files

_COLUMNS = ("image", "score", "label", "threshold", "zero_shot_score")


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


def save_scores(output: pathlib.Path, results: Sequence[ImageResult]) -> None:
  """Write scores.csv, with zero-shot scores where there are references."""
  rows = [_row(r.path, r.detection) for r in results]
  text = io.StringIO(newline="")
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(_COLUMNS[: len(rows[0]) if rows else None])
  writer.writerows(rows)
  files.write_text(output / "scores.csv", text.getvalue())


def _row(path, detection):
  """Return a line of scores.csv."""
  row = [path, f"{detection.score:.6g}", detection.label]
  row.append(f"{detection.threshold:.6g}")
  if detection.zero_shot_score is not None:
    row.append(f"{detection.zero_shot_score:.6g}")
  return row


def save_references(
  output: pathlib.Path, class_name: str, paths: Sequence[str]
) -> None:
  """Write references.json: {class: [path, ...]}, with absolute paths."""
  absolute = [os.path.abspath(path) for path in paths]
  text = json.dumps({class_name: absolute}, indent=1) + "\n"
  files.write_text(output / "references.json", text)
