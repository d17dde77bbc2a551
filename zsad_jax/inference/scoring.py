"""Scores of any images by a run: what `predict` and `calibrate` share."""

import concurrent.futures
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from zsad_jax.datasets import preprocess
from zsad_jax.inference import few_shot, predictor
from zsad_jax.runtime import distributed


def batches(
  images: Sequence[str], *, image_size: int, batch_size: int, skip: bool
) -> Iterator[tuple[list[int], np.ndarray, list[str]]]:
  """Yields positions, uint8 images (b, s, s, 3) and messages of bad files.

  Images are decoded in parallel, one batch ahead of what is asked for.
  """

  def load(path):
    try:
      return preprocess.load_image(path, image_size)
    except ValueError as error:
      if not skip:
        raise
      return str(error)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    ranges = [
      range(i, min(i + batch_size, len(images)))
      for i in range(0, len(images), batch_size)
    ]
    submit = lambda rows: [pool.submit(load, images[i]) for i in rows]
    ahead = [submit(rows) for rows in ranges[:1]]
    for rows, following in itertools.zip_longest(ranges, ranges[1:]):
      loaded = [future.result() for future in ahead.pop()]
      if following is not None:
        ahead.append(submit(following))
      good = [(i, x) for i, x in zip(rows, loaded) if not isinstance(x, str)]
      bad = [x for x in loaded if isinstance(x, str)]
      pixels = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
      for row, (_, x) in enumerate(good):
        pixels[row] = x
      yield [i for i, _ in good], pixels, bad


class Scorer:
  """A run that scores batches, beside references where there are some.

  Args:
    run: the run.
    class_name: what the images show, for methods whose sentences say it.
    reference_images: paths of normal images of the same kind.
    batch_size: images per call.
  """

  def __init__(self, run, class_name, reference_images, batch_size):
    self._run, self.zero_shot = run, True
    method = run.method
    if reference_images:
      method = few_shot.with_memory_bank(method, **run.config.memory)
      self.zero_shot = not run.method.needs_references
    self._model = predictor.Predictor(
      method, run.backbone, [class_name], distributed.make_mesh()
    )
    self._memory = None
    if reference_images:
      size = run.config.image_size
      images = [preprocess.load_image(p, size) for p in reference_images]
      self._memory = self._model.build_memory_bank(
        np.stack(images), 0, batch_size=batch_size
      )

  def __call__(self, pixels):
    """The prediction, and scores without references (None: no such thing)."""
    batch = {"image": pixels, "class_id": np.zeros(len(pixels), np.int32)}
    features = self._model.encode(distributed.local_slice(batch))
    given = self._run.params, self._run.stats, features
    if self._memory is None or not self.zero_shot:
      memories = (self._memory,)
    else:
      memories = self._memory, None
    result, *alone = distributed.all_gather(
      self._model.predict(*given, memories)
    )
    return result, alone[0]["pred_score"] if alone else None
