"""Evaluation of a trained run on one data set."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from zsad_jax.datasets import index
from zsad_jax.datasets import references as references_lib
from zsad_jax.datasets.references import NONE, References
from zsad_jax.evaluation.category import CategoryResult
from zsad_jax.evaluation.evaluator import Evaluator
from zsad_jax.evaluation.protocol import Protocol
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import distributed

# Costs of a run: parameters, seconds, images per second.
COSTS = ("trained_parameters", "training_seconds", "images_per_second")
_NUM_EXAMPLES = 1  # Of each kind, in the report.


@dataclasses.dataclass(frozen=True)
class Result:
  """Metrics of one run on one data set with one choice of references.

  Attributes:
    method: `config.name` of the run.
    dataset: name of the data set.
    root: folder of the data set.
    references: choice of references.
    rows: metrics by category.
    costs: values of `COSTS`.
    protocol: how the run was evaluated.
    notes: remarks that belong to the numbers.
    dataset_notes: those of them that concern the data set.
    skipped: messages about images that could not be read.
  """

  method: str
  dataset: str
  root: str
  references: References
  rows: dict[str, dict[str, float | int]]
  costs: dict[str, float | int]
  protocol: Protocol
  notes: tuple[str, ...] = ()
  dataset_notes: tuple[str, ...] = ()
  skipped: tuple[str, ...] = ()

  @property
  def group(self) -> str:
    """Method and number of references: the same for all repetitions."""
    return f"{self.method}, {self.references.group}"

  @property
  def shots(self) -> int | None:
    """References per class; None where they were given by the user."""
    return self.references.shots


def evaluate_run(
  run: run_lib.Run,
  dataset: index.Dataset,
  protocol: Protocol,
  *,
  choose: Callable[[index.Dataset], Sequence[References]] = lambda _: [NONE],
  skip_corrupt: bool | None = None,
  on_category: Callable[[CategoryResult], None] = lambda category: None,
) -> list[Result]:
  """Evaluate a run on one data set.

  Args:
    run: trained run.
    dataset: data set, of which the test images are predicted.
    protocol: protocol of the run, with the variant of the metrics.
    choose: returns the choices of references for a data set.
    skip_corrupt: count images that cannot be read instead of stopping; None:
      as configured.
    on_category: called with each category, for example to draw figures.

  Returns:
    A result for each choice of references.

  Raises:
    ValueError: the protocol does not allow this data set, or a file is invalid.
  """
  config: Any = run.config
  notes = protocol.check(dataset, config.data_root)
  choices = _choices(run, dataset, choose)
  threshold = stored_threshold(run)
  evaluator = Evaluator.from_config(
    config,
    run.method,
    run.backbone,
    distributed.make_mesh(),
    skip_corrupt=skip_corrupt,
    few_shot=any(choice.images for choice in choices),
    variant=protocol.variant,
    num_examples=_NUM_EXAMPLES,
    threshold=threshold and threshold.image_score,
  )
  found = evaluator.evaluate(
    run.params, run.stats, dataset, choices, on_category=on_category
  )
  dataset_notes = (*dataset.notes, *found.mask_notes)
  notes += sum((choice.notes for choice in choices), dataset_notes)
  costs = {
    "trained_parameters": run.num_trained,
    "training_seconds": run.seconds,
    "images_per_second": found.images_per_second,
  }
  return [
    Result(
      method=config.name,
      dataset=dataset.name,
      root=dataset.root,
      references=choice,
      rows=rows,
      costs=costs,
      protocol=protocol,
      notes=tuple(dict.fromkeys(notes)),
      dataset_notes=dataset_notes,
      skipped=tuple(found.skipped),
    )
    for choice, rows in zip(choices, found.rows)
  ]


def stored_threshold(run: run_lib.Run) -> threshold_lib.Threshold | None:
  """Return the zero-shot threshold of a run, or None."""
  try:
    return threshold_lib.read(run.workdir)
  except FileNotFoundError:  # It needs references, or was converted.
    return None


def _choices(run, dataset, choose):
  """Return the choices of references; one shot where a method needs some."""
  choices = list(choose(dataset))
  if not run.method.needs_references:
    return choices
  return [c for c in choices if c.images] or [
    references_lib.sample(dataset, shots=1, seed=references_lib.SEEDS[0])
  ]
