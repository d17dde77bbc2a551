"""The project's own table: all methods on the embedded benchmark."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from zsad_jax import methods
from zsad_jax.datasets import references
from zsad_jax.evaluation import published, recipes
from zsad_jax.evaluation.paper_results import Cell
from zsad_jax.reporting import tables as tables_lib
from zsad_jax.reproduce import jobs as jobs_lib
from zsad_jax.reproduce.jobs import Job, RunSpec, Settings, Target
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import environment, files

_BASES = ("embedded", "random")  # The latter with random weights of the CLIP.
_COLUMNS = {
  "image_auroc": "image AUROC",
  "image_ap": "image AP",
  "pixel_auroc": "pixel AUROC",
  "pixel_ap": "pixel AP",
  "pixel_aupro": "AUPRO",
}


@dataclasses.dataclass(frozen=True)
class Row:
  """A method with a number of references, trained with several seeds.

  Attributes:
    name: method, with a variant of its configuration after a colon if any.
    base: "embedded", or "random" for random weights.
    shots: references per class.
    jobs: a job for each seed.
  """

  name: str
  base: str
  shots: int
  jobs: tuple[Job, ...]

  def __str__(self) -> str:
    weights = ", random weights" if self.base == "random" else ""
    return f"{self.name}{weights}, {self.shots}-shot"


class Table:
  """All methods with the embedded small CLIP, and with random weights.

  Args:
    cells: printed numbers, which say what few-shot detection is defined for.
    settings: see `jobs.Settings`.
    only: methods, or variants such as "anomalyclip:ensemble"; () for all.
    seeds: of the trainings. A method that is not trained, and random weights,
      have the first one alone.
    shots: references per class in addition to 0.

  Raises:
    ValueError: there is no such method or variant.
  """

  name, stem = "embedded", "embedded"
  title = "Embedded benchmark"

  def __init__(
    self,
    cells: Sequence[Cell],
    settings: Settings,
    only: Sequence[str] = (),
    *,
    seeds: Sequence[int],
    shots: Sequence[int],
  ):
    self._settings, self._seeds = settings, tuple(seeds)
    self._shots, self._cells = tuple(shots), cells
    self._finished: dict[Job, dict[str, Any]] = {}
    listed = all_names()
    for name in only:
      if recipes.packaged(_spec(name, _BASES[0])) is None:
        raise ValueError(
          f"--methods: there is no configuration {name!r}; there are "
          f"{', '.join(listed)}, and other variants of these."
        )
    self.rows = [
      row
      for base in _BASES
      for name in only or listed
      for row in self._rows_of(name, base)
    ]
    self.notes: list[str] = []
    self.missing: list[str] = []  # Weights and data come with the package.

  @functools.cached_property
  def jobs(self) -> list[Job]:
    """The job of each method and seed."""
    return jobs_lib.merged([job for row in self.rows for job in row.jobs])

  def is_done(self, row: Row) -> bool:
    """Return whether all seeds of a row are evaluated."""
    return all(
      job.is_done(target, self._settings)
      for job in row.jobs
      for target in job.targets
    )

  def lines(self, row: Row) -> str:
    """Return a row as a line of text."""
    found = self._values(row)
    values = [
      f"{title} {tables_lib.with_deviation(found, metric)}"
      for metric, title in _COLUMNS.items()
    ]
    shown = dataclasses.replace(row, shots=self._shown_shots(row))
    return f"{shown}: {', '.join(values)}"

  def write(self, root: pathlib.Path) -> pathlib.Path:
    """Write the table as Markdown and JSON; return the path of the former."""
    path = root / f"{self.stem}.md"
    files.write_text(path, self._markdown())
    document = {
      "table": self.name,
      "seeds": self._seeds,
      "rows": [self._document(row) for row in self.rows],
      **environment.setting(),
    }
    text = json.dumps(document, indent=1) + "\n"
    files.write_text(path.with_suffix(".json"), text)
    return path

  def _rows_of(self, name, base):
    """Return the rows of a method."""
    spec = _spec(name, base)
    config = RunSpec(spec).config(self._settings)
    seeds = self._seeds
    if not config.epochs or base == "random":
      seeds = seeds[:1]
    few = recipes.has_few_shot(config.method_name, self._cells)
    method = run_lib.make_method(config.method_name, config.method.to_dict())
    few = few and not method.learns_category  # Its references are trained on.
    shots = (0, *self._shots) if few else (0,)
    if method.needs_references and few:
      shots = self._shots or (1,)
    drawn = references.SEEDS
    jobs = []
    for i, seed in enumerate(seeds):
      # With several trainings each one has other references, too.
      own = drawn if len(seeds) == 1 else (drawn[i % len(drawn)],)
      target = Target(config.test_data[0], shots, own if few else ())
      jobs.append(Job((RunSpec(spec, seed),), (target,)))
    return [Row(name, base, k, tuple(jobs)) for k in shots]

  def _shown_shots(self, row):
    """Return the number of references, which may be those of the training."""
    config = self._config(row)
    own = config.get("per_category", False)
    return config.references.shots if own else row.shots

  def _documents(self, row) -> list[dict[str, Any]]:
    """Return the finished results of a row."""
    found = []
    for job in row.jobs:
      (target,) = job.targets
      results = self._finished.get(job)
      if results is None:
        results = job.results(target, self._settings)
        if len(results) == len(target.labels()):
          self._finished[job] = results  # They do not change any more.
      labels = target.labels(row.shots)
      found += [results[label] for label in labels if label in results]
    return found

  def _values(self, row):
    """Return the means over categories of each repetition."""
    nan = float("nan")
    return [
      tables_lib.mean_row(
        {
          name: {k: nan if v is None else v for k, v in values.items()}
          for name, values in document["rows"].items()
        }
      )[0]
      for document in self._documents(row)
    ]

  def _markdown(self):
    """Return the table, and the settings of each method."""
    lines = [
      f"# {self.title}",
      "",
      "Values in %: mean over categories; mean and standard deviation over the "
      f"training seeds {', '.join(map(str, self._seeds))} and the seeds of the "
      f"references {', '.join(map(str, references.SEEDS))}. Methods that are "
      "not trained, and random weights, have one training seed.",
      "",
    ]
    head = ["method", "configuration", "pixels", "shots", *_COLUMNS.values()]
    head += ["trained parameters", "training s"]
    for base in _BASES:
      title = "Random weights" if base == "random" else "Pretrained weights"
      lines += [f"## {title}", "", f"| {' | '.join(head)} |"]
      lines.append("|---|---|" + "---:|" * (len(head) - 2))
      lines += [self._line(row) for row in self.rows if row.base == base]
      lines.append("")
    lines += ["## Settings", ""]
    lines += [
      f"- {row.name}: {_setup(row.jobs[0].members[0].config(self._settings))}"
      for row in self.rows
      if row.base == _BASES[0] and not row.shots
    ]
    return "\n".join(lines) + "\n"

  def _line(self, row):
    """Return a row of the Markdown table."""
    found, config = self._values(row), self._config(row)
    name = methods.paper_variants(config.method_name).get(
      row.name.partition(":")[2], methods.title(config.method_name)
    )
    if config.method_name not in methods.single_image_names():
      name += " (transductive)"
    values = [
      tables_lib.with_deviation(found, metric) if found else "-"
      for metric in _COLUMNS
    ]
    documents = self._documents(row)
    seconds = [d.get("training_seconds") for d in documents]
    seconds = [s for s in seconds if s]
    cost = f"{math.fsum(seconds) / len(seconds):.0f}" if seconds else "-"
    trained = documents[0].get("trained_parameters") if documents else None
    spec = f"`{_spec(row.name, row.base)}`"
    cells = [name, spec, config.image_size, self._shown_shots(row), *values]
    cells += ["-" if trained is None else f"{trained:,}", cost]
    return f"| {' | '.join(map(str, cells))} |"

  def _config(self, row):
    return row.jobs[0].members[0].config(self._settings)

  def _document(self, row):
    """Return a row for the JSON file."""
    found = self._values(row)
    spread = {m: tables_lib.spread(found, m) for m in _COLUMNS} if found else {}
    defined = lambda x: None if math.isnan(x) else x
    return {
      "method": row.name,
      "weights": row.base,
      "shots": self._shown_shots(row),
      "configuration": _spec(row.name, row.base),
      "seeds": [job.members[0].seed for job in row.jobs],
      "runs": [job.workdir(self._settings).name for job in row.jobs],
      "mean": {m: defined(mean) for m, (mean, _) in spread.items()},
      "deviation": {m: defined(std) for m, (_, std) in spread.items()},
      "repetitions": found_values(found),
      "settings": published.settings(self._config(row)),
    }


def found_values(found: Sequence[Any]) -> list[dict[str, float | None]]:
  """Return the metrics of each repetition; JSON has no nan."""
  return [
    {m: None if math.isnan(row[m]) else row[m] for m in _COLUMNS}
    for row in found
  ]


def all_names() -> list[str]:
  """Return all methods with a configuration for the embedded benchmark.

  Variants that the papers' tables list as methods of their own are included.
  """
  found = []
  for name in methods.names():
    variants = [
      f"{name}:{variant}"
      for variant, printed in methods.paper_variants(name).items()
      if "[" not in printed
    ]
    found += [name, *variants]
  return [name for name in found if recipes.packaged(_spec(name, _BASES[0]))]


def _spec(name, base):
  """Return the configuration of a method, or of a variant, with a base."""
  method, _, variant = name.partition(":")
  return f"{method}:{base}{',' if variant else ''}{variant}"


def _setup(config) -> str:
  """Return the main settings of a configuration in one line."""
  steps = f"{config.epochs} epochs, batches of {config.batch_size}, " + (
    f"{config.optax_name} with learning rate {config.optax.learning_rate:g}"
  )
  return (
    f"{config.image_size} px, "
    f"{steps if config.epochs else 'not trained'}, maps smoothed with sigma "
    f"{config.smooth_sigma:g}"
  )
