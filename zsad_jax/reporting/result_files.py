"""Files that `predict` writes for one image, and its row in the table."""

import dataclasses
import io
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from PIL import Image

from zsad_jax.datasets import preprocess
from zsad_jax.inference import regions as regions_lib
from zsad_jax.reporting import figures, overlays, predictions, region_files
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import files

SCORES = "scores.csv"
OUTPUTS = ("scores", "overlays", "maps", "masks", "regions")
STATUS = "status"
SCORED = "scored"
NOTE = (
  "note: masks and regions are left out, because the run has no pixel "
  "threshold. `zsad calibrate` sets one from normal images."
)
_OF_PIXELS = ("masks", "regions")
# Column of each kind of file, and the ending of its name.
_FILES = {
  "overlays": ("overlay", predictions.OVERLAY),
  "maps": ("map", predictions.MAP),
  "masks": ("mask", predictions.MASK),
}


def check_names(names: Sequence[str]) -> None:
  """Check the names of --save.

  Raises:
    ValueError: there is none, one is unknown, or one is repeated.
  """
  for name in names:
    if name not in OUTPUTS:
      raise ValueError(
        f"--save: {name!r} is unknown; expected some of {','.join(OUTPUTS)}."
      )
    if names.count(name) > 1:
      raise ValueError(f"--save: {name!r} is repeated; name it once.")
  if not names:
    raise ValueError(
      f"--save names nothing; expected some of {','.join(OUTPUTS)}."
    )


def choose(
  names: Sequence[str] | None,
  limits: threshold_lib.Threshold,
  *,
  image_only: bool = False,
) -> frozenset[str]:
  """Return the outputs to write; the scores are always part of them.

  Args:
    names: some of `OUTPUTS`; None for all that the thresholds allow.
    limits: thresholds of the run.
    image_only: whether the method has image scores only.

  Raises:
    ValueError: a name is invalid, maps are asked for where there are none, or
      masks or regions are asked for without a
      pixel threshold.
  """
  if image_only:
    check_names(names or ("scores",))
    if other := sorted({*(names or ())} - {"scores"}):
      raise ValueError(
        f"--save={other[0]}: this method has image scores only, without maps; "
        "use --save=scores."
      )
    return frozenset({"scores"})
  if names is None:
    unavailable = _OF_PIXELS if limits.pixel is None else ()
    return frozenset(OUTPUTS).difference(unavailable)
  check_names(names)
  if limits.pixel is None and {*names} & {*_OF_PIXELS}:
    raise ValueError(
      "--save: masks and regions need a pixel threshold, which the run does "
      "not have. Set one by `zsad calibrate` with normal images, or leave "
      "them out."
    )
  return frozenset(names) | {"scores"}


def columns(
  save: Collection[str],
  limits: threshold_lib.Threshold,
  *,
  has_references: bool,
) -> list[str]:
  """Return the columns of the table of scores.

  Args:
    save: see `choose`.
    limits: thresholds of the run.
    has_references: whether there may be a zero-shot score as well.
  """
  return [
    *("image", "score", "label", "threshold", "normalized_score"),
    *["normal_percentile"] * bool(limits.normal_scores),
    *["zero_shot_score"] * has_references,
    *["regions", "largest_region_area"] * ("regions" in save),
    *(column for name, (column, _) in _FILES.items() if name in save),
    STATUS,
  ]


def remove_earlier(
  output: pathlib.Path, save: Collection[str], *, has_references: bool
) -> None:
  """Remove tables of an earlier call that the new ones would contradict.

  Args:
    output: folder of the results.
    save: see `choose`.
    has_references: whether there will be a list of references.
  """
  if not (output / SCORES).is_file():
    return
  names = [] if "regions" in save else [region_files.CSV, region_files.JSON]
  names += [] if has_references else [predictions.REFERENCES]
  for name in names:
    (output / name).unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageRow:
  """Row of one image.

  Attributes:
    values: by column; None where there is nothing.
    found: its regions, where they are asked for.
  """

  values: dict[str, str | int | float | None]
  found: regions_lib.Found | None = dataclasses.field(default=None, repr=False)

  @property
  def regions(self) -> list[dict[str, Any]]:
    """Regions by decreasing peak; see `region_files.records`."""
    return [] if self.found is None else region_files.records(self.found)

  def cells(self) -> list[str]:
    """Return the cells of the table, numbers with six significant digits."""
    return [
      ""
      if value is None
      else f"{value:.6g}"
      if isinstance(value, float)
      else str(value)
      for value in self.values.values()
    ]


def unscored(names: Sequence[str], image: str, status: str) -> ImageRow:
  """Return the row of an image without a score.

  Args:
    names: see `columns`.
    image: its path, absolute.
    status: the reason.
  """
  empty: dict[str, Any] = dict.fromkeys(names)
  return ImageRow(empty | {"image": image, STATUS: status})


class ResultWriter:
  """Writes the files of images, each complete or not at all.

  Attributes:
    output: folder of the files.
    save: the chosen outputs.
    columns: of the table of scores.

  Args:
    output: folder of the files.
    save: see `choose`.
    limits: thresholds of the run.
    has_references: whether images are compared with references.
    overlay_side: longest side of an overlay's image in pixels; 0: the image's.
  """

  def __init__(
    self,
    output: pathlib.Path,
    save: Collection[str],
    limits: threshold_lib.Threshold,
    *,
    has_references: bool,
    overlay_side: int = overlays.SIDE,
  ) -> None:
    self.output = output
    self.save = frozenset(save)
    self._side = overlay_side
    self.columns = columns(save, limits, has_references=has_references)

  def write(self, result: predictions.ImageResult) -> ImageRow:
    """Write the chosen files of an image and return its row.

    Raises:
      OSError: a file cannot be written.
      ValueError: the image cannot be read any more.
    """
    detection = result.detection
    found = None
    if "overlays" in self.save:
      image = preprocess.open_image(result.path)
      drawn = overlays.draw(image, detection, side=self._side)
      figures.save_png(self._path(result, "overlays"), drawn)
    if "maps" in self.save:
      data = io.BytesIO()
      np.save(data, detection.raw_map)
      files.write_bytes(self._path(result, "maps"), data.getvalue())
    if self.save & {*_OF_PIXELS}:
      mask = detection.mask
      if "masks" in self.save:
        white = Image.fromarray(mask.view(np.uint8) * np.uint8(255))
        figures.save_png(self._path(result, "masks"), white)
      if "regions" in self.save:
        found = regions_lib.find(detection.anomaly_map, mask)
    return ImageRow(self._values(result, found), found)

  def unscored(self, path: str, status: str) -> ImageRow:
    """Return the row of an image without a score; see `unscored`."""
    return unscored(self.columns, predictions.absolute(path), status)

  def _path(self, result, kind) -> pathlib.Path:
    return self.output / f"{result.name}{_FILES[kind][1]}"

  def _values(self, result, found) -> dict[str, Any]:
    """Return the values of all columns, in their order."""
    detection = result.detection
    values = {
      "image": predictions.absolute(result.path),
      "score": detection.score,
      "label": detection.label,
      "threshold": detection.threshold,
      "normalized_score": detection.normalized_score,
      "normal_percentile": detection.normal_percentile,
      "zero_shot_score": detection.zero_shot_score,
      STATUS: SCORED,
    }
    if found is not None:
      values["regions"] = found.count
      values["largest_region_area"] = found.largest_area
    for kind, (column, _) in _FILES.items():
      if kind in self.save:
        values[column] = predictions.absolute(self._path(result, kind))
    return {name: values.get(name) for name in self.columns}
