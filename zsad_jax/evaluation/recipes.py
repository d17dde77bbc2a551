"""Configurations that reproduce the rows of the papers' tables.

The names in the tables are those of the files in `methods/`: `PAPER_NAME`,
`PAPER_VARIANTS` and `PAPER_ENSEMBLES`.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from zsad_jax import methods
from zsad_jax.evaluation.paper_results import DATASETS, Cell
from zsad_jax.runtime import config_files

BASES = ("paper", "paper_mvtec")  # By training data; the usual one first.


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a row of the papers is reproduced.

  Attributes:
    method: name of the method.
    variant: ablation of its configuration, or "".
    runs: runs with different seeds, whose scores and maps are averaged if
      there are several.
  """

  method: str
  variant: str = ""
  runs: int = 1

  def spec(self, base: str) -> str:
    """Return the configuration with a base, such as "adaclip:paper,k20"."""
    variant = f",{self.variant}" if self.variant else ""
    return f"{self.method}:{base}{variant}"

  def base_for(self, dataset: str) -> str | None:
    """Return the base of the protocol for a target data set.

    That is the first one that is not trained on the data set; None where the
    method has no such configuration.

    Args:
      dataset: registered name.
    """
    for base in BASES:
      config = packaged(self.spec(base))
      if config is not None and dataset not in config.train_data:
        return base
    return None


@functools.cache
def packaged(spec: str) -> Any:
  """Return a packaged configuration; None if there is none."""
  try:
    return config_files.load(spec)
  except (FileNotFoundError, ValueError):
    return None


def find(printed: str, shots: str, paper: str) -> Recipe | None:
  """Return the recipe of a row, or None.

  Args:
    printed: method as the table names it.
    shots: references per class as the table prints them.
    paper: paper of the table.
  """
  recipe = _recipes().get(printed) if shots.isdecimal() else None
  if recipe is None or printed.removesuffix("+") != methods.paper_name(
    recipe.method
  ):
    return recipe
  variant = methods.variant_by_paper(recipe.method).get(paper, recipe.variant)
  return dataclasses.replace(recipe, variant=variant)


@functools.cache
def _recipes() -> Mapping[str, Recipe]:
  """Return the recipes of all methods, by their names in tables."""
  found = {}
  for name in methods.names():
    usual = methods.paper_name(name)
    found[usual] = Recipe(name)
    if not methods.module(name).Method().num_references:
      found[f"{usual}+"] = Recipe(name)  # With references.
    for variant, printed in methods.paper_variants(name).items():
      found[printed] = Recipe(name, variant)
    for printed, runs in methods.paper_ensembles(name).items():
      found[printed] = Recipe(name, runs=runs)
  return {
    printed: recipe
    for printed, recipe in found.items()
    if packaged(recipe.spec(BASES[0])) is not None
  }


def has_few_shot(name: str, cells: Sequence[Cell]) -> bool:
  """Return whether few-shot detection is defined for a method.

  It is for methods that compare with references themselves, and for those of
  which a table has few-shot results.

  Args:
    name: of the method.
    cells: printed numbers.
  """
  if hasattr(methods.module(name).Method, "build_memory_bank"):
    return True
  usual = methods.paper_name(name)
  printed = {(cell.method, cell.shots) for cell in cells}
  return any((f"{usual}+", str(shots)) in printed for shots in (1, 2, 4))


def tables(cells: Sequence[Cell]) -> dict[tuple[str, str], list[Cell]]:
  """Group printed numbers by paper and table, such as ("faprompt", "2")."""
  found: dict[tuple[str, str], list[Cell]] = collections.defaultdict(list)
  for cell in cells:
    found[cell.paper, cell.table.removeprefix("Table ")].append(cell)
  return dict(found)


def list_tables(cells: Sequence[Cell]) -> str:
  """Return a text with the tables and the configurations of their rows."""
  known = {name: key for key, name in DATASETS.items()}
  lines = []
  for (paper, table), of_table in tables(cells).items():
    shots = {c.shots for c in of_table if c.shots.isdecimal()}
    data = {known[c.dataset] for c in of_table if c.dataset in known}
    doubtful = sum(c.doubtful for c in of_table)
    lines += [
      f"{paper}, Table {table}: {of_table[0].caption}",
      f"  --table={paper}/{table}: {len(of_table)} numbers, {doubtful} "
      f"doubtful; data {', '.join(sorted(data)) or 'of other tables'}; shots "
      f"{', '.join(sorted(shots)) or 'none'}",
    ]
    rows: dict[str, list[str]] = {}
    for printed, number in dict.fromkeys((c.method, c.shots) for c in of_table):
      rows.setdefault(printed, []).append(number)
    missing = []
    for printed, numbers in rows.items():
      recipe = find(printed, numbers[0], paper)
      if recipe is None:
        missing.append(printed)
        continue
      bases = {recipe.base_for(dataset) for dataset in data or {""}} - {None}
      specs = [recipe.spec(base) for base in BASES if base in bases]
      several = f", mean of {recipe.runs} seeds" if recipe.runs > 1 else ""
      lines.append(f"  {printed}: {', '.join(specs)}{several}")
    if missing:
      lines.append(f"  not in this package: {', '.join(missing)}")
  return "\n".join(lines)
