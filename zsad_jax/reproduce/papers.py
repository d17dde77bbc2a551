"""Tables of the papers: what can be reproduced, and ours next to theirs."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from zsad_jax import metrics
from zsad_jax.datasets import references, registry
from zsad_jax.datasets.entries import medical
from zsad_jax.evaluation import recipes
from zsad_jax.evaluation.paper_results import DATASETS, MEAN, Cell
from zsad_jax.reporting import tables as tables_lib
from zsad_jax.reproduce import jobs as jobs_lib
from zsad_jax.reproduce.jobs import Job, RunSpec, Settings, Target
from zsad_jax.runtime import environment, files

_KEYS = {printed: key for key, printed in DATASETS.items()}
_WITHOUT_MVTEC = "w/o MVTec"  # In captions, of averages over data sets.


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of a table: a method with a number of references per class."""

  method: str
  shots: str
  cells: tuple[Cell, ...]

  @property
  def recipe(self) -> recipes.Recipe | None:
    """How it is reproduced; None: not in this package."""
    return recipes.find(self.method, self.shots, self.cells[0].paper)

  def __str__(self) -> str:
    return f"{self.method}, {self.shots}-shot"


class Table:
  """A table of a paper.

  Args:
    cells: printed numbers of all papers.
    name: paper and number of the table, such as "faprompt/2".
    settings: see `jobs.Settings`.
    only: names of methods; () for all.

  Raises:
    ValueError: there is no such table.
  """

  def __init__(
    self,
    cells: Sequence[Cell],
    name: str,
    settings: Settings,
    only: Sequence[str] = (),
  ):
    known = recipes.tables(cells)
    paper, _, number = name.partition("/")
    if (paper, number) not in known:
      listed = ", ".join(f"{p}/{n}" for p, n in known)
      raise ValueError(f"--table: no {name!r}; it is embedded, or {listed}.")
    self.name, self.stem = name, f"{paper}_{number}"
    self._settings, own = settings, known[paper, number]
    self._of_paper = [cell for cell in cells if cell.paper == paper]
    self.title = f"{paper}, Table {number}: {own[0].caption}"
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in own:
      groups.setdefault((cell.method, cell.shots), []).append(cell)
    self.rows = [Row(*key, tuple(found)) for key, found in groups.items()]
    self._only = tuple(only)
    # Finished results and jobs of rows: they do not change any more.
    self._finished: dict[tuple[Job, Target], Any] = {}
    self._known_jobs: dict[tuple[str, str], dict[str, Job]] = {}

  @functools.cached_property
  def jobs(self) -> list[Job]:
    """Jobs of all rows that can be reproduced."""
    found = [self._jobs_of(row).values() for row in self.rows]
    return jobs_lib.merged([job for each in found for job in each])

  @functools.cached_property
  def notes(self) -> list[str]:
    """Rows and columns that are left out, and the reasons."""
    data = {key: self._settings_root() for key in self._datasets(self.rows)}
    away = [key for key, root in data.items() if not self._has(key, root)]
    lines = []
    for key in away:
      entry = registry.ENTRIES[key]
      lines.append(
        f"Columns of {DATASETS[key]} are left out: the data set is missing "
        f"(<data root>/{entry.folders[0]}, from {entry.source})."
      )
    for row in self.rows:
      lines += [f"{row}: {reason}" for reason in self._reasons(row)]
    return lines

  @property
  def missing(self) -> list[str]:
    """Weights and data sets that are missing, each once."""
    found = []
    for row in self.rows:
      for key in self._datasets([row]):
        recipe: Any = row.recipe
        if base := recipe.base_for(key):
          config = RunSpec(recipe.spec(base)).config(self._settings)
          found += jobs_lib.missing(config)
        if not self._has(key):
          found.append(f"test data {key}")
    return sorted(dict.fromkeys(found), reverse=True)  # Weights first.

  def row_jobs(self, row: Row) -> list[Job]:
    """Return the jobs of a row."""
    return list(self._jobs_of(row).values())

  def is_done(self, row: Row) -> bool:
    """Return whether a row has all results that can be had, and any."""
    found = self.row_jobs(row)
    return bool(found) and all(
      job.is_done(target, self._settings)
      for job in found
      for target in job.targets
    )

  def ours(self, row: Row, cell: Cell) -> float | None:
    """Return our value of a printed number; None where there is none."""
    metric = _metric(cell)
    if metric is None:
      return None
    values = [
      self._value(row, key, cell.category, metric)
      for key in self._data_of(cell)
    ]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
      return None
    return math.fsum(known) / len(known)

  def lines(self, row: Row) -> str:
    """Return a row as text: ours next to the paper's, number by number."""
    specs = {job.members[0].spec for job in self.row_jobs(row)}
    lines = [f"{row} ({', '.join(sorted(specs))})"]
    for cell in row.cells:
      ours = self.ours(row, cell)
      if ours is None:
        continue
      category = "" if cell.category in (MEAN, "average") else cell.category
      place = " ".join(filter(None, (cell.dataset, category)))
      lines.append(
        f"  {place:28} {cell.level:5} {cell.metric:6} {100 * ours:5.1f}  "
        f"paper {_printed(cell)}{_difference(ours, cell)}"
      )
    return "\n".join(lines)

  def write(self, root: pathlib.Path) -> pathlib.Path:
    """Write the table as Markdown and JSON; return the path of the former."""
    path = root / f"{self.stem}.md"
    files.write_text(path, self._markdown())
    document = {
      "table": self.name,
      "title": self.title,
      "left_out": self.notes,
      "rows": [self._document(row) for row in self.rows],
      **environment.setting(),
    }
    text = json.dumps(document, indent=1) + "\n"
    files.write_text(path.with_suffix(".json"), text)
    return path

  def _markdown(self):
    """Return the table, one for each metric: "ours / paper's"."""
    lines = [f"# {self.title}", "", "Ours / printed, in %. `?`: doubtful.", ""]
    columns: dict[tuple[str, str], dict[tuple[str, str], None]] = {}
    for row in self.rows:
      for cell in row.cells:
        known = columns.setdefault((cell.level, cell.metric), {})
        known[cell.dataset, cell.category] = None
    for (level, metric), places in columns.items():
      names = [
        data if category in (MEAN, "average") else f"{data} {category}"
        for data, category in places
      ]
      lines += [f"## {level} {metric}", "", f"| method | {' | '.join(names)} |"]
      lines.append("|---" * (1 + len(names)) + "|")
      for row in self.rows:
        cells = {
          (c.dataset, c.category): c
          for c in row.cells
          if (c.level, c.metric) == (level, metric)
        }
        texts = [self._text(row, cells.get(place)) for place in places]
        lines.append(f"| {row} | {' | '.join(texts)} |")
      lines.append("")
    lines += [f"- {note}" for note in self.notes]
    return "\n".join(lines) + "\n"

  def _text(self, row, cell):
    """Return a cell of the Markdown table."""
    if cell is None:
      return ""
    ours = self.ours(row, cell)
    return f"{'-' if ours is None else f'{100 * ours:.1f}'} / {_printed(cell)}"

  def _document(self, row):
    """Return a row for the JSON file."""
    found = self.row_jobs(row)
    return {
      "method": row.method,
      "shots": row.shots,
      "configurations": sorted({m.spec for job in found for m in job.members}),
      "runs": [str(job.workdir(self._settings).name) for job in found],
      "cells": [
        {
          "dataset": cell.dataset,
          "category": cell.category,
          "level": cell.level,
          "metric": cell.metric,
          "ours": self.ours(row, cell),
          "printed": cell.value,
          "doubtful": cell.doubtful,
        }
        for cell in row.cells
      ],
    }

  def _settings_root(self):
    root = self._settings.data_root
    return environment.data_root() if root is None else root

  def _has(self, key, root=None):
    return jobs_lib.is_available(key, root or self._settings_root())

  def _datasets(self, rows):
    """Return the registered names of the data sets of rows."""
    keys = [
      key
      for row in rows
      if row.recipe
      for cell in row.cells
      if _metric(cell)
      for key in self._data_of(cell)
    ]
    return list(dict.fromkeys(keys))

  def _data_of(self, cell):
    """Return the data sets of a printed number, several for an average."""
    if cell.dataset in _KEYS:
      return [_KEYS[cell.dataset]]
    if not cell.dataset.startswith("AVG("):
      return []
    averages = [c for c in self._of_paper if c.category == "average"]
    without = any(_WITHOUT_MVTEC in c.caption for c in averages)
    is_medical = cell.dataset == "AVG(medical)"
    same = lambda c: (
      c.dataset in _KEYS
      and c.category == MEAN
      and (c.level, c.metric) == (cell.level, cell.metric)
      and (_KEYS[c.dataset] in medical.ENTRIES) == is_medical
      and not (without and _KEYS[c.dataset] == "mvtec")
    )
    found = [c for c in self._of_paper if same(c)]
    own = [c for c in found if c.table == cell.table]
    return list(dict.fromkeys(_KEYS[c.dataset] for c in own or found))

  def _jobs_of(self, row) -> dict[str, Job]:
    """Return the job of a row for each of its data sets that can be had."""
    key = row.method, row.shots
    if key not in self._known_jobs:
      self._known_jobs[key] = self._find_jobs(row)
    return self._known_jobs[key]

  def _find_jobs(self, row):
    """Return the jobs of `_jobs_of`."""
    found, recipe = {}, row.recipe
    if recipe is None or (self._only and recipe.method not in self._only):
      return found
    shots = int(row.shots)
    for key in self._datasets([row]):
      base = recipe.base_for(key)
      if base is None or not self._has(key):
        continue
      members = self._members(recipe, base)
      if jobs_lib.missing(members[0].config(self._settings)):
        continue
      seeds = references.SEEDS if shots else ()
      target = Target(key, tuple({0, shots}), seeds, official=True)
      found[key] = Job(members, (target,))
    return found

  def _members(self, recipe, base):
    """Return the runs of a recipe: the first one has the configured seed."""
    spec = recipe.spec(base)
    first = RunSpec(spec).config(self._settings).seed
    others = [RunSpec(spec, first + k) for k in range(1, recipe.runs)]
    return (RunSpec(spec), *others)

  def _reasons(self, row):
    """Return why a row, or a part of it, is left out."""
    recipe = row.recipe
    if recipe is None:
      return ["the row is left out: not in this package."]
    if self._only and recipe.method not in self._only:
      return ["the row is left out by --methods."]
    found = {}
    for key in self._datasets([row]):
      base = recipe.base_for(key)
      if base is None:
        found.setdefault("there is no such configuration", []).append(key)
        continue
      config = RunSpec(recipe.spec(base)).config(self._settings)
      if reasons := jobs_lib.missing(config):
        text = f"{recipe.spec(base)} misses {', '.join(reasons)}"
        found.setdefault(text, []).append(key)
    return [
      f"left out on {', '.join(DATASETS[key] for key in keys)}: {reason}."
      for reason, keys in found.items()
    ]

  def _value(self, row, key, category, metric):
    """Return a metric on a data set, the mean over seeds of references."""
    job = self._jobs_of(row).get(key)
    if job is None:
      return None
    target = job.targets[0]
    labels = target.labels(int(row.shots))
    results = self._finished.get((job, target))
    if results is None:
      results = job.results(target, self._settings)
      if not all(label in results for label in labels):
        return None
      self._finished[job, target] = results
    values = [_of(results[label], category, metric) for label in labels]
    if any(value is None or math.isnan(value) for value in values):
      return None
    return math.fsum(values) / len(values)


def _metric(cell) -> str | None:
  """Return our name of the metric of a printed number, or None."""
  for name, metric in metrics.METRICS.items():
    if metric.level == cell.level and cell.metric in metric.paper_names:
      return name
  return None


def _of(document, category, metric) -> float:
  """Return a metric of a category, or its mean, from results.json."""
  nan = float("nan")
  rows: dict[str, Any] = {
    name: {k: nan if v is None else v for k, v in row.items()}
    for name, row in document["rows"].items()
  }
  if category in (MEAN, "average"):
    return tables_lib.mean_row(rows)[0].get(metric, nan)
  return rows.get(category, {}).get(metric, nan)


def _printed(cell):
  """Return a printed number in %, with a mark where it is doubtful."""
  text = "?" if cell.value is None else f"{100 * cell.value:.1f}"
  return f"{text}?" if cell.doubtful and cell.value is not None else text


def _difference(ours, cell):
  """Return the difference from a printed number that is not doubtful."""
  if cell.doubtful or cell.value is None:
    return ""
  return f" ({100 * (ours - cell.value):+.1f})"
