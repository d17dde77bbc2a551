"""Which epoch's parameters a run keeps: `config.selection`.

last       the last epoch's: nothing of the target is looked at
official   the epoch with the best mean pixel F1-max on the test images of
           `config.selection_data`, as AdaCLIP's authors choose it. These
           sets are targets too: say so beside the numbers.
"""

import pathlib

import numpy as np

from zsad_jax.evaluation import evaluator
from zsad_jax.runs import checkpoint
from zsad_jax.runs import run as run_lib

METRIC = "pixel_f1_max"


def check(selection: str) -> None:
  """Raises ValueError for an unknown config.selection."""
  if selection not in ("last", "official"):
    raise ValueError(
      f'config.selection is "last" or "official", got {selection!r}.'
    )


def make(config, workdir: pathlib.Path, method, backbone, mesh, stack):
  """Returns `select(step, params, stats) -> measurements`, for each epoch.

  What it opens is closed by `stack`, a contextlib.ExitStack.
  """
  if config.selection == "last":
    return lambda step, params, stats: {}
  datasets = [
    run_lib.open_dataset(config, name) for name in config.selection_data
  ]
  evaluate = evaluator.make(config, method, backbone, mesh)
  saved = checkpoint.Checkpoints(workdir / "best", keep=1)
  stack.callback(saved.close)

  def select(step, params, stats):
    values = []
    for dataset in datasets:
      (rows,), _ = evaluator.evaluate(evaluate, params, stats, dataset)
      values += [row[METRIC] for row in rows.values()]
    value = float(np.nanmean(values))
    if saved.latest_step is None or value > saved.meta()["value"]:
      meta = {"step": step, "value": value, "metric": METRIC}
      saved.save(step, meta, model={"params": params, "stats": stats})
      saved.wait()
    return {f"selection/{METRIC}": value}

  return select
