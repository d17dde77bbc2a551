"""Results of `predict`: names of the result files, and the references."""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

from zsad_jax.runs import detector as detector_lib
from zsad_jax.runtime import copies, file_names, files

REFERENCES = "references.json"
OVERLAY, MAP, MASK = "_overlay.png", "_map.npy", "_mask.png"


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
  whole = [os.path.abspath(i) for i in images]
  common = os.path.commonpath([os.path.dirname(path) for path in whole])
  relative = [os.path.relpath(path, common) for path in whole]
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
    for ending in (OVERLAY, MASK):
      path = output / f"{name}{ending}"
      if os.path.realpath(path) in scored:
        raise ValueError(
          f"{path} is an image that is scored, and would be overwritten by a "
          "result; give another folder by --output."
        )


def absolute(path: str | os.PathLike[str]) -> str:
  """Return the path that results state: absolute, or the URL of a copy."""
  return copies.origin(os.path.abspath(path))


def save_references(
  output: pathlib.Path, class_name: str, paths: Sequence[str]
) -> None:
  """Write references.json: {class: [path, ...]}, absolute paths or URLs."""
  listed = {class_name: [absolute(path) for path in paths]}
  text = json.dumps(listed, indent=1) + "\n"
  files.write_text(output / REFERENCES, text)
