"""Files of the evaluation of a run on one data set.

Everything is written into the subfolder `partial` first, category by category,
and replaces the results of an earlier evaluation when the last one is done. An
evaluation that is stopped leaves the finished categories there.
"""

import io
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from zsad_jax.datasets import index, naming, references
from zsad_jax.datasets.references import NONE, References
from zsad_jax.evaluation import choices
from zsad_jax.evaluation import results as results_lib
from zsad_jax.evaluation.category import CategoryResult
from zsad_jax.evaluation.protocol import Protocol
from zsad_jax.inference.tiling import Tiling
from zsad_jax.reporting import details as details_lib
from zsad_jax.reporting import facts, figures, report
from zsad_jax.reporting import tables as tables_lib
from zsad_jax.reporting.paths import Paths, printable, relative
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import (
  distributed,
  environment,
  file_names,
  files,
  text_files,
)

PARTIAL = "partial"  # Folder of an evaluation that has not ended.
SCORES = "scores.csv"
SCORE_COLUMNS = ("path", "class", "label", "score", "split", "shots", "seed")

_log = logging.getLogger(__name__)

Choose = choices.Choose


def evaluate(
  run: run_lib.Run,
  data: str,
  output: pathlib.Path,
  protocol: Protocol,
  *,
  choose: Choose = lambda dataset, place: [NONE],
  names: Mapping[naming.Place, str] | None = None,
  skip_corrupt: bool | None = None,
) -> list[details_lib.Report]:
  """Evaluate a run on one data set, and write its tables and figures.

  Args:
    run: trained run.
    data: registered name or folder of the data set.
    output: see `Writer`.
    protocol: protocol of the run.
    choose: returns the choices of references of a data set.
    names: names of all data sets; None: of those of the run and this one.
    skip_corrupt: see `results.evaluate_run`.
  """
  config: Any = run.config
  dataset = run_lib.open_dataset(config, data)
  place = naming.place(data, config.data_root)
  names = names or naming.names(
    [place, *trained_on(config)],
    lambda name, place: is_free(output, name, place),
  )
  writer = Writer(run, dataset, output, place, protocol, names)
  try:
    found = results_lib.evaluate_run(
      run,
      dataset,
      protocol,
      place=place,
      name=names[place],
      choices=choose(dataset, place),
      skip_corrupt=skip_corrupt,
      on_category=writer.add_category,
    )
  except BaseException:
    writer.stopped()
    raise
  return writer.write(found)


def default_output(
  folder: pathlib.Path, tiling: Tiling | None = None
) -> pathlib.Path:
  """Return the folder of results below that of a run.

  Results of tiles have their own: those of whole images are kept, and belong
  to the finished stages of the run.
  """
  name = "evaluation"
  return folder / (f"{name}_{tiling.label}" if tiling else name)


def check_output(
  output: pathlib.Path, workdir: pathlib.Path, tiling: Tiling | None
) -> None:
  """Check that results of tiles do not replace those of whole images.

  Raises:
    ValueError: the folder is that of whole images.
  """
  whole = default_output(workdir)
  if tiling and os.path.realpath(output) == os.path.realpath(whole):
    raise ValueError(
      f"--output: {output} is for results of whole images, which those of "
      "tiles would replace: name another folder."
    )


def trained_on(config: Any) -> list[naming.Place]:
  """Return the data sets that a run was trained on or selected by."""
  specs = (*config.train_data, *config.get("selection_data", ()))
  return [naming.place(spec, config.get("data_root")) for spec in specs]


def names(config: Any, output: pathlib.Path) -> dict[naming.Place, str]:
  """Return the names of the data sets of a configuration.

  Args:
    config: configuration of a run.
    output: folder whose results of other data sets keep their names.
  """
  tested = [
    naming.place(spec, config.get("data_root")) for spec in config.test_data
  ]
  free = lambda name, place: is_free(output, name, place)
  return naming.names([*tested, *trained_on(config)], free)


def is_free(output: pathlib.Path, name: str, place: naming.Place) -> bool:
  """Return whether no other data set has results of this name in a folder."""
  try:
    text = (output / name / "results.json").read_text(encoding="utf-8")
    dataset = json.loads(text)["dataset"]
    return dataset.get("id", place.digest) == place.digest
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return True


class Writer:
  """Writes tables and figures of the evaluation of a run on one data set.

  Args:
    run: evaluated run.
    dataset: data set.
    output: receives <data>/results.{json,csv,md}, <data>/scores.csv and
      <data>/<category>.png; with references tables and figures below
      <data>/<choice>/.
    place: the data set as it was named.
    protocol: protocol of the run.
    names: names of all data sets.
  """

  def __init__(
    self,
    run: run_lib.Run,
    dataset: index.Dataset,
    output: pathlib.Path,
    place: naming.Place,
    protocol: Protocol,
    names: Mapping[naming.Place, str],
  ):
    self._run, self._dataset, self._place = run, dataset, place
    self._protocol, self._name = protocol, names[place]
    self._folder = output / self._name
    self._partial = self._folder / PARTIAL
    self._paths = _paths(run, dataset, names[place], names)
    self._limits = [
      results_lib.stored_threshold(run, few_shot=few) for few in (False, True)
    ]
    self._details: dict[str, dict[str, details_lib.Detail]] = {}
    self._rows: dict[str, dict[str, tables_lib.Row]] = {}
    self._setting = results_lib.setting(run)
    self._environment = environment.setting()
    self._file_names = file_names.safe_names(dataset.class_names)

  def add_category(self, category: CategoryResult) -> None:
    """Write a category to the partial results, and keep its details."""
    config: Any = self._run.config
    if not self._rows and distributed.is_primary():
      shutil.rmtree(self._partial, ignore_errors=True)
    size, choice = config.image_size, category.references
    show = lambda sample: relative(
      sample.image_path, self._dataset.root, self._paths
    )
    folder = self._partial / _subfolder(choice)
    if category.examples.kept:  # None of image scores alone.
      figure = details_lib.category_figure(category, image_size=size, show=show)
      name = self._file_names[category.name]
      figures.save_png(folder / f"{name}.png", figure)
    detail = details_lib.category_detail(
      category,
      image_size=size,
      limits=self._limits[bool(choice.images)],
      show=show,
    )
    self._details.setdefault(choice.label, {})[category.name] = detail
    rows = self._rows.setdefault(choice.label, {})
    rows[category.name] = category.compute()
    self._add_scores(category, show)
    done = f"{len(rows)} of {self._num_categories()} categories are done"
    self._write(self._interim(choice, rows), folder, partial=done)

  def stopped(self) -> None:
    """Log where the finished categories of a stopped evaluation are."""
    if self._rows:
      done = max(map(len, self._rows.values()))
      _log.info(
        "Partial results, %d of %d categories of %s: %s",
        done,
        self._num_categories(),
        self._name,
        self._partial,
      )

  def write(
    self, results: Sequence[results_lib.Result]
  ) -> list[details_lib.Report]:
    """Log and write the tables; return the reports for `summarize`."""
    clean = [facts.without_paths(r, self._paths) for r in results]
    for result in clean:
      self._write(result, self._folder / _subfolder(result.references))
      if result.references.seed in (None, references.SEEDS[0]):
        _log.info("\n%s", tables_lib.to_text(result.rows, facts.title(result)))
        for name, images in facts.references(result).items():
          _log.info("References of %s: %s", name, images)
    self._finish()
    for note in clean[0].notes:
      _log.info("note: %s", note)
    report.log_skipped(results[0].skipped)
    _log.info("Tables and figures: %s", self._folder)
    return [
      details_lib.Report(result, self._details.get(result.references.label, {}))
      for result in clean
    ]

  def _finish(self):
    """Move figures and scores from the partial results to their names."""
    if not (distributed.is_primary() and self._partial.is_dir()):
      return
    for path in sorted(self._partial.rglob("*")):
      if path.suffix == ".png" or path.name == SCORES:
        target = self._folder / path.relative_to(self._partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    shutil.rmtree(self._partial)

  def _num_categories(self):
    return len({sample.class_name for sample in self._dataset.test})

  def _interim(self, choice, rows):
    """Return the result of the categories that are done."""
    result = results_lib.Result(
      method=self._run.config.name,
      dataset=self._name,
      root=self._dataset.root,
      references=choice,
      rows=rows,
      costs=dict.fromkeys(results_lib.COSTS, float("nan")),
      protocol=self._protocol.with_references([choice]),
      setting=self._setting,
      notes=tuple(self._dataset.notes),
    )
    return facts.without_paths(result, self._paths)

  def _write(self, result, folder, partial=""):
    """Write the tables of one choice."""
    title = facts.title(result, partial=partial)
    table = tables_lib.to_csv(
      result.rows,
      columns={
        **({"partial": partial} if partial else {}),
        **facts.columns(result),
      },
      references=lambda category: facts.of_category(result, category),
    )
    files.write_text(folder / "results.csv", printable(table))
    markdown = tables_lib.to_markdown(result.rows, title)
    files.write_text(folder / "results.md", printable(markdown))
    document = facts.document(
      result,
      partial=partial,
      digest=self._place.digest,
      config=self._paths.value(
        json.loads(self._run.config.to_json_best_effort())
      ),
      environment=self._environment,
    )
    files.write_text(folder / "results.json", document)

  def _add_scores(self, category, show):
    """Append the images of a category to the table of scores."""
    if not distributed.is_primary():
      return
    choice, text = category.references, io.StringIO()
    writer = text_files.CsvWriter(text)
    path = self._partial / SCORES
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
      writer.writerow(SCORE_COLUMNS)
    shots = "given" if choice.shots is None else choice.shots
    seed = "" if choice.seed is None else choice.seed
    scores = zip(category.samples, category.pred_score)
    scored = {id(sample): score for sample, score in scores}
    left_out = frozenset(choice.left_out)
    for sample in category.listed:
      if sample.image_path in left_out:
        continue
      score = scored.get(id(sample), "")
      score = score if score == "" else repr(float(score))
      row = (show(sample), sample.class_name, sample.label, score)
      writer.writerow([*row, "test", shots, seed])
    with path.open("a", encoding="utf-8", newline="") as file:
      file.write(printable(text.getvalue()))


def results_folder(
  output: pathlib.Path, result: results_lib.Result
) -> pathlib.Path:
  """Return the folder with the tables of a result."""
  return output / result.dataset / _subfolder(result.references)


def _subfolder(choice: References) -> str:
  """Return the folder of a choice below that of the data set."""
  return choice.label if choice.shots != 0 else ""


def _paths(
  run: run_lib.Run,
  dataset: index.Dataset,
  name: str,
  names: Mapping[naming.Place, str],
) -> Paths:
  """Return the replacements of the folders of an evaluation."""
  config: Any = run.config
  folders = {place.root: known for place, known in names.items() if place.root}
  folders |= {dataset.root: name}
  folders.setdefault(str(run.workdir.absolute().parent), "")
  if root := config.get("data_root"):
    folders.setdefault(os.path.abspath(root), "")
  return Paths(folders)
