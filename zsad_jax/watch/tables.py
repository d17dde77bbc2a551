"""The tables of `predict` as tables of the journal.

Rows have the time at which the image was scored in addition, which tells apart
images of one path.
"""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from zsad_jax.reporting import region_files, result_files, score_table
from zsad_jax.watch.journal import Record, Table

# Column with the number of regions; in the journal, the list of them.
_REGIONS, _COUNT = "regions", "region_count"
_TIME = "time"  # UTC, ISO 8601.
_REGION_COLUMNS = (_TIME, *region_files.COLUMNS)


def record(row: result_files.ImageRow) -> dict[str, Any]:
  """Return the fields of a line of the journal.

  Args:
    row: of an image; its regions are a list in the journal, None where they
      were not searched.
  """
  count = row.values.get(_REGIONS)
  now = datetime.datetime.now(datetime.UTC)
  return {
    _TIME: now.isoformat(timespec="milliseconds"),
    **row.values,
    _COUNT: count,
    _REGIONS: None if count is None else row.regions,
  }


def make(columns: Sequence[str]) -> list[Table]:
  """Return the tables of scores and regions.

  Args:
    columns: of the table of scores, see `result_files.columns`.
  """
  names = [_TIME, *columns]
  scores = Table(score_table.SCORES, names, lambda line: [_cells(names, line)])
  if _REGIONS not in columns:
    return [scores]
  regions = Table(region_files.CSV, _REGION_COLUMNS, _region_rows)
  return [scores, regions]


def _cells(columns: Sequence[str], line: Record) -> list[str]:
  values = {name: line.get(name) for name in columns}
  if _REGIONS in values:
    values[_REGIONS] = line.get(_COUNT)
  return result_files.ImageRow(values).cells()


def _region_rows(line: Record) -> list[list[str]]:
  shared = {_TIME: line[_TIME], "image": line["image"]}
  return [
    result_files.ImageRow(_ordered({**each, **shared})).cells()
    for each in line[_REGIONS] or ()
  ]


def _ordered(values: Mapping[str, Any]) -> dict[str, Any]:
  return {name: values[name] for name in _REGION_COLUMNS}
