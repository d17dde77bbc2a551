"""The tables of `predict` as tables of the journal."""

from collections.abc import Mapping, Sequence
from typing import Any

from zsad_jax.reporting import region_files, result_files
from zsad_jax.watch.journal import Record, Table

SCORES = "scores.csv"
_REGIONS = "regions"  # Column with their number; in the journal, their list.


def record(row: result_files.ImageRow) -> dict[str, Any]:
  """Return the fields of a line of the journal.

  Args:
    row: of an image; its regions are a list in the journal, None where they
      were not searched.
  """
  searched = row.values.get(_REGIONS) is not None
  return {**row.values, _REGIONS: row.regions if searched else None}


def make(columns: Sequence[str]) -> list[Table]:
  """Return the tables of scores and regions.

  Args:
    columns: of the table of scores, see `result_files.columns`.
  """
  scores = Table(SCORES, columns, lambda line: [_cells(columns, line)])
  if _REGIONS not in columns:
    return [scores]
  regions = Table(region_files.CSV, region_files.COLUMNS, _region_rows)
  return [scores, regions]


def _cells(columns: Sequence[str], line: Record) -> list[str]:
  values = {name: line.get(name) for name in columns}
  if values.get(_REGIONS) is not None:
    values[_REGIONS] = len(line[_REGIONS])
  return result_files.ImageRow(values).cells()


def _region_rows(line: Record) -> list[list[str]]:
  return [
    result_files.ImageRow(_ordered({**each, "image": line["image"]})).cells()
    for each in line[_REGIONS] or ()
  ]


def _ordered(values: Mapping[str, Any]) -> dict[str, Any]:
  return {name: values[name] for name in region_files.COLUMNS}
