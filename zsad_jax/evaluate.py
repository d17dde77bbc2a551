r"""Evaluates a trained run on data sets: a table and figures for each.

python -m zsad_jax.evaluate --workdir=runs/adaclip --data=elpv

  --data=mvtec,visa,DIR   registered names or folders; default: the run's own
  --data_root=DIR         where registered data sets lie, if not as in training
  --output=DIR            default: WORKDIR/evaluation
  --skip_corrupt          count images that cannot be read, do not stop
"""

import pathlib

from absl import flags

from zsad_jax import cli, report, runs


def define_flags():
  """The command's flags; defined only when it is run."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_list("data", None, "Data sets: names or folders.")
  flags.DEFINE_string("data_root", None, "Folder of the data sets.")
  flags.DEFINE_string("output", None, "Where tables and figures go.")
  flags.DEFINE_bool("skip_corrupt", None, "Leave out what can't be read.")


def main(options):
  run = runs.load(options.workdir)
  if options.data_root is not None:
    with run.config.unlocked():
      run.config.data_root = options.data_root
  output = pathlib.Path(options.output or run.workdir / "evaluation")
  for data in options.data or run.config.test_data:
    report.evaluate(run, data, output, skip_corrupt=options.skip_corrupt)


if __name__ == "__main__":
  cli.run(main, define_flags)
