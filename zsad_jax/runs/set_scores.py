"""Detection in images that are scored together."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any, cast

import jax
import numpy as np

from zsad_jax import types
from zsad_jax.inference import inputs, predictor, sets, tile_stream
from zsad_jax.inference.tiling import Tiling
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import distributed

_log = logging.getLogger(__name__)


def check_single_images(run: run_lib.Run, what: str) -> None:
  """Refuse a run that scores images together where they come one by one.

  Args:
    run: the run.
    what: the command or flag, for the message.

  Raises:
    ValueError: it does.
  """
  if sets.scores_sets(run.method):
    config: Any = run.config
    raise ValueError(
      f"{what}: {config.name} scores all images of a set together, and here "
      "they come one by one: use zsad predict with a folder, or zsad evaluate."
    )


def training_note(run: run_lib.Run) -> str:
  """Return the note on a threshold that was set on images of the training."""
  if not sets.scores_sets(run.method):
    return threshold_lib.TRAINING_NOTE
  return (
    "the threshold was set on sets of images of the training, and scores "
    "depend on the set: rank the images by their scores, or give --threshold."
  )


def check_tiling(run: run_lib.Run, tiling: Tiling | None) -> None:
  """Refuse tiles where images are scored together.

  Raises:
    ValueError: there are tiles, and the method of the run scores whole images.
  """
  if tiling is not None and sets.scores_sets(run.method):
    config: Any = run.config
    raise ValueError(
      f"--tile: {config.name} scores whole images together: leave out --tile."
    )


def check_references(run: run_lib.Run) -> None:
  """Refuse references where images are scored together.

  Logs a warning if the scores of an evaluation with references are others.

  Raises:
    ValueError: the method of the run compares images with one another.
  """
  config, method = cast(Any, run.config), run.method
  if sets.scores_sets(method):
    raise ValueError(
      f"{config.name} compares the images with one another, not with "
      "references: leave them out."
    )
  if isinstance(method, types.Transductive) and method.transductive_score:
    _log.warning(
      "note: config.method.transductive_score has no effect on predictions: "
      "only an evaluation scales scores over all images of a category."
    )


def score(
  run: run_lib.Run,
  model: predictor.Predictor,
  batches: Iterable[Any],
  batch_size: int,
) -> Iterator[tile_stream.Predicted | str]:
  """Yield the prediction of each image, or the message if it is unreadable.

  Predictions of all images are kept in memory until their scores are known.

  Args:
    run: a run whose method is a `types.ScoresSets`.
    model: its compiled functions.
    batches: decoded images, or messages, see `inputs.decode_batches`.
    batch_size: largest number of images of a batch.

  Raises:
    ValueError: too few images can be read.
  """
  config: Any = run.config
  method, read = cast(Any, run.method), []
  rows, side = predictor.round_up(batch_size), config.image_size
  images = sets.ImageSet(model, method, distributed.make_mesh())
  try:
    with jax.default_matmul_precision(config.matmul_precision):
      for batch in batches:
        found = [image for image in batch if not isinstance(image, str)]
        pixels = np.zeros((rows, side, side, 3), np.uint8)
        for row, image in enumerate(found):
          pixels[row] = image.pixels
        given = {"image": pixels, "class_id": np.zeros(rows, np.int32)}
        given["keep"] = np.arange(rows) < len(found)
        given = distributed.local_slice(given)
        images.add(given, given.pop("keep"))
        read += [_read(image) for image in batch]
      sets.check_count(method, len(images), config.name)
      predictions = _predictions(run, images)
  finally:
    images.close()
  for image in read:
    if isinstance(image, str):
      yield image
    else:
      yield tile_stream.Predicted(image[0], [next(predictions)], image[1])


def _read(image):
  """Return size and digest of a decoded image, or the message."""
  if isinstance(image, str):
    return image
  return image.size, inputs.digest(image.pixels)


def _predictions(run, images) -> Iterator[dict[str, Any]]:
  """Return the predictions of all images, in their order."""
  method, numbers = run.method, images.numbers
  found = list(
    map(distributed.all_gather, images.predictions(run.params, run.stats))
  )
  joined = jax.tree.map(lambda *xs: np.concatenate(xs), *found)
  joined = {k: x[numbers >= 0] for k, x in joined.items()}
  if isinstance(method, types.Transductive) and method.transductive_score:
    joined["pred_score"] = method.category_scores(joined["score_terms"])
  keys = ("anomaly_map", "pred_score")
  return ({k: joined[k][i] for k in keys} for i in range(len(images)))
