"""Evaluation of methods that score all images of a category together."""

from collections.abc import Callable, Iterator
from typing import Any

from zsad_jax.inference import predictor as predictor_lib
from zsad_jax.inference import sets
from zsad_jax.layers import smoothing
from zsad_jax.runtime import distributed, stopping


def predict(
  evaluator: Any,
  predictor: predictor_lib.Predictor,
  model: tuple[Any, Any],
  read: Callable[[], Any],
) -> tuple[Any, Iterator[tuple[Any, list[Any]]]]:
  """Predict the images of one category, which are read twice.

  Args:
    evaluator: an `Evaluator`.
    predictor: its compiled functions.
    model: parameters and statistics.
    read: returns this process's batches, see `pipeline.eval_batches`.

  Returns:
    See `Evaluator.predict_batches`.
  """
  batches, method = read(), evaluator.method

  def run():
    images = sets.ImageSet(predictor, method, evaluator.mesh)
    try:
      for batch in read():
        stopping.sync_point()
        images.add(batch, batch["weight"] > 0)
      sets.check_count(method, len(images), "A category")
      for batch, found in zip(batches, images.predictions(*model)):
        stopping.sync_point()
        rows = distributed.local_rows(found)
        maps = smoothing.on_host(
          rows["anomaly_map"], batch["weight"] > 0, evaluator.smooth_sigma
        )
        yield batch, [{**rows, "anomaly_map": maps}]
    finally:
      images.close()

  return batches, run()
