"""Published numbers, for comparison with own results.

Each row of `data/paper_results/*.csv` is one printed number. Numbers that
failed a check when they were read are shown with a mark and never compared.
"""

import collections
import csv
import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping

from zsad_jax import methods, metrics
from zsad_jax.runtime import environment

MEAN = "mean"  # Category of means over the categories of a data set.
_DOUBTS = ("doubtful:", "lost:", "mismatch:")
_OTHER = "in the AnomalyCLIP setting"  # AdaCLIP, trained on other sets.

# Printed names of the data sets.
DATASETS = {
  "mvtec": "MVTec AD",
  "visa": "VisA",
  "mpdd": "MPDD",
  "btad": "BTAD",
  "ksdd": "KSDD",
  "dagm": "DAGM",
  "dtd": "DTD-Synthetic",
  "aitex": "AITEX",
  "elpv": "ELPV",
  "mvtec3d": "MVTec 3D",
  "real_iad": "Real-IAD",
  "headct": "HeadCT",
  "brainmri": "BrainMRI",
  "br35h": "Br35H",
  "covid": "Covid",
  "lag": "LAG",
  "isic": "ISIC",
  "clinicdb": "ClinicDB",
  "colondb": "ColonDB",
  "kvasir": "Kvasir",
  "endo": "Endo",
  "tn3k": "TN3K",
}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One printed number.

  Attributes:
    paper, table, caption: source of the number.
    method, shots, dataset, category, level, metric: meaning of the number.
    value: in [0, 1]; None where it could not be read.
    doubtful: whether a check failed when it was read.
    notes: remarks on the reading.
  """

  paper: str
  table: str
  caption: str
  method: str
  shots: str
  dataset: str
  category: str
  level: str
  metric: str
  value: float | None
  doubtful: bool
  notes: str


def default_folder() -> pathlib.Path:
  """Return the folder of the tables that come with the source."""
  return environment.resource_folder("data/paper_results")


def read(folder: str | pathlib.Path | None = None) -> tuple[Cell, ...]:
  """Read all tables of a folder; None: of `default_folder`.

  Raises:
    FileNotFoundError: there are none.
    ValueError: a file has another format.
  """
  folder = pathlib.Path(folder or default_folder())
  paths = sorted(folder.glob("*.csv"))
  if not paths:
    raise FileNotFoundError(
      f"{folder} has no tables (*.csv). They are in data/paper_results of "
      "the source; --paper_results=DIR names another folder."
    )
  return tuple(cell for path in paths for cell in _read(path))


def _read(path):
  with path.open(newline="", encoding="utf-8") as file:
    rows = csv.DictReader(file)
    for number, row in enumerate(rows, start=2):
      try:
        yield _cell(path.stem, row)
      except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
          f"{path}, line {number}: {error}. Expected are the columns that "
          "README.md in its folder lists."
        ) from error


def _cell(paper, row):
  names = (
    "table",
    "caption",
    "method",
    "shots",
    "dataset",
    "category",
    "level",
    "metric",
    "notes",
  )
  value = float(row["value"]) / 100 if row["value"] else None
  doubtful = any(doubt in row["notes"] for doubt in _DOUBTS) or value is None
  return Cell(
    paper=paper, value=value, doubtful=doubtful, **{n: row[n] for n in names}
  )


def method_name(config_name: str, few_shot: bool) -> str:
  """Return the papers' name of a configuration such as "adaclip_paper_k20".

  With references, methods that are trained without any have a "+" appended.
  """
  name = _method_of(config_name)
  if name is None:
    return config_name
  parts = config_name.removeprefix(name).split("_")
  rest = "_".join(p for p in parts if p not in ("", "paper", "mvtec"))
  usual = methods.paper_name(name)
  variants = methods.paper_variants(name)
  printed = variants.get(rest, config_name) if rest else usual
  without = not methods.module(name).Method().num_references
  return printed + ("+" if few_shot and without and printed == usual else "")


def _method_of(config_name):
  """Return the method whose name a configuration's begins with, or None."""
  found = [n for n in methods.names() if f"{config_name}_".startswith(f"{n}_")]
  return max(found, key=len, default=None)


class Tables:
  """Printed numbers, indexed by their meaning.

  Where several tables print a number, the method's own paper and protocol
  have priority.
  """

  def __init__(self, cells: Iterable[Cell]):
    self._cells = collections.defaultdict(list)
    for cell in cells:
      key = (
        cell.method,
        cell.shots,
        cell.dataset,
        cell.category,
        cell.level,
        cell.metric,
      )
      self._cells[key].append(cell)

  def find(
    self,
    config_name: str,
    *,
    dataset: str,
    shots: int,
    metric: str,
    category: str = MEAN,
  ) -> Cell | None:
    """Return the printed number of a configuration, or None.

    Args:
      config_name: `config.name`.
      dataset: registered name.
      shots: references per class.
      metric: a key of `metrics.METRICS`.
      category: category of the data set, or `MEAN`.
    """
    method = method_name(config_name, few_shot=shots > 0)
    row = metrics.METRICS[metric]
    own = _method_of(config_name)
    found = [
      cell
      for name in row.paper_names
      for cell in self._cells.get(
        (
          method,
          str(shots),
          DATASETS.get(dataset, dataset),
          category,
          row.level,
          name,
        ),
        (),
      )
    ]
    rank = lambda c: (c.doubtful, c.paper != own, _OTHER in c.caption)
    return min(found, key=rank, default=None)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A mean and the printed one, as fractions."""

  method: str
  dataset: str
  shots: int
  metric: str
  ours: float
  printed: float
  source: str

  @property
  def difference(self) -> float:
    """Own mean minus the printed one."""
    return self.ours - self.printed

  def __str__(self) -> str:
    return (
      f"{self.method}, {self.shots}-shot, {self.dataset}, {self.metric}: "
      f"{100 * self.ours:.1f}, {self.source} has {100 * self.printed:.1f} "
      f"({100 * self.difference:+.1f})"
    )


def compare(
  tables: Tables,
  means: Mapping[tuple[str, str, int], Mapping[str, float]],
) -> list[Comparison]:
  """Compare means with printed ones; doubtful numbers are left out.

  Args:
    tables: printed numbers.
    means: metrics by configuration, data set and shots.
  """
  found = []
  for (name, dataset, shots), row in means.items():
    for metric in metrics.METRICS:
      cell = tables.find(name, dataset=dataset, shots=shots, metric=metric)
      ours = row.get(metric)
      if cell is None or cell.doubtful or ours is None or math.isnan(ours):
        continue
      assert cell.value is not None  # It would be doubtful.
      source = f"{cell.paper} {cell.table}"
      found.append(
        Comparison(name, dataset, shots, metric, ours, cell.value, source)
      )
  return found
