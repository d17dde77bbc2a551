"""The cache of decoded images: the same pixels, whatever happens to it."""

import errno
import multiprocessing
import os

import numpy as np
import pytest

from tests.datasets.entries_test import aitex, image, mask, mvtec_layout
from tests.helpers import small_run
from zsad_jax.datasets import cache, index, pipeline, preprocess, registry


@pytest.fixture
def dataset(tmp_path):
  mvtec_layout(tmp_path / "set", ["carpet", "grid"])
  return registry.read_folder(tmp_path / "set")


def same(one, other):
  """Compare image and mask; the cache returns findings as well."""
  for a, b in zip(one[:2], other[:2]):
    np.testing.assert_array_equal(a, b)


def test_what_is_cached_is_what_was_decoded(dataset, tmp_path, monkeypatch):
  decoded = cache.DecodedCache(tmp_path / "cache")
  expected = [preprocess.load_pair(s, 20) for s in dataset.test]
  for sample, pair in zip(dataset.test, expected):
    same(decoded.load(sample, 20), pair)
  monkeypatch.setattr(preprocess, "load_inspected", None)  # Not decoded again.
  for sample, pair in zip(dataset.test, expected):
    same(decoded.load(sample, 20), pair)
  each = 3 * 400 + 50 + 1 + 4
  assert decoded.size() == each * len(dataset.test)


def test_parts_of_a_file_are_told_apart(tmp_path):
  aitex(tmp_path / "aitex")
  found = registry.read_entry("aitex", tmp_path / "aitex")
  decoded = cache.DecodedCache(tmp_path / "cache")
  for _ in range(2):
    for sample in found.test:
      same(decoded.load(sample, 16), preprocess.load_pair(sample, 16))


def test_a_changed_image_is_decoded_anew(dataset, tmp_path):
  decoded = cache.DecodedCache(tmp_path / "cache")
  sample = dataset.test[0]
  before, *_ = decoded.load(sample, 20)
  image(tmp_path / "new.png")
  os.replace(tmp_path / "new.png", sample.image_path)
  after, *_ = decoded.load(sample, 20)
  same([after], [preprocess.load_image(sample.image_path, 20)])
  assert (before != after).any()


@pytest.mark.parametrize(
  "harm",
  [
    lambda p: p.write_bytes(p.read_bytes()[:-20]),
    lambda p: p.write_bytes(p.read_bytes()[:50] + b"x" + p.read_bytes()[51:]),
    lambda p: p.write_bytes(b""),
  ],
)
def test_a_damaged_file_is_made_again(harm, dataset, tmp_path):
  decoded = cache.DecodedCache(tmp_path / "cache")
  sample = dataset.test[-1]
  expected = decoded.load(sample, 20)
  (path,) = (tmp_path / "cache").glob("*/*.raw")
  whole = path.read_bytes()
  harm(path)
  same(decoded.load(sample, 20), expected)
  assert path.read_bytes() == whole


def fill(folder, root):
  decoded = cache.DecodedCache(folder)
  for sample in registry.read_folder(root).test:
    decoded.load(sample, 20)


@pytest.mark.slow
def test_two_processes_build_one_cache(dataset, tmp_path):
  context = multiprocessing.get_context("spawn")
  workers = [
    context.Process(target=fill, args=(tmp_path / "cache", dataset.root))
    for _ in range(2)
  ]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
    assert worker.exitcode == 0
  assert len(list((tmp_path / "cache").glob("*/*"))) == len(dataset.test)
  decoded = cache.DecodedCache(tmp_path / "cache")
  for sample in dataset.test:
    same(decoded.load(sample, 20), preprocess.load_pair(sample, 20))


def test_the_pipeline_gives_the_same_batches(dataset, tmp_path):
  options = dict(image_size=20, batch_size=3, seed=1)
  plain = pipeline.train_batches([dataset], **options)
  decoded = cache.DecodedCache(tmp_path / "cache")
  for _ in range(2):
    cached = pipeline.train_batches([dataset], cache=decoded, **options)
    for a, b in zip(range(4), cached):
      expected = next(plain) if a >= 0 else None
      for key in expected:
        np.testing.assert_array_equal(expected[key], b[key])
    plain = pipeline.train_batches([dataset], **options)


def test_what_cannot_be_read_is_named_and_not_kept(dataset, tmp_path):
  decoded = cache.DecodedCache(tmp_path / "cache")
  gone = index.Sample(str(tmp_path / "gone.png"), "", "x", "", 0)
  with pytest.raises(ValueError, match="gone.png: the file does not exist"):
    decoded.load(gone, 20)
  mask(tmp_path / "small.png", size=(5, 5), box=(1, 1, 2, 2))
  sample = index.Sample(
    dataset.test[0].image_path, str(tmp_path / "small.png"), "x", "", 1
  )
  with pytest.raises(ValueError, match="expected equal sizes"):
    decoded.load(sample, 20)
  assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_logged_once_and_stops_nothing(
  dataset, tmp_path, monkeypatch
):
  def full(path, data):
    raise OSError(errno.ENOSPC, "Cannot write the file: No space left", path)

  monkeypatch.setattr(cache.files, "write_local_bytes", full)
  messages = []
  warn = lambda text, *values: messages.append(text % values)
  monkeypatch.setattr(cache._log, "warning", warn)
  kept = cache.DecodedCache(tmp_path / "cache")
  for sample in dataset.test:
    for found, wanted in zip(
      kept.load(sample, 16), preprocess.load_pair(sample, 16)
    ):
      np.testing.assert_array_equal(found, wanted)
  (message,) = messages
  assert "No space left" in message and "without the cache" in message


def test_a_file_that_vanishes_during_a_run_is_named(tmp_path):
  small_run.write_images(tmp_path / "set", number=30)
  found = registry.read_folder(tmp_path / "set")
  batches = pipeline.eval_batches(
    found.test,
    class_names=found.class_names,
    image_size=16,
    batch_size=1,
    cache=cache.DecodedCache(tmp_path / "cache"),
    workers=1,
  )
  next(batches)
  gone = found.test[-1].image_path
  os.unlink(gone)
  with pytest.raises(ValueError, match=gone):
    list(batches)
