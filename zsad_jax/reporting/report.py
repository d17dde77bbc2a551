"""Reports of evaluations: tables, figures and an HTML page."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from zsad_jax import backbones
from zsad_jax.datasets import cache, index, references
from zsad_jax.datasets.references import References
from zsad_jax.evaluation import paper_results
from zsad_jax.evaluation import results as results_lib
from zsad_jax.evaluation.category import CategoryResult
from zsad_jax.reporting import details as details_lib
from zsad_jax.reporting import figures
from zsad_jax.reporting import html as html_lib
from zsad_jax.reporting import tables as tables_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import environment, file_names, files

_log = logging.getLogger(__name__)


def log_skipped(messages: Sequence[str]) -> None:
  """Log the images that were left out."""
  if messages:
    _log.info("Skipped %d images that could not be read:", len(messages))
    for message in messages:
      _log.info("  %s", message)


def log_cache_size(folder: str) -> None:
  """Log the size of the cache of decoded images; "": there is none."""
  if folder:
    size = cache.DecodedCache(folder).size()
    _log.info("Decoded images in %s: %s MB", folder, f"{size / 1e6:,.1f}")


class Writer:
  """Writes tables and figures of the evaluation of a run on one data set.

  Args:
    run: evaluated run.
    dataset: data set.
    output: receives <data>/results.{json,csv,md} and <data>/<category>.png;
      with references the same below <data>/<choice>/.
  """

  def __init__(
    self, run: run_lib.Run, dataset: index.Dataset, output: pathlib.Path
  ):
    self._run, self._folder = run, output / dataset.name
    self._limits = results_lib.stored_threshold(run)
    self._details: dict[str, dict[str, details_lib.Detail]] = {}
    self._file_names = file_names.safe_names(dataset.class_names)

  def add_category(self, category: CategoryResult) -> None:
    """Draw the figure of a category and keep its details for the page."""
    config: Any = self._run.config
    size = config.image_size
    choice = category.references
    figure = details_lib.category_figure(category, image_size=size)
    path = (
      self._choice_folder(choice) / f"{self._file_names[category.name]}.png"
    )
    figures.save_png(path, figure)
    detail = details_lib.category_detail(
      category, image_size=size, limits=self._limits
    )
    self._details.setdefault(choice.label, {})[category.name] = detail

  def write(
    self, results: Sequence[results_lib.Result]
  ) -> list[details_lib.Report]:
    """Log and write the tables; return the reports for `summarize`."""
    for result in results:
      self._write(result)
    for note in results[0].notes:
      _log.info("note: %s", note)
    log_skipped(results[0].skipped)
    _log.info("Tables and figures: %s", self._folder)
    return [
      details_lib.Report(result, self._details.get(result.references.label, {}))
      for result in results
    ]

  def _choice_folder(self, choice: References) -> pathlib.Path:
    return self._folder / (choice.label if choice.shots != 0 else "")

  def _write(self, result):
    """Write the tables of one choice; log those of the first seed."""
    choice, rows = result.references, result.rows
    title = _title(self._run, result)
    if choice.seed in (None, references.SEEDS[0]):
      _log.info("\n%s", tables_lib.to_text(rows, title))
    folder = self._choice_folder(choice)
    files.write_text(folder / "results.csv", tables_lib.to_csv(rows))
    files.write_text(folder / "results.md", tables_lib.to_markdown(rows, title))
    files.write_text(
      folder / "results.json", _document(self._run, result, title)
    )


def summarize(
  reports: Sequence[details_lib.Report],
  output: pathlib.Path,
  tables: paper_results.Tables,
) -> None:
  """Log and write a line per method and number of references.

  Mean and deviation are over runs of the same name (such as other seeds) and
  over the seeds of the references.

  Args:
    reports: reports of any data sets.
    output: receives <data>_summary.{md,csv,json}, and report.html for all.
    tables: published numbers to compare with.
  """
  for data in dict.fromkeys(r.result.dataset for r in reports):
    groups, printed = {}, {}
    for result in (r.result for r in reports if r.result.dataset == data):
      row = tables_lib.mean_row(result.rows)[0] | result.costs
      groups.setdefault(result.group, []).append(row)
      printed[result.group] = _printed(result, tables)
    title = (
      f"{data}: mean over categories; mean and standard deviation over "
      "repetitions (seeds). Values in %."
    )
    if len(groups) > 1 or any(len(rows) > 1 for rows in groups.values()):
      _log.info("\n%s", tables_lib.summary_to_text(groups, title, printed))
    markdown = tables_lib.summary_to_markdown(groups, title, printed)
    files.write_text(output / f"{data}_summary.md", markdown)
    csv = tables_lib.summary_to_csv(groups, printed)
    files.write_text(output / f"{data}_summary.csv", csv)
    text = tables_lib.summary_to_json(groups, printed, environment.setting())
    files.write_text(output / f"{data}_summary.json", text)
  measured: dict[str, Any] = environment.setting()
  measured |= measured.pop("versions")
  text = html_lib.render(reports, tables, measured)
  files.write_text(output / "report.html", text)
  _log.info("Report: %s", output / "report.html")


def means(
  results: Sequence[results_lib.Result],
) -> dict[tuple[str, str, int], dict[str, float]]:
  """Return means over repetitions, by configuration, data set and shots."""
  groups: dict[tuple[str, str, int], list] = {}
  for result in results:
    if result.shots is not None:
      key = (result.method, result.dataset, result.shots)
      groups.setdefault(key, []).append(tables_lib.mean_row(result.rows)[0])
  return {
    key: {m: tables_lib.spread(rows, m)[0] for m in tables_lib.METRICS}
    for key, rows in groups.items()
  }


def _printed(result, tables):
  """Return published means and whether they are reliable, by metric."""
  found = {}
  for metric in tables_lib.METRICS if result.shots is not None else ():
    cell = tables.find(
      result.method,
      dataset=result.dataset,
      shots=result.shots,
      metric=metric,
    )
    if cell and cell.value is not None:
      found[metric] = (cell.value, not cell.doubtful)
  return found


def _title(run, result):
  """Return the title of a table: run, data, backbone, settings."""
  config, choice = run.config, result.references
  setting = {None: "with given references", 0: "zero-shot"}.get(
    choice.shots, f"{choice.shots}-shot, seed {choice.seed}"
  )
  lines = [
    f"{config.name} after {run.step} steps on "
    f"{', '.join(config.train_data)}, {setting} on {result.dataset} "
    f"({result.costs['images_per_second']:.1f} images/s). Values in %.",
    f"Backbone {config.backbone.name}, {config.image_size} px, maps smoothed "
    f"with sigma {config.smooth_sigma:g}, selection {config.selection}.",
  ]
  if note := backbones.note(config.backbone.name):
    lines.append(note)
  return "\n".join(lines)


def _document(run, result, title):
  """Return results.json; JSON has no nan: an undefined metric is null."""
  defined = lambda v: None if isinstance(v, float) and np.isnan(v) else v
  choice = result.references
  document = {
    "rows": {
      name: {k: defined(v) for k, v in row.items()}
      for name, row in result.rows.items()
    },
    "title": title,
    "references": {
      "shots": choice.shots,
      "seed": choice.seed,
      "images": choice.images,
    },
    "protocol": dataclasses.asdict(result.protocol),
    "config": json.loads(run.config.to_json_best_effort()),
    "dataset": {"name": result.dataset, "root": result.root},
    "notes": result.dataset_notes,
    "step": run.step,
    **environment.setting(),
    "images_per_second": result.costs["images_per_second"],
    "skipped": result.skipped,
  }
  return json.dumps(document, indent=1, allow_nan=False)
