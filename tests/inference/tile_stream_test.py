"""Batches of tiles: order, memory, digests, images that cannot be read."""

import weakref

import numpy as np
import pytest
from PIL import Image

from tests.helpers.brightness import BrightnessModel
from zsad_jax.datasets import preprocess
from zsad_jax.inference import inputs, tile_stream
from zsad_jax.inference.tiling import MapMerger, Tiling
from zsad_jax.runtime import distributed

SIDE = 8
TILING = Tiling(12, 0.25)
SIZES = [(30, 44), (12, 9), (13, 12), (5, 40), (24, 24)]


def pictures(sizes=SIZES):
  """Return smooth random images."""
  rng = np.random.default_rng(0)
  small = [rng.integers(0, 256, (4, 4, 3)).astype(np.uint8) for _ in sizes]
  return [
    Image.fromarray(each).resize(size[::-1], Image.Resampling.BICUBIC)
    for each, size in zip(small, sizes)
  ]


def predict(opened, *, batch_size=4, model=None, tiling=TILING):
  model = model or BrightnessModel()
  return tile_stream.predict(
    opened,
    lambda tiles: model.predict({}, {}, model.encode({"image": tiles})),
    tiling=tiling,
    side=SIDE,
    batch_size=batch_size,
  )


def opened(images):
  return [tile_stream.Opened(f"{i}", x, more=i) for i, x in enumerate(images)]


def one_by_one(image):
  """Score and map of an image, tile by tile."""
  grid = TILING.grid((image.height, image.width), SIDE)
  merger, scores, model = MapMerger(grid), [], BrightnessModel()
  for number in range(len(grid)):
    tile = image.resize((SIDE, SIDE), Image.BICUBIC, box=grid.box(number))
    (found,) = model.predict({}, {}, np.asarray(tile)[None])
    merger.add(number, found["anomaly_map"][0])
    scores.append(found["pred_score"][0])
  return max(scores), merger.result()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 64])
def test_batches_do_not_change_results(batch_size):
  images, model = pictures(), BrightnessModel()
  found = list(predict(opened(images), batch_size=batch_size, model=model))
  assert set(model.batches) == {batch_size}
  tiles = sum(len(TILING.grid(size, SIDE)) for size in SIZES)
  assert len(model.batches) == -(-tiles // batch_size)
  for i, (image, each) in enumerate(zip(images, found, strict=True)):
    assert each.more == i and each.size == SIZES[i]
    (prediction,) = each.predictions
    score, merged = one_by_one(image)
    assert prediction["pred_score"] == score
    np.testing.assert_array_equal(prediction["anomaly_map"], merged)


def test_one_tile_is_the_whole_image():
  """Score, map, pixels and digest equal those of the resized image."""
  image = pictures([(9, 12)])[0]
  decoded = inputs.decode(image, "", SIDE)
  (expected,) = BrightnessModel().predict({}, {}, decoded.pixels[None])
  (found,) = predict(opened([image]))
  (prediction,) = found.predictions
  assert prediction["pred_score"] == expected["pred_score"][0]
  np.testing.assert_array_equal(
    prediction["anomaly_map"], expected["anomaly_map"][0]
  )
  assert found.digest == inputs.digest(decoded.pixels)


def test_digests_are_equal_for_copies_only():
  images = pictures([(30, 44), (30, 44)])
  changed = images[0].copy()
  changed.putpixel((43, 29), (255, 0, 255))
  found = predict(opened([*images, changed, images[0].copy()]), batch_size=5)
  digests = [each.digest for each in found]
  assert len(set(digests)) == 3 and digests[0] == digests[3]
  given = tile_stream.Opened("", images[0])
  assert tile_stream.digest(given, TILING, SIDE) == digests[0]


def test_messages_keep_their_places():
  """Also with no tile at all."""
  first, second = opened(pictures(SIZES[:2]))
  found = list(predict(["a", first, "b", "c", second, "d"], batch_size=64))
  assert [x if isinstance(x, str) else x.more for x in found] == [
    *("a", 0, "b", "c", 1, "d")
  ]
  assert list(predict(["a", "b"])) == ["a", "b"]
  assert list(predict([])) == []


def test_memory_holds_a_batch_of_tiles_and_few_images(monkeypatch):
  calls, done, alive = [0], 0, {}
  most_tiles, most_images, batch_size = 0, 0, 4
  resize = preprocess.resize_image

  def counted(*args):
    calls[0] += 1
    return resize(*args)

  def load(number):
    image = Image.new("RGB", (100, 100 + number))
    alive[number] = weakref.ref(image, lambda _: alive.pop(number))
    return tile_stream.Opened(f"{number}", image)

  def run(tiles):
    nonlocal done, most_tiles, most_images
    number = calls[0]
    most_tiles = max(most_tiles, number - done)
    most_images = max(most_images, len(alive))
    done = number
    return BrightnessModel().predict({}, {}, tiles)

  monkeypatch.setattr(preprocess, "resize_image", counted)
  images = tile_stream.open_ahead(load, [f"{i}" for i in range(12)])
  results = tile_stream.predict(
    images, run, tiling=TILING, side=SIDE, batch_size=batch_size
  )
  assert sum(1 for _ in results) == 12
  assert done > 1000 and most_tiles == batch_size
  # This one, the next one, and the one before that a batch shares.
  assert most_images <= 3


def test_images_are_opened_in_order_and_errors_are_named_or_skipped():
  loaded = []

  def load(number):
    loaded.append(number)
    if number == 1:
      raise ValueError("1: is broken")
    return tile_stream.Opened(f"{number}", Image.new("RGB", (4, 4)))

  names = ["0", "1", "2"]
  found = list(tile_stream.open_ahead(load, names, skip_corrupt=True))
  assert loaded == [0, 1, 2] and found[1] == "1: is broken"
  stream = tile_stream.open_ahead(load, names)
  assert next(stream).name == "0"
  with pytest.raises(ValueError, match="1: is broken"):
    next(stream)


def test_processes_skip_the_same_images(monkeypatch):
  load = lambda number: tile_stream.Opened("a", Image.new("RGB", (4, 5)))
  for other, expected in ((["b: is broken"], "b: is broken"), ([[4, 5]], None)):
    monkeypatch.setattr(
      distributed, "all_gather_object", lambda own, x=other: [own, *x]
    )
    (found,) = tile_stream.open_ahead(load, ["a"], skip_corrupt=True)
    assert found == expected or isinstance(found, tile_stream.Opened)
    assert isinstance(found, str) == bool(expected)
  monkeypatch.setattr(
    distributed, "all_gather_object", lambda own: [own, [5, 4]]
  )
  with pytest.raises(ValueError, match="a: the processes read .*different"):
    next(tile_stream.open_ahead(load, ["a"]))


def test_a_map_that_is_too_large_is_refused(monkeypatch):
  monkeypatch.setattr(preprocess, "MAX_PIXELS", 1000)
  image = opened([Image.new("RGB", (20, 20))])
  with pytest.raises(
    ValueError, match="0: tiles of 1 pixels give a map of 160"
  ):
    list(predict(image, tiling=Tiling(1)))


def test_a_nan_of_a_tile_is_not_lost():
  def run(tiles):
    (found,) = BrightnessModel().predict({}, {}, tiles)
    found["pred_score"][2] = np.nan
    found["anomaly_map"][1, 3, 3] = np.inf
    return [found]

  (result,) = tile_stream.predict(
    opened(pictures(SIZES[:1])), run, tiling=TILING, side=SIDE, batch_size=4
  )
  (prediction,) = result.predictions
  assert np.isnan(prediction["pred_score"])
  assert not np.isfinite(prediction["anomaly_map"]).all()


def test_memory_banks_hold_all_tiles():
  images, model = pictures(), BrightnessModel()
  bank, digests = tile_stream.build_memory_bank(
    model, opened(images), 0, tiling=TILING, side=SIDE, batch_size=3
  )
  tiles = [
    preprocess.resize_image(image, SIDE, grid.box(number))
    for image, size in zip(images, SIZES)
    for grid in [TILING.grid(size, SIDE)]
    for number in range(len(grid))
  ]
  np.testing.assert_array_equal(model.references, tiles)
  np.testing.assert_allclose(bank, np.mean(tiles) / 255)
  given = [tile_stream.digest(x, TILING, SIDE) for x in opened(images)]
  assert digests == given
