"""Tables of regions: regions.csv, and regions.json in COCO's format.

An image is added as soon as it is done. Until the end the files are called
regions.partial.csv and .regions.json.partial.
"""

import json
import pathlib
from typing import Any

from zsad_jax.inference import regions as regions_lib
from zsad_jax.reporting import growing_file
from zsad_jax.runtime import text_files

CSV, PARTIAL_CSV = "regions.csv", "regions.partial.csv"
JSON, PARTIAL_JSON = "regions.json", ".regions.json.partial"
COLUMNS = (
  *("image", "region", "left", "top", "width", "height"),
  *("area", "peak", "mean"),
)
_CATEGORY = {"id": 1, "name": "anomaly"}


def records(found: regions_lib.Found) -> list[dict[str, Any]]:
  """Return a record for each region, numbered from 1 by decreasing peak.

  Args:
    found: the regions of an image.

  Returns:
    By the names of `COLUMNS` without the image.
  """
  return [
    {
      "region": number,
      **dict(zip(("left", "top", "width", "height"), region.box)),
      "area": region.area,
      "peak": region.peak,
      "mean": region.mean,
    }
    for number, region in enumerate(found.regions, 1)
  ]


class RegionTables:
  """The tables of regions, a context in which images are added.

  At the end, also at an error or a signal, they get their names. Only a process
  that is killed leaves the partial ones.

  Args:
    output: folder of the tables; created if missing.
  """

  def __init__(self, output: pathlib.Path) -> None:
    self._output = output
    self._images: list[dict[str, Any]] = []
    self._count = 0

  def __enter__(self) -> "RegionTables":
    self._csv = growing_file.GrowingFile(
      self._output / PARTIAL_CSV, self._output / CSV, mark=True
    )
    self._json = growing_file.GrowingFile(
      self._output / PARTIAL_JSON, self._output / JSON, mark=False
    )
    self._rows = text_files.CsvWriter(self._csv.file)
    self._rows.writerow(COLUMNS)
    self._csv.flush()
    self._json.file.write('{"annotations": [')
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: object,
  ) -> None:
    rest = {"images": self._images, "categories": [_CATEGORY]}
    try:
      self._csv.finish()
      self._json.file.write(f"\n],\n{json.dumps(rest)[1:]}\n")
      self._json.finish()
    except OSError:  # Such as a full disk, which is the error already.
      if error is None:
        raise

  def add(
    self, image: str, size: tuple[int, int], found: regions_lib.Found
  ) -> None:
    """Add the regions of an image.

    Args:
      image: its path, absolute.
      size: its height and width.
      found: its regions.
    """
    height, width = size
    image_id = len(self._images) + 1
    for record in records(found):
      values = {"image": image, **record}
      for name in ("peak", "mean"):
        values[name] = f"{record[name]:.6g}"
      self._rows.writerow(values[name] for name in COLUMNS)
    for record, counts in zip(records(found), found.run_lengths()):
      annotation = _annotation(record, counts, size)
      self._count += 1
      annotation |= {"id": self._count, "image_id": image_id}
      separator = "," if self._count > 1 else ""
      self._json.file.write(f"{separator}\n{json.dumps(annotation)}")
    self._images.append(
      {"id": image_id, "file_name": image, "width": width, "height": height}
    )
    self._csv.flush()
    self._json.flush()


def _annotation(record, counts, size) -> dict[str, Any]:
  """Return a region as an annotation of COCO, without its identity."""
  return {
    "category_id": _CATEGORY["id"],
    "bbox": [record[name] for name in ("left", "top", "width", "height")],
    "area": record["area"],
    "segmentation": {"size": list(size), "counts": counts},
    "iscrowd": 0,
    "score": record["peak"],
    "mean_score": record["mean"],
  }
