r"""Evaluates trained runs on data sets: tables and figures for each.

python -m zsad_jax.evaluate --workdir=runs/adaclip --data=elpv
python -m zsad_jax.evaluate --workdir=runs/adaptclip,runs/anomalyclip \
    --shots=1,2,4

  --data=mvtec,visa,DIR   registered names or folders; default: each run's own
  --data_root=DIR         where registered data sets lie, if not as in training
  --shots=1,2,4           few-shot, with that many references of each class,
                          sampled as AdaptCLIP's authors do; 0 is added
  --seeds=10,20,30        of that sampling
  --references=PATH       few-shot with these: a folder with one subfolder for
                          each class, or a JSON file {class: [path, ...]}
  --variant=NAME          metrics as a paper measured them: adaclip,
                          anomalyclip, faprompt, april_gan, adaptclip,
                          adaptclip_256, trapezoid, per_image; or exact (all
                          maps are kept) instead of streamed (the default)
  --output=DIR            default: WORKDIR/evaluation; of several runs:
                          evaluation/ beside the first one
  --check=POINTS          exit with 1 if a mean is further than that many
                          points from the paper's
  --paper_results=DIR     the papers' tables, if not data/paper_results
  --list_tables           name the papers' tables and what each needs
  --allow_trained         test on what was trained on, too
  --skip_corrupt          count images that cannot be read, do not stop

Methods that know no references get a memory of them, see fewshot.py. Runs of
the same config.name, such as other seeds, are averaged.
"""

import pathlib

from absl import flags

from zsad_jax.datasets import references
from zsad_jax.evaluation import paper_results, protocol
from zsad_jax.reporting import report
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import cli


def chooser(shots, seeds, path):
  """Returns the function from a data set to choices of references.

  Zero-shot comes first, whatever else is asked for.
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


def define_flags():
  """The command's flags; defined only when it is run."""
  flags.DEFINE_list("workdir", [], "Folders of runs.")
  flags.DEFINE_list("data", None, "Data sets: names or folders.")
  flags.DEFINE_string("data_root", None, "Folder of the data sets.")
  flags.DEFINE_list("shots", [], "Numbers of references per class.")
  flags.DEFINE_list("seeds", [*map(str, references.SEEDS)], "Of the sampling.")
  flags.DEFINE_string("references", None, "Folder or JSON of references.")
  flags.DEFINE_string("variant", "streamed", "Of the metrics.")
  flags.DEFINE_string("output", None, "Where tables and figures go.")
  flags.DEFINE_float("check", None, "Largest difference to a paper's mean.")
  flags.DEFINE_string("paper_results", None, "Folder of the papers' tables.")
  flags.DEFINE_bool("list_tables", False, "List the papers' tables.")
  flags.DEFINE_bool("allow_trained", False, "Test on what was trained on.")
  flags.DEFINE_bool("skip_corrupt", None, "Leave out what can't be read.")


def main(options):
  cells = _cells(options)
  if options.list_tables:
    print(paper_results.list_tables(cells))
    return 0
  if not options.workdir:
    raise ValueError("Give --workdir=RUN[,RUN...] or --list_tables.")
  tables, results = paper_results.Tables(cells), []
  for workdir in options.workdir:
    results += _evaluate(run_lib.load(workdir), options)
  beside = pathlib.Path(options.workdir[0])
  beside = beside if len(options.workdir) == 1 else beside.parent
  output = pathlib.Path(options.output or beside / "evaluation")
  report.summarize(results, output, tables)
  if options.check is None:
    return 0
  return _check(report.means(results), tables, options.check / 100)


def _cells(options):
  """The papers' numbers; none where they were not asked for and are not there.

  They belong to the source, not to an installed package.
  """
  folder = pathlib.Path(options.paper_results or paper_results.FOLDER)
  asked = options.paper_results or options.list_tables
  if folder.is_dir() or asked or options.check is not None:
    return paper_results.read(folder)
  print(f"note: {folder} is not there: no papers' numbers stand beside.")
  return ()


def _evaluate(run, options):
  """The results of one run on all data sets."""
  shots, seeds = _integers(options, "shots"), _integers(options, "seeds")
  choose = chooser(shots, seeds, options.references)
  if options.data_root is not None:
    with run.config.unlocked():
      run.config.data_root = options.data_root
  data_sets = tuple(options.data or run.config.test_data)
  how = protocol.Protocol.of(
    run.config,
    test_data=data_sets,
    shots=(0, *shots),
    seeds=tuple(seeds) if shots else (),
    variant=options.variant,
    allow_trained=options.allow_trained
    or run.config.get("allow_trained", False),
  )
  output = run.workdir / "evaluation"
  if options.output and len(options.workdir) == 1:
    output = pathlib.Path(options.output)
  results = []
  for data in data_sets:
    results += report.evaluate(
      run,
      data,
      output,
      how,
      choose=choose,
      skip_corrupt=options.skip_corrupt,
    )
  report.decoded_cache(run.config.get("decoded_cache", ""))
  return results


def _check(means, tables, tolerance):
  """Prints the comparisons; returns the exit status."""
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
  values = options[name].value
  if bad := [v for v in values if not v.isdecimal()]:
    raise ValueError(f"--{name}: {bad[0]!r} is no number from 0 on.")
  return [int(v) for v in values]


if __name__ == "__main__":
  cli.run(main, define_flags)
