"""Selection of the epoch whose parameters a run keeps: `config.selection`.

last       the last epoch; no target image is used
official   the epoch with the best mean pixel F1-max on the test images of
           `config.selection_data`, as AdaCLIP's authors choose it. These
           data sets are targets too: report it together with the numbers.
"""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from zsad_jax import metrics, types
from zsad_jax.evaluation.evaluator import Evaluator
from zsad_jax.runs import checkpoint
from zsad_jax.runs import run as run_lib

METRIC = metrics.METRICS["pixel_f1_max"]


def check(selection: str) -> None:
  """Raise ValueError for an unknown config.selection."""
  if selection not in ("last", "official"):
    raise ValueError(
      f'config.selection is "last" or "official", got {selection!r}.'
    )


def make(
  config: Any,
  workdir: pathlib.Path,
  method: types.Method,
  backbone: types.ImageBackbone,
  mesh: jax.sharding.Mesh,
  stack: contextlib.ExitStack,
) -> Callable[..., dict[str, float]]:
  """Return `select(step, params, stats) -> measurements`, called each epoch.

  The checkpoints that it opens are closed by `stack`.
  """
  if config.selection == "last":
    return lambda step, params, stats: {}
  datasets = [
    run_lib.open_dataset(config, name) for name in config.selection_data
  ]
  evaluator = Evaluator.from_config(config, method, backbone, mesh)
  saved = checkpoint.Checkpoints(workdir / "best", keep=1)
  stack.callback(saved.close)

  def select(step, params, stats):
    values = []
    for dataset in datasets:
      (rows,) = evaluator.evaluate(params, stats, dataset).rows
      values += [row[METRIC.name] for row in rows.values()]
    value = float(np.nanmean(values))
    if saved.latest_step is None or METRIC.is_better(
      value, saved.meta()["value"]
    ):
      meta = {"step": step, "value": value, "metric": METRIC.name}
      saved.save(step, meta, model={"params": params, "stats": stats})
      saved.wait()
    return {f"selection/{METRIC.name}": value}

  return select
