r"""Reproduce a table of the papers, or the project's own table of all methods.

python -m zsad_jax.reproduce --table=faprompt/2
python -m zsad_jax.reproduce --table=embedded --seeds=111,222,333

Trains what is missing, evaluates all rows on the available data sets, and
prints ours next to the paper's. A command that was stopped, or killed, goes on
where it was: finished trainings and evaluations are not repeated.

  --dry_run       list what is done, to do and left out (also --check)
  --methods=A,B   only these methods; of the own table also variants, such as
                  anomalyclip:ensemble
  --workdir=DIR   runs and tables; default runs/reproduce

`zsad evaluate --list_tables` lists the tables of the papers.
Their configurations need converted weights and data sets, see docs/usage.md.
"""

import pathlib

from absl import flags

from zsad_jax.evaluation import paper_results
from zsad_jax.reproduce import embedded, jobs, papers
from zsad_jax.runs import lock
from zsad_jax.runtime import cli, environment, stopping


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_string(
    "table",
    None,
    "PAPER/NUMBER, such as faprompt/2, or embedded.",
    required=True,
  )
  flags.DEFINE_string(
    "workdir", "runs/reproduce", "Folder of all runs and tables."
  )
  flags.DEFINE_list("methods", [], "Names of methods; default: all.")
  flags.DEFINE_list(
    "seeds", ["111", "222", "333"], "Training seeds of the embedded table."
  )
  flags.DEFINE_list(
    "shots", ["1", "2", "4"], "References per class, of the embedded table."
  )
  flags.DEFINE_string(
    "data_root", None, "Folder of the registered data sets; default: usual one."
  )
  flags.DEFINE_string(
    "weights", None, "Folder of converted weights; default: as configured."
  )
  flags.DEFINE_string(
    "paper_results", None, "Folder of the published tables (CSV)."
  )
  flags.DEFINE_bool("dry_run", False, "List what is done and what is missing.")
  flags.DEFINE_alias("check", "dry_run")


def open_table(options: flags.FlagValues) -> papers.Table | embedded.Table:
  """Return the table that the flags name.

  Raises:
    ValueError: there is no such table or method, or a number is invalid.
    FileNotFoundError: there are no published tables.
  """
  settings = jobs.Settings(
    pathlib.Path(options.workdir), options.data_root, options.weights
  )
  cells = paper_results.read(options.paper_results)
  if options.table == "embedded":
    return embedded.Table(
      cells,
      settings,
      options.methods,
      seeds=_numbers(options, "seeds"),
      shots=_numbers(options, "shots"),
    )
  for name in ("seeds", "shots"):
    if options[name].present:
      raise ValueError(f"--{name} belongs to --table=embedded.")
  return papers.Table(cells, options.table, settings, options.methods)


def _numbers(options, name):
  """Return the positive integers of a list flag, each once."""
  values = options[name].value
  if bad := [v for v in values if not v.isdecimal() or not int(v)]:
    raise ValueError(f"--{name}: {bad[0]!r} is not a positive integer.")
  if name == "seeds" and not values:
    raise ValueError("--seeds is empty; give at least one seed.")
  return list(dict.fromkeys(map(int, values)))


def main(options: flags.FlagValues) -> int:
  """Run the command; return its exit status."""
  table = open_table(options)
  root = pathlib.Path(options.workdir)
  settings = jobs.Settings(root, options.data_root, options.weights)
  print(table.title)
  for note in table.notes:
    print(f"  {note}")
  if not table.jobs:
    needs = ", ".join(table.missing) or "nothing"
    raise ValueError(
      f"--table={options.table}: no row can be reproduced, for the reasons "
      f"above. Missing are: {needs}. Data sets are searched in "
      f"{options.data_root or environment.data_root()}, see docs/data.md."
    )
  for number, job in enumerate(table.jobs, 1):
    workdir = job.workdir(settings)
    print(f"{number}. {workdir}: {job.status(settings)}")
  if options.dry_run:
    return 0
  try:
    with lock.hold(root):
      _reproduce(table, settings)
  except stopping.Stopped as error:
    error.add_note("The same command goes on from here.")
    raise
  return 0


def _reproduce(table, settings):
  """Run all jobs, print each row when it is complete, and write the table."""
  left = list(table.rows)

  def show():
    for row in [row for row in left if table.is_done(row)]:
      left.remove(row)
      print(f"\n{table.lines(row)}", flush=True)

  show()
  for number, job in enumerate(table.jobs, 1):
    print(f"\n[{number}/{len(table.jobs)}] {job.workdir(settings)}", flush=True)
    if jobs.run(job, settings):
      show()
      table.write(settings.root)
  print(f"\nTable: {table.write(settings.root)}")


if __name__ == "__main__":
  cli.run(main, define_flags)
