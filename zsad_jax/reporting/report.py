"""Summaries of evaluations: tables and an HTML page of all results."""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from zsad_jax.datasets import cache
from zsad_jax.evaluation import grouping, paper_results
from zsad_jax.evaluation import results as results_lib
from zsad_jax.reporting import details as details_lib
from zsad_jax.reporting import facts
from zsad_jax.reporting import html as html_lib
from zsad_jax.reporting import tables as tables_lib
from zsad_jax.reporting.html import printed_cell
from zsad_jax.reporting.paths import printable
from zsad_jax.runtime import environment, files

_log = logging.getLogger(__name__)


def log_skipped(messages: Sequence[str]) -> None:
  """Log the images that were left out."""
  if messages:
    _log.info("Skipped because they cannot be read (%d):", len(messages))
    for message in messages:
      _log.info("  %s", message)


def log_cache_size(folder: str) -> None:
  """Log the size of the cache of decoded images; "": there is none."""
  if folder:
    size = cache.DecodedCache(folder).size()
    _log.info("Decoded images in %s: %s MB", folder, f"{size / 1e6:,.1f}")


def summarize(
  reports: Sequence[details_lib.Report],
  output: pathlib.Path,
  tables: paper_results.Tables,
) -> None:
  """Log and write a line per configuration and number of references.

  Mean and deviation are over runs that differ in their seeds alone, and over
  the seeds of the references.

  Args:
    reports: reports of any data sets.
    output: receives <data>_summary.{md,csv,json}, and report.html for all.
    tables: published numbers to compare with.
  """
  setting = environment.setting()
  for data in dict.fromkeys(r.result.dataset for r in reports):
    results = [r.result for r in reports if r.result.dataset == data]
    found = grouping.groups(results)
    rows = {
      name: [tables_lib.mean_row(r.rows)[0] | r.costs for r in members]
      for name, members in found.items()
    }
    printed = {name: _printed(of[0], tables) for name, of in found.items()}
    columns = {name: _columns(members) for name, members in found.items()}
    title = (
      f"{data}: mean over categories; mean and standard deviation over "
      "repetitions (seeds). Values in %."
    )
    if len(rows) > 1 or any(len(each) > 1 for each in rows.values()):
      _log.info("\n%s", tables_lib.summary_to_text(rows, title, printed))
    notes = grouping.notes(results)
    for note in notes:
      _log.info("note: %s", note)
    heading = "\n\n".join([title, *_setups(found), *notes])
    stem = f"{data}_summary"
    for ending, text in (
      ("md", tables_lib.summary_to_markdown(rows, heading, printed)),
      ("csv", tables_lib.summary_to_csv(rows, printed, columns)),
      ("json", tables_lib.summary_to_json(rows, printed, setting, columns)),
    ):
      files.write_text(output / f"{stem}.{ending}", printable(text))
  measured: dict[str, Any] = dict(setting)
  measured |= measured.pop("versions")
  text = html_lib.render(reports, tables, measured)
  files.write_text(output / "report.html", printable(text))
  _log.info("Report: %s", output / "report.html")


def means(
  results: Sequence[results_lib.Result],
) -> dict[tuple[str, str, int], dict[str, float]]:
  """Return means over repetitions of results that papers have numbers for.

  Args:
    results: of any data sets.

  Returns:
    Means by the papers' configuration and data set, and shots.
  """
  found: dict[tuple[str, str, int], dict[str, float]] = {}
  for data in dict.fromkeys(r.dataset for r in results):
    of_data = [r for r in results if r.dataset == data]
    for members in grouping.groups(of_data).values():
      paper, shots = members[0].paper, members[0].shots
      if paper and shots is not None:
        rows = [tables_lib.mean_row(r.rows)[0] for r in members]
        found[(*paper, shots)] = {
          m: tables_lib.spread(rows, m)[0] for m in tables_lib.METRICS
        }
  return found


def _printed(result, tables):
  """Return published means and whether they are reliable, by metric."""
  found = {}
  for metric in tables_lib.METRICS:
    cell = printed_cell(result, tables, metric)
    if cell and cell.value is not None:
      found[metric] = (cell.value, not cell.doubtful)
  return found


def _columns(members):
  """Return the facts that all repetitions share, seeds in one cell."""
  columns = facts.columns(members[0])
  for name in ("reference_seed", "training_seed"):
    seeds = dict.fromkeys(facts.columns(r)[name] for r in members)
    columns[name] = " ".join(map(str, seeds))
  return columns


def _setups(groups):
  """Return backbone, image size, protocol and note of each group, once."""
  lines: dict[str, list[str]] = {}
  for name, members in groups.items():
    lines.setdefault(" ".join(facts.setup(members[0])), []).append(name)
  return [f"{'; '.join(names)}: {text}" for text, names in lines.items()]
