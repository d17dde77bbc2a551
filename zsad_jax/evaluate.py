r"""Evaluate trained runs on data sets: tables, figures and an HTML page.

python -m zsad_jax.evaluate --workdir=runs/adaclip --data=elpv
python -m zsad_jax.evaluate --workdir=runs/adaptclip,runs/anomalyclip \
    --shots=1,2,4
python -m zsad_jax.evaluate --list_tables

Methods without reference images get a memory bank of their patches for
few-shot evaluation. Runs with the same config.name, such as other seeds, are
averaged. docs/evaluation.md describes protocols, metrics and reports.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from zsad_jax import metrics
from zsad_jax.datasets import index, masks, references
from zsad_jax.datasets.references import References
from zsad_jax.evaluation import paper_results, protocol, results
from zsad_jax.metrics import accumulators
from zsad_jax.reporting import details, report
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import cli

Chooser = Callable[[index.Dataset], Sequence[References]]


def chooser(
  shots: Sequence[int], seeds: Sequence[int], path: str | None
) -> Chooser:
  """Return the function from a data set to choices of references.

  Zero-shot always comes first.

  Args:
    shots: numbers of references per class.
    seeds: seeds of their sampling.
    path: folder or JSON file of given references; not together with `shots`.

  Raises:
    ValueError: both are given.
  """
  if path and shots:
    raise ValueError("Give --shots or --references, not both.")

  def choose(dataset):
    chosen = [references.NONE]
    if path:
      chosen.append(references.read(path, dataset))
    for number in sorted(set(shots) - {0}):
      chosen += [
        references.sample(dataset, shots=number, seed=seed) for seed in seeds
      ]
    return chosen

  return choose


def evaluate_and_write(
  run: run_lib.Run,
  data: str,
  output: pathlib.Path,
  evaluation_protocol: protocol.Protocol,
  **options: Any,
) -> list[details.Report]:
  """Evaluate a run on one data set and write its tables and figures.

  Args:
    run: trained run.
    data: registered name or folder of the data set.
    output: see `report.Writer`.
    evaluation_protocol: protocol of the run.
    **options: further arguments of `results.evaluate_run`.
  """
  dataset = run_lib.open_dataset(run.config, data)
  writer = report.Writer(run, dataset, output)
  return writer.write(
    results.evaluate_run(
      run,
      dataset,
      evaluation_protocol,
      on_category=writer.add_category,
      **options,
    )
  )


def define_flags() -> None:
  """Define the flags of the command."""
  _define_few_shot_flags()
  _define_variant_flag()
  flags.DEFINE_list("workdir", [], "Folders of runs, separated by commas.")
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
    "Folder of tables and figures. Default: WORKDIR/evaluation; of several "
    "runs: evaluation/ in the parent folder of the first one.",
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
    "list_tables", False, "List the published tables and what each needs."
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
    print(paper_results.list_tables(cells))
    return 0
  if not options.workdir:
    raise ValueError("Give --workdir=RUN[,RUN...] or --list_tables.")
  tables, reports = paper_results.Tables(cells), []
  for workdir in options.workdir:
    reports += _evaluate(run_lib.load(workdir), options)
  folder = pathlib.Path(options.workdir[0])
  folder = folder if len(options.workdir) == 1 else folder.parent
  output = pathlib.Path(options.output or folder / "evaluation")
  report.summarize(reports, output, tables)
  if options.check is None:
    return 0
  means = report.means([r.result for r in reports])
  return _check(means, tables, options.check / 100)


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


def _evaluate(run, options):
  """Return the reports of one run on all data sets."""
  shots, seeds = _integers(options, "shots"), _integers(options, "seeds")
  choose = chooser(shots, seeds, options.references)
  config = run.config
  if options.data_root is not None:
    with config.unlocked():
      config.data_root = options.data_root
  if options.masks is not None:
    with config.unlocked():
      config.masks = options.masks
  data_sets = tuple(options.data or config.test_data)
  how = protocol.Protocol.from_config(
    config,
    test_data=data_sets,
    shots=(0, *shots),
    seeds=tuple(seeds) if shots else (),
    variant=options.variant,
    allow_trained=options.allow_trained or config.get("allow_trained", False),
  )
  output = run.workdir / "evaluation"
  if options.output and len(options.workdir) == 1:
    output = pathlib.Path(options.output)
  reports = []
  for data in data_sets:
    reports += evaluate_and_write(
      run,
      data,
      output,
      how,
      choose=choose,
      skip_corrupt=options.skip_corrupt,
    )
  report.log_cache_size(config.get("decoded_cache", ""))
  return reports


def _check(means, tables, tolerance):
  """Print the comparison with published means; return the exit status."""
  compared = paper_results.compare(tables, means)
  if not compared:
    raise ValueError(
      "--check: no paper has a number for these methods, data sets and "
      "shots; see --list_tables."
    )
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
