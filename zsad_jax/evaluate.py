r"""Evaluate trained runs on data sets: tables, figures and an HTML page.

python -m zsad_jax.evaluate --workdir=runs/adaclip --data=elpv
python -m zsad_jax.evaluate --workdir=runs/adaptclip,runs/anomalyclip \
    --shots=1,2,4
python -m zsad_jax.evaluate --ensemble=runs/adaclip,runs/faprompt \
    --workdir=runs/ensemble
python -m zsad_jax.evaluate --list_tables

Methods without reference images get a memory bank of their patches for
few-shot evaluation. Runs that differ in their seeds alone are averaged. An
ensemble is the mean of the scores and maps of several runs.
docs/evaluation.md describes protocols, metrics and reports.
"""

import dataclasses
import math
import os
import pathlib
from typing import Any

from absl import flags

from zsad_jax import metrics
from zsad_jax.datasets import masks, naming, references
from zsad_jax.evaluation import (
  choices,
  paper_results,
  protocol,
  recipes,
  results,
)
from zsad_jax.inference import tiling
from zsad_jax.metrics import accumulators
from zsad_jax.reporting import details, report, writer
from zsad_jax.runs import ensemble, peers
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import cli, mirror

chooser = choices.chooser
evaluate_and_write = writer.evaluate


@dataclasses.dataclass(frozen=True)
class Plan:
  """Evaluation of one run, checked before its weights are loaded.

  Attributes:
    workdir: folder of the run.
    data: the data sets as they were given, each once.
    places: the same, whatever their paths.
    output: folder of the results.
    protocol: protocol of the run.
    papers: configuration, data set and shots that papers may have numbers for.
  """

  workdir: pathlib.Path
  data: tuple[str, ...]
  places: tuple[naming.Place, ...]
  output: pathlib.Path
  protocol: protocol.Protocol
  papers: tuple[tuple[str, str, int], ...]


def define_flags() -> None:
  """Define the flags of the command."""
  _define_few_shot_flags()
  _define_variant_flag()
  tiling.define_flags()
  flags.DEFINE_list("workdir", [], "Folders of runs, separated by commas.")
  flags.DEFINE_list(
    "ensemble",
    [],
    "Folders of runs whose scores and maps are averaged; --workdir is the "
    "folder of the ensemble, which is used like that of a run afterwards.",
  )
  flags.DEFINE_list(
    "data",
    None,
    "Data sets: registered names or folders. Default: the test data of each "
    "run.",
  )
  flags.DEFINE_string(
    "data_root", None, "Folder of registered data sets, if not as in training."
  )
  flags.DEFINE_string(
    "output",
    None,
    "Folder of tables and figures. Default: WORKDIR/evaluation, with --tile "
    "WORKDIR/evaluation_tileSIZE; of several runs: evaluation/ in the parent "
    "folder of the first one.",
  )
  flags.DEFINE_string("masks", None, f"{masks.HELP} Default: as in training.")
  flags.DEFINE_float(
    "check",
    None,
    "Exit with status 1 if a mean differs from the published one by more than "
    "this number of percentage points.",
  )
  flags.DEFINE_string(
    "paper_results", None, "Folder of the published tables (CSV)."
  )
  flags.DEFINE_bool(
    "list_tables",
    False,
    "List the published tables, and the configurations of their rows.",
  )
  flags.DEFINE_bool("allow_trained", False, "Allow testing on training data.")
  flags.DEFINE_bool(
    "skip_corrupt", None, "Count images that cannot be read; do not stop."
  )


def _define_few_shot_flags():
  """Define the flags of few-shot evaluation."""
  flags.DEFINE_list(
    "shots",
    [],
    "Few-shot evaluation with these numbers of references per class, sampled "
    "as AdaptCLIP's authors do; zero-shot is always included.",
  )
  flags.DEFINE_list(
    "seeds", [*map(str, references.SEEDS)], "Seeds for reference sampling."
  )
  flags.DEFINE_string(
    "references",
    None,
    "Few-shot evaluation with given references: a folder with one subfolder "
    "per class, or a JSON file {class: [path, ...]}.",
  )

  flags.DEFINE_bool(
    "official_references",
    False,
    "Draw references of medical sets, which have no training images, from all "
    "test images, anomalous ones included, as AdaptCLIP's authors do.",
  )


def _define_variant_flag():
  """Define the flag of the definition of the metrics; lists all metrics."""
  titles = "; ".join(f"{m.name}: {m.title}" for m in metrics.METRICS.values())
  flags.DEFINE_string(
    "variant",
    "streamed",
    f"Definition of the metrics, one of {', '.join(accumulators.VARIANTS)}. "
    '"streamed" counts pixels in histograms, "exact" keeps all maps in memory, '
    f"the others follow published evaluations. Metrics: {titles}.",
  )


def main(options: flags.FlagValues) -> int:
  """Run the command; return the exit status."""
  if options.masks is not None:
    masks.parse(options.masks)  # Before anything is loaded.
  cells = _cells(options)
  if options.list_tables:
    print(recipes.list_tables(cells))
    return 0
  if not options.workdir:
    raise ValueError("Give --workdir=RUN[,RUN...] or --list_tables.")
  check_flags(options)
  if options.ensemble:
    ensemble.write(options.workdir[0], options.ensemble)
  tables, reports = paper_results.Tables(cells), []
  choose = chooser(
    _integers(options, "shots"),
    _integers(options, "seeds"),
    options.references,
    official=options.official_references,
  )
  configs = [_read_config(workdir, options) for workdir in options.workdir]
  plans = [
    _plan(pathlib.Path(workdir), config, choose, options)
    for workdir, config in zip(options.workdir, configs)
  ]
  if options.check is not None:
    _check_comparable(plans, tables)
  names = _names(plans, configs)
  for plan in plans:
    reports += _evaluate(plan, names, choose, options)
  report.summarize(reports, _output(options), tables)
  if options.check is None:
    return 0
  means = report.means([r.result for r in reports])
  return _check(means, tables, options.check / 100)


def check_flags(options: flags.FlagValues) -> None:
  """Check flags that need no file of a run.

  Raises:
    ValueError: a value is out of range, or flags exclude one another.
  """
  real = [os.path.realpath(workdir) for workdir in options.workdir]
  for workdir, path in zip(options.workdir, real):
    if real.count(path) > 1:
      raise ValueError(f"--workdir: {workdir} is given more than once.")
  if options.ensemble and len(options.workdir) != 1:
    raise ValueError("--ensemble: --workdir is the one folder of the ensemble.")
  if options["seeds"].present and not any(_integers(options, "shots")):
    raise ValueError("--seeds are those of references: give --shots, too.")
  if options.official_references and not any(_integers(options, "shots")):
    raise ValueError("--official_references: give --shots, too.")
  if _integers(options, "shots") and not _integers(options, "seeds"):
    raise ValueError("--seeds is empty; give at least one seed.")
  check = options.check
  if check is not None and not (math.isfinite(check) and check >= 0):
    raise ValueError(f"--check is a number of at least 0, got {check:g}.")
  accumulators.variant(options.variant)
  if len(options.workdir) > 1 and not options.output:
    if mirror.of(options.workdir[0]):
      raise ValueError("--output: name a folder for the summary of the runs.")
  output = _output(options)
  if output.exists() and not output.is_dir():
    raise ValueError(f"--output: {output} is a file; expected a folder.")


def _output(options):
  """Return the folder of the summary."""
  folder = pathlib.Path(options.workdir[0])
  folder = folder if len(options.workdir) == 1 else folder.parent
  tiles = tiling.from_flags(options)
  return pathlib.Path(options.output or writer.default_output(folder, tiles))


def _read_config(workdir, options):
  """Return the configuration of a run, with the settings of the flags."""
  config = ensemble.read_config(workdir)
  if options.data_root is not None:
    config.data_root = options.data_root
  if options.masks is not None:
    config.masks = options.masks
  return config


def _plan(workdir, config, choose, options):
  """Check the evaluation of a run; its weights are not needed for this."""
  place_of = {}
  for spec in options.data or config.test_data:
    place_of.setdefault(naming.place(spec, config.data_root), spec)
  if not place_of:
    raise ValueError(
      f"{workdir}: config.test_data is empty; name data sets by --data."
    )
  shots, seeds = _integers(options, "shots"), _integers(options, "seeds")
  how = protocol.Protocol.from_config(
    config,
    test_data=tuple(place_of.values()),
    shots=tuple(sorted({0, *shots})),
    seeds=tuple(dict.fromkeys(seeds)) if any(shots) else (),
    variant=options.variant,
    tiling=tiling.from_flags(options),
    allow_trained=options.allow_trained or config.get("allow_trained", False),
  )
  method = ensemble.make_method(config)
  papers = []
  for place, spec in place_of.items():
    dataset = run_lib.open_dataset(config, spec)
    peers.check_data(dataset)
    _, allowed = results.check(
      method, config, dataset, place, how, choose(dataset, place)
    )
    paper = results.paper_key(config, dataset, place, tiling=how.tiling)
    papers += [
      (*paper, choice.shots)
      for choice in allowed
      if paper and results.is_papers(choice) and choice.shots is not None
    ]
  output = writer.default_output(workdir, how.tiling)
  if options.output and len(options.workdir) == 1:
    output = pathlib.Path(options.output)
  writer.check_output(output, workdir, how.tiling)
  places = tuple(place_of)
  return Plan(workdir, how.test_data, places, output, how, tuple(papers))


def _check_comparable(plans, tables):
  """Refuse --check where no paper has a number to compare with."""
  for plan in plans:
    for name, dataset, shots in plan.papers:
      for metric in metrics.METRICS:
        cell = tables.find(name, dataset=dataset, shots=shots, metric=metric)
        if cell and not cell.doubtful:
          return
  raise ValueError(
    "--check: no paper has a number for these configurations, data sets and "
    "shots; see --list_tables. The configuration must be the paper's, the data "
    "set registered and complete, images whole (no --tile), and references "
    "sampled with the seeds "
    f"{', '.join(map(str, references.SEEDS))}."
  )


def _names(plans, configs):
  """Return the names of all data sets of all runs."""
  places = [place for plan in plans for place in plan.places]
  trained = [place for each in configs for place in writer.trained_on(each)]
  free = lambda name, place: all(
    writer.is_free(plan.output, name, place) for plan in plans
  )
  return naming.names([*places, *trained], free)


def _cells(options):
  """Return the published numbers; none where their default folder is missing.

  They belong to the source, not to an installed package.
  """
  folder = pathlib.Path(options.paper_results or paper_results.default_folder())
  required = options.paper_results or options.list_tables
  if folder.is_dir() or required or options.check is not None:
    return paper_results.read(folder)
  print(f"note: {folder} does not exist: no comparison with published numbers.")
  return ()


def _evaluate(
  plan: Plan, names: Any, choose: writer.Choose, options: flags.FlagValues
) -> list[details.Report]:
  """Return the reports of one run on all data sets."""
  run, reports = ensemble.load(plan.workdir), []
  config: Any = run.config
  if options.data_root is not None:
    with config.unlocked():
      config.data_root = options.data_root
  if options.masks is not None:
    with config.unlocked():
      config.masks = options.masks
  for data in plan.data:
    reports += evaluate_and_write(
      run,
      data,
      plan.output,
      plan.protocol,
      choose=choose,
      names=names,
      skip_corrupt=options.skip_corrupt,
    )
  report.log_cache_size(config.get("decoded_cache", ""))
  return reports


def _check(means, tables, tolerance):
  """Print the comparison with published means; return the exit status."""
  compared = paper_results.compare(tables, means)
  failed = [c for c in compared if abs(c.difference) > tolerance]
  print(
    f"{len(compared)} means compared with the papers', {len(failed)} differ "
    f"by more than {100 * tolerance:g} points."
  )
  for comparison in failed:
    print(f"  {comparison}")
  return 1 if failed else 0


def _integers(options, name):
  """Return the integers of a list flag."""
  values = options[name].value
  if bad := [v for v in values if not v.isdecimal()]:
    raise ValueError(f"--{name}: {bad[0]!r} is not a non-negative integer.")
  return [int(v) for v in values]


if __name__ == "__main__":
  cli.run(main, define_flags)
