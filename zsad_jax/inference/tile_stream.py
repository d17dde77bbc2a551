"""Prediction of images by tiles, in batches that consecutive images share.

An image is opened once, while the one before it is predicted. Its tiles are cut
when a batch of them is due, so that memory holds the opened images of one
batch, the next image, a batch of tiles and the merged maps, whatever the number
of tiles. Of several processes, all cut the same tiles and predict a part of
each batch.
"""

import collections
import concurrent.futures
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from zsad_jax.datasets import preprocess
from zsad_jax.inference import predictor as predictor_lib
from zsad_jax.inference.tiling import MapMerger, Tiling
from zsad_jax.runtime import distributed

Tiles = UInt8[np.ndarray, "b s s 3"]
# From a batch of tiles to "pred_score" (b,) and, where it is needed,
# "anomaly_map" (b, s, s) of each prediction.
Predict = Callable[[Tiles], Sequence[Mapping[str, Any]]]


class Opened(NamedTuple):
  """An image in its own size.

  Attributes:
    name: its name in messages.
    image: RGB.
    more: what belongs to it, such as its mask.
  """

  name: str
  image: Image.Image
  more: Any = None


class Predicted(NamedTuple):
  """Predictions of an image.

  Attributes:
    size: height and width of the image in pixels.
    predictions: "pred_score" and "anomaly_map" (m, n) of each prediction. From
      tiles, these are the largest score and the merged map.
    digest: of the pixels that were predicted, equal for copies of an image.
    more: see `Opened`.
  """

  size: tuple[int, int]
  predictions: list[dict[str, Any]]
  digest: bytes
  more: Any = None


def rows(
  predictions: Sequence[Mapping[str, Any]],
) -> Iterator[list[dict[str, Any]]]:
  """Yield the predictions of each row of a batch."""
  for row in range(len(predictions[0]["pred_score"])):
    yield [{k: v[row] for k, v in each.items()} for each in predictions]


def open_ahead(
  load: Callable[[int], Opened],
  names: Sequence[str],
  *,
  skip_corrupt: bool = False,
) -> Iterator[Opened | str]:
  """Open images one after the other, one ahead of the consumer.

  An image is skipped if one of the processes cannot read it, so that all of
  them predict the same batches.

  Args:
    load: opens the image of a number.
    names: of the images in messages.
    skip_corrupt: yield the message of an image that cannot be read, instead of
      raising it.

  Raises:
    ValueError: an image cannot be read, or differs between processes.
  """

  def attempt(number: int) -> Opened | str:
    try:
      return load(number)
    except ValueError as error:
      return str(error)

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    following = pool.submit(attempt, 0) if names else None
    for number, name in enumerate(names, 1):
      assert following is not None
      found = following.result()
      following = pool.submit(attempt, number) if number < len(names) else None
      message = _unreadable(found, name)
      if message and not skip_corrupt:
        raise ValueError(message)
      yield message or found
      del found  # Not kept while the next one is opened.


def _unreadable(found, name):
  """Return the message of a process that cannot read an image, or ""."""
  own = found if isinstance(found, str) else [*found.image.size]
  of_all = distributed.all_gather_object(own)
  messages = [each for each in of_all if isinstance(each, str)]
  if not messages and any(list(each) != own for each in of_all):
    raise ValueError(
      f"{name}: the processes read images of different sizes, {of_all}; give "
      "all of them the same files."
    )
  return messages[0] if messages else ""


def new_digest(*pixels: np.ndarray) -> "hashlib.blake2b":
  """Return the digest of pixels, to which those of other tiles are added."""
  found = hashlib.blake2b(digest_size=16)
  for each in pixels:
    found.update(each.tobytes())
  return found


class _Cut:
  """An image that is cut into tiles."""

  def __init__(self, opened: Opened, tiling: Tiling, side: int):
    self.more = opened.more
    self.size = opened.image.height, opened.image.width
    self.grid = tiling.grid(self.size, side)
    rows, columns = self.grid.shape
    if rows * columns > preprocess.MAX_PIXELS:
      raise ValueError(
        f"{opened.name}: tiles of {tiling.size} pixels give a map of "
        f"{columns} x {rows} pixels, more than {preprocess.MAX_PIXELS:,}: use "
        "larger tiles."
      )
    self.digest = new_digest()


class _Merging(_Cut):
  """An image whose tiles are being predicted."""

  def __init__(self, opened: Opened, tiling: Tiling, side: int):
    super().__init__(opened, tiling, side)
    self._left = len(self.grid)
    self._scores: dict[int, list[Any]] = collections.defaultdict(list)
    self._maps: dict[int, MapMerger] = {}

  @property
  def complete(self) -> bool:
    return not self._left

  def add(self, number: int, predictions: Sequence[Mapping[str, Any]]) -> None:
    """Add the predictions of a tile."""
    self._left -= 1
    for i, each in enumerate(predictions):
      self._scores[i].append(each["pred_score"])
      if "anomaly_map" in each:
        if i not in self._maps:
          self._maps[i] = MapMerger(self.grid)
        self._maps[i].add(number, np.asarray(each["anomaly_map"]))

  def result(self) -> Predicted:
    """Return the predictions of the image."""
    found: list[dict[str, Any]] = [
      {"pred_score": np.max(scores)} for scores in self._scores.values()
    ]
    for i, merger in self._maps.items():
      found[i]["anomaly_map"] = merger.result()
    return Predicted(self.size, found, self.digest.digest(), self.more)


def predict(
  opened: Iterable[Opened | str],
  run: Predict,
  *,
  tiling: Tiling,
  side: int,
  batch_size: int,
) -> Iterator[Predicted | str]:
  """Predict images by tiles.

  Args:
    opened: images, or messages about those that cannot be read.
    run: predicts a batch of tiles.
    tiling: size and overlap of tiles.
    side: height and width of a tile as the model reads it.
    batch_size: tiles per call of `run`; the last ones are padded.

  Yields:
    In the order of the images, the result of each, or its message.

  Raises:
    ValueError: the merged map of an image would be too large.
  """
  waiting: collections.deque[_Merging | str] = collections.deque()

  def images() -> Iterator[tuple[_Merging, Image.Image]]:
    for each in opened:
      if isinstance(each, str):
        waiting.append(each)
        continue
      merging = _Merging(each, tiling, side)
      waiting.append(merging)
      yield merging, each.image
      del each

  def done() -> Iterator[Predicted | str]:
    while waiting and (isinstance(waiting[0], str) or waiting[0].complete):
      first = waiting.popleft()
      yield first if isinstance(first, str) else first.result()

  for tiles, cuts in _batches(images(), side, batch_size):
    for (merging, number), found in zip(cuts, rows(run(tiles))):
      merging.add(number, found)
    yield from done()
  yield from done()


def build_memory_bank(
  predictor: Any,
  opened: Iterable[Opened | str],
  class_id: int,
  *,
  tiling: Tiling,
  side: int,
  batch_size: int,
) -> tuple[Any, list[bytes]]:
  """Return the memory bank of all tiles of references, and their digests.

  A method takes the tiles for so many references.

  Args:
    predictor: a `predictor.Predictor`.
    opened: the references, all of which can be read.
    class_id: class of the references.
    tiling: see `predict`.
    side: see `predict`.
    batch_size: tiles per call.
  """
  batch_size = predictor_lib.round_up(batch_size)
  cuts: list[_Cut] = []

  def images() -> Iterator[tuple[_Cut, Image.Image]]:
    for each in opened:
      assert isinstance(each, Opened)
      cuts.append(_Cut(each, tiling, side))
      yield cuts[-1], each.image
      del each

  batches = (
    tiles[: len(cut)] for tiles, cut in _batches(images(), side, batch_size)
  )
  bank = predictor.build_memory_bank_of(
    batches, class_id, batch_size=batch_size
  )
  return bank, [cut.digest.digest() for cut in cuts]


def digest(opened: Opened, tiling: Tiling, side: int) -> bytes:
  """Return the digest that `predict` gives an image."""
  cut = _Cut(opened, tiling, side)
  for _ in _batches(iter([(cut, opened.image)]), side, 1):
    pass
  return cut.digest.digest()


def _batches(images, side, batch_size):
  """Yield padded batches of tiles with the image and number of each.

  Tiles are cut in parallel; each is added to the digest of its image.
  """

  def tiles(pool):
    for cut, image in images:
      for number in range(len(cut.grid)):
        box = cut.grid.box(number)
        pixels = pool.submit(preprocess.resize_image, image, side, box)
        yield cut, number, pixels
      del image, pixels

  with concurrent.futures.ThreadPoolExecutor() as pool:
    due = tiles(pool)
    while batch := list(itertools.islice(due, batch_size)):
      stacked = np.zeros((batch_size, side, side, 3), np.uint8)
      for row, (cut, _, pixels) in enumerate(batch):
        stacked[row] = pixels.result()
        cut.digest.update(stacked[row].tobytes())
      yield stacked, [(cut, number) for cut, number, _ in batch]
      del batch, stacked, pixels
