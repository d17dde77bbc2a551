"""Evaluation of ensembles: members predict the same images in turn."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from zsad_jax.datasets import index
from zsad_jax.evaluation import transductive
from zsad_jax.evaluation.evaluator import Evaluator
from zsad_jax.inference import ensemble as ensemble_lib
from zsad_jax.runs import ensemble as ensemble_run
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import distributed

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EnsembleEvaluator(Evaluator):
  """Evaluator of the mean of scores and smoothed maps of several detectors.

  Each member reads the images at its own size. Masks are read, and metrics
  computed, at the largest one. Parameters and statistics are those of all
  members, in their order.

  Attributes:
    members: evaluators of the members, with the batch size of the ensemble.
  """

  members: tuple[Evaluator, ...] = ()

  def predictor(self, dataset: index.Dataset) -> tuple[Any, ...]:
    """Return the compiled functions of all members."""
    return tuple(member.predictor(dataset) for member in self.members)

  def predict_batches(
    self,
    predictor: Any,
    params: Any,
    stats: Any,
    dataset: index.Dataset,
    samples: Sequence[index.Sample],
    references: Sequence[Sequence[str]],
  ) -> tuple[Any, Iterator[tuple[Any, list[Any]]]]:
    """Predict images of one category; see `Evaluator.predict_batches`."""
    states = zip(params.values(), stats.values())
    found = [
      member.predict_batches(own, *state, dataset, samples, references)
      for member, own, state in zip(self.members, predictor, states)
    ]
    sizes = [member.image_size for member in self.members]
    lead = sizes.index(self.image_size)

    def predict():
      for parts in zip(*(batches for _, batches in found), strict=True):
        by_choice = zip(*(predictions for _, predictions in parts))
        mean = [ensemble_lib.mean_prediction(each) for each in by_choice]
        yield parts[lead][0], mean

    return found[lead][0], predict()


def evaluator_of(
  run: run_lib.Run, *, transductive_scores: bool = True, **settings: Any
) -> Evaluator:
  """Return the evaluator of a run or of an ensemble.

  Args:
    run: the run, or an `ensemble.Ensemble`, whose members have scores of single
      images.
    transductive_scores: compute scores that depend on all images of a category
      where `config.method.transductive_score` is set.
    **settings: see `Evaluator.from_config`.
  """
  mesh = distributed.make_mesh()
  joint = isinstance(run, ensemble_run.Ensemble)

  def make(run: run_lib.Run) -> Evaluator:
    method = run.method
    if joint or not transductive_scores:
      method = transductive.without(method)
    if joint and method != run.method:
      _log.warning(
        "note: config.method.transductive_score of %s has no effect in an "
        "ensemble, which averages scores of single images.",
        run.workdir,
      )
    return Evaluator.from_config(
      run.config,
      method,
      run.backbone,
      mesh,
      trained=run.categories,
      **settings,
    )

  if not isinstance(run, ensemble_run.Ensemble):
    return make(run)
  config: Any = run.config
  members = [
    dataclasses.replace(make(member), batch_size=config.eval_batch_size)
    for member in run.members
  ]
  lead = max(members, key=lambda member: member.image_size)
  return EnsembleEvaluator(**vars(lead), members=tuple(members))
