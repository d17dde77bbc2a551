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
  --output=DIR            default: WORKDIR/evaluation; of a summary of several
                          runs: evaluation/ beside the first one
  --skip_corrupt          count images that cannot be read, do not stop

Methods that know no references get a memory of them, see fewshot.py. Runs of
the same config.name, such as other seeds, are averaged.
"""

import pathlib

from absl import flags

from zsad_jax import cli, report, runs
from zsad_jax.datasets import references


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
  flags.DEFINE_list("workdir", None, "Folders of runs.", required=True)
  flags.DEFINE_list("data", None, "Data sets: names or folders.")
  flags.DEFINE_string("data_root", None, "Folder of the data sets.")
  flags.DEFINE_list("shots", [], "Numbers of references per class.")
  flags.DEFINE_list("seeds", [*map(str, references.SEEDS)], "Of the sampling.")
  flags.DEFINE_string("references", None, "Folder or JSON of references.")
  flags.DEFINE_string("output", None, "Where tables and figures go.")
  flags.DEFINE_bool("skip_corrupt", None, "Leave out what can't be read.")


def main(options):
  shots, seeds = _integers(options, "shots"), _integers(options, "seeds")
  choose = chooser(shots, seeds, options.references)
  results = {}
  for workdir in options.workdir:
    run = runs.load(workdir)
    if options.data_root is not None:
      with run.config.unlocked():
        run.config.data_root = options.data_root
    output = run.workdir / "evaluation"
    if options.output and len(options.workdir) == 1:
      output = pathlib.Path(options.output)
    for data in options.data or run.config.test_data:
      results.setdefault(data, []).extend(
          report.evaluate(
              run,
              data,
              output,
              choose=choose,
              skip_corrupt=options.skip_corrupt,
          )
      )
  if len(options.workdir) > 1:
    beside = pathlib.Path(options.workdir[0]).parent / "evaluation"
    output = pathlib.Path(options.output or beside)
  for data, found in results.items():
    if len(found) > 1:
      report.summarize(found, pathlib.Path(data).name, output)


def _integers(options, name):
  values = options[name].value
  if bad := [v for v in values if not v.isdecimal()]:
    raise ValueError(f"--{name}: {bad[0]!r} is no number from 0 on.")
  return [int(v) for v in values]


if __name__ == "__main__":
  cli.run(main, define_flags)
