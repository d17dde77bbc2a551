"""Images that a method scores together, such as all images of a category.

Their features are kept in files of a temporary folder, and compared block by
block: memory holds the features of two batches, and the comparisons of one
batch with all images. A value depends on two images alone, so that the size of
the blocks and the number of devices change a result by rounding at most.
"""

import functools
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax import types
from zsad_jax.inference import predictor as predictor_lib
from zsad_jax.runtime import distributed


def scores_sets(method: Any) -> bool:
  """Return whether a method scores images together."""
  return getattr(method, "min_set_size", 1) > 1


def check_count(method: Any, count: int, name: str) -> None:
  """Check the number of images of a set.

  Args:
    method: a `types.ScoresSets`, or any other method.
    count: number of images.
    name: of the set or the method, for the message.

  Raises:
    ValueError: there are too few.
  """
  needed = getattr(method, "min_set_size", 1)
  if count < needed and scores_sets(method):
    raise ValueError(
      f"{name}: the method scores at least {needed} images of the same class "
      f"together, got {count}: give all of them at once."
    )


class ImageSet:
  """Features of all images of a set.

  Args:
    predictor: compiled functions of the method.
    method: a `types.ScoresSets`.
    mesh: devices.
  """

  def __init__(
    self,
    predictor: predictor_lib.Predictor,
    method: types.ScoresSets,
    mesh: jax.sharding.Mesh,
  ):
    self._predictor, self._method, self._mesh = predictor, method, mesh
    self._folder = tempfile.TemporaryDirectory(prefix="zsad_set_")
    self._batches: list[dict[str, np.ndarray]] = []
    self._places: list[tuple[int, int]] = []  # Batch and row of each image.
    self._numbers: list[np.ndarray] = []  # Of the images of each batch, or -1.

  def __len__(self) -> int:
    """Return the number of images."""
    return len(self._places)

  @property
  def numbers(self) -> np.ndarray:
    """Number of the image in each row of all batches; -1 for padding."""
    return np.concatenate(self._numbers)

  def add(self, batch: Mapping[str, np.ndarray], keep: np.ndarray) -> None:
    """Encode a batch; all have the same number of rows.

    Args:
      batch: this process's part, see `Predictor.encode`.
      keep: bool, whether a row is an image of the set, not padding.
    """
    features = distributed.all_gather(self._predictor.encode(batch))
    keep = distributed.all_gather(np.asarray(keep, bool))
    numbers = np.full(len(keep), -1, np.int32)
    rows = np.flatnonzero(keep)
    numbers[rows] = len(self) + np.arange(len(rows))
    self._places += [(len(self._batches), int(row)) for row in rows]
    self._numbers.append(numbers)
    self._batches.append({k: self._store(k, x) for k, x in features.items()})

  def predictions(
    self, params: Any, stats: Any
  ) -> Iterator[dict[str, jax.Array]]:
    """Yield the prediction of each batch, as `Predictor.predict` returns it."""
    for features, numbers in zip(self._batches, self._numbers):
      given = {**features, "set_index": numbers}
      local = distributed.local_slice(jax.tree.map(np.asarray, given))
      queries = predictor_lib.put_batch(local, self._mesh)
      parts = [
        _compare(self._method, queries, distributed.replicate(x, self._mesh))
        for x in self._blocks(len(numbers))
      ]
      joined = _join(parts, len(self))
      queries = {**queries, "comparisons": joined}
      yield self._predictor.predict(params, stats, queries)[0]

  def close(self) -> None:
    """Remove the files."""
    self._batches = []
    self._folder.cleanup()

  def _store(self, name, x):
    """Write an array to a file and return its view."""
    path = pathlib.Path(self._folder.name) / f"{len(self._batches)}_{name}.npy"
    np.save(path, x)
    return np.load(path, mmap_mode="r")

  def _blocks(self, size):
    """Yield the features of `size` images at a time; the last are repeated."""
    for first in range(0, len(self), size):
      places = self._places[first : first + size]
      places += places[-1:] * (size - len(places))
      yield {
        name: np.stack(
          [self._batches[batch][name][row] for batch, row in places]
        )
        for name in self._batches[0]
      }


@functools.partial(jax.jit, static_argnums=0)
def _compare(method, features, others):
  return method.compare(features, others)


@functools.partial(jax.jit, static_argnums=1)
def _join(parts, count):
  """Join comparisons; the repeated images at the end are left out."""
  return jnp.concatenate(parts, axis=-1)[..., :count]
