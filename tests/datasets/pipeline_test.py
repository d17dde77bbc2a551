"""Tests of the order, the resumption and the content of batches."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from zsad_jax.datasets import (
  index,
  layouts,
  mosaic,
  pipeline,
  preprocess,
  rows,
)
from zsad_jax.datasets.augmentation import Augmentation

SIZE = 12


def make(root, count, *, class_name="nut", first_size=(16, 16), **fields):
  """Writes `count` images, every other one anomalous with a mask."""
  rng = np.random.default_rng(count)
  samples = []
  for i in range(count):
    width, height = first_size[0] + i % 3, first_size[1] - i % 2
    path = root / f"{class_name}{i}.png"
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(
      path
    )
    mask = root / f"{class_name}{i}_mask.png"
    if i % 2:
      Image.fromarray(
        np.kron(
          rng.integers(0, 2, (height, 1), np.uint8),
          np.ones((1, width), np.uint8),
        )
      ).save(mask)
    samples.append(
      index.Sample(str(path), str(mask) if i % 2 else "", class_name, "", i % 2)
    )
  data = index.make_dataset(class_name, root, test=samples)
  return dataclasses.replace(data, **fields)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return make(tmp_path_factory.mktemp("nut"), 7)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, data):
  """A second set with a class of the same name, which stays a second class."""
  return [data, make(tmp_path_factory.mktemp("more"), 5, mosaic_prob=0.5)]


def take(batches, count):
  return list(itertools.islice(batches, count))


def train(datasets, count, **options):
  options = dict(image_size=SIZE, batch_size=3, seed=1) | options
  return take(pipeline.train_batches(datasets, **options), count)


def indices(batches):
  return np.concatenate([batch["index"] for batch in batches])


def assert_equal(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others):
    assert batch.keys() == other.keys()
    for key in batch:
      np.testing.assert_array_equal(batch[key], other[key])


def test_keys_shapes_types(data):
  (batch,) = train([data], 1)
  expected = dict(
    image=((3, SIZE, SIZE, 3), np.uint8),
    mask=((3, SIZE, SIZE), np.uint8),
    has_mask=((3,), bool),
    label=((3,), np.int32),
    class_id=((3,), np.int32),
    index=((3,), np.int32),
    weight=((3,), np.float32),
  )
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == expected


def test_evaluation_is_in_order_and_padded(data):
  batches = take(
    pipeline.eval_batches(
      data.test, class_names=("bolt", "nut"), image_size=SIZE, batch_size=4
    ),
    9,
  )
  assert indices(batches).tolist() == [0, 1, 2, 3, 4, 5, 6, -1]
  assert batches[1]["weight"].tolist() == [1, 1, 1, 0]
  assert not batches[1]["image"][3].any() and not batches[1]["has_mask"][3]
  for batch in batches:
    for row, i in enumerate(batch["index"]):
      if i < 0:
        continue
      image, mask = preprocess.open_pair(data.test[i])
      np.testing.assert_array_equal(
        batch["image"][row], preprocess.resize_image(image, SIZE)
      )
      np.testing.assert_array_equal(
        batch["mask"][row], preprocess.resize_mask(mask, SIZE)
      )
      assert batch["label"][row] == i % 2 and batch["class_id"][row] == 1


def test_an_epoch_is_the_documented_permutation(data):
  batches = train([data], 14, batch_size=1)
  for epoch in range(2):
    expected = np.random.default_rng([1, epoch]).permutation(7)
    np.testing.assert_array_equal(
      indices(batches)[7 * epoch : 7 * (epoch + 1)], expected
    )


def test_the_last_batch_of_an_epoch_is_padded(data):
  assert pipeline.steps_per_epoch(7, 3) == 3
  assert pipeline.steps_per_epoch(6, 3) == 2
  now, later = (np.random.default_rng([1, e]).permutation(7) for e in (0, 1))
  batches = train([data], 4)
  np.testing.assert_array_equal(
    indices(batches), np.concatenate([now, [-1, -1], later[:3]])
  )
  weights = np.concatenate([batch["weight"] for batch in batches])
  np.testing.assert_array_equal(weights, indices(batches) >= 0)
  large = indices(train([data], 1, batch_size=9))
  np.testing.assert_array_equal(large, [*now, -1, -1])


@pytest.mark.parametrize("batch_size", [1, 3, 8, 12])
@pytest.mark.parametrize("devices", [1, 2, 5, 8, 64])
def test_rows_are_spread_evenly_over_the_devices(batch_size, devices):
  positions = rows.spread(batch_size, devices)
  assert [x for x in positions if x is not None] == [*range(batch_size)]
  each = np.array(positions, object).reshape(devices, -1)
  counts = (each != None).sum(axis=1)  # noqa: E711
  assert counts.max() - counts.min() <= 1
  assert 0 <= each.size - batch_size < devices
  for row, count in zip(each, counts):  # Images first, then padding.
    assert None not in row[:count] and not any(row[count:])


@pytest.mark.parametrize("devices, shards", [(2, 1), (4, 2), (8, 4), (64, 2)])
def test_images_of_a_step_do_not_depend_on_the_devices(mixed, devices, shards):
  steps, options = 5, dict(batch_size=3, num_references=0, start_step=2)
  plain = train(mixed, steps, **options)
  options |= dict(num_devices=devices, num_shards=shards)
  parts = [train(mixed, steps, **options, shard=i) for i in range(shards)]
  numbers = [
    take(pipeline.train_numbers(mixed, seed=1, **options, shard=i), steps)
    for i in range(shards)
  ]
  for step, wanted in enumerate(plain):
    found = [part[step] for part in parts]
    assert len({len(batch["label"]) for batch in found}) == 1
    batch = {k: np.concatenate([b[k] for b in found]) for k in wanted}
    assert len(batch["label"]) % devices == 0
    stored = np.concatenate([part[step]["index"] for part in numbers])
    np.testing.assert_array_equal(stored, batch["index"])
    for key, values in wanted.items():
      values = values[wanted["weight"] > 0]
      np.testing.assert_array_equal(batch[key][batch["weight"] > 0], values)


def test_padding_has_references_that_exist(tmp_path):
  """A later class may have fewer of them than the first."""
  for name, count in (("bolt", 9), ("nut", 1)):
    for part, number in (("train", count), ("test", 1)):
      folder = tmp_path / name / part / "good"
      folder.mkdir(parents=True)
      for i in range(number):
        (folder / f"{i}.png").touch()
  numbers = pipeline.train_numbers(
    [layouts.read_mvtec(tmp_path)],
    batch_size=1,
    num_devices=8,
    seed=0,
    num_references=2,
  )
  for batch in take(numbers, 20):
    padding = batch["index"] < 0
    assert padding.sum() == 7 and not batch["references"][padding].any()


def test_references_are_normal_training_images_of_the_class(tmp_path):
  for name in ("nut", "bolt"):
    for part in ("train/good", "test/good", "test/bent"):
      folder = tmp_path / name / part
      folder.mkdir(parents=True)
      for i in range(3):
        grey = len(name) * 20 + 5 * i + 100 * part.startswith("test")
        Image.new("RGB", (SIZE, SIZE), (grey,) * 3).save(folder / f"{i}.png")
  data = layouts.read_mvtec(tmp_path)
  batches = train([data], 8, batch_size=3, num_references=2)
  seen = set()
  for batch in batches:
    assert batch["references"].shape == (3, 2, SIZE, SIZE, 3)
    for row in np.flatnonzero(batch["weight"]):
      name = data.class_names[batch["class_id"][row]]
      greys = set(batch["references"][row, :, 0, 0, 0].tolist())
      assert greys <= {len(name) * 20 + 5 * i for i in range(3)}
      seen |= greys
  assert len(seen) == 6
  assert_equal(
    train([data], 2, batch_size=3, num_references=2, start_step=6), batches[6:]
  )
  assert "references" not in train([data], 1)[0]
  bare = dataclasses.replace(data, train=data.train[:3])
  with pytest.raises(ValueError, match="'nut' has no normal training image"):
    train([bare], 1, num_references=1)


@pytest.mark.parametrize("step", [1, 3, 8])
def test_resuming_is_exact(mixed, step):
  whole = train(mixed, 10)
  assert_equal(train(mixed, 10 - step, start_step=step), whole[step:])
  assert (indices(train(mixed, 3, seed=2)) != indices(whole[:3])).any()


@pytest.mark.parametrize("step", [0, 2])
def test_shards_make_up_the_batch(mixed, step):
  options = dict(batch_size=6, start_step=step)
  whole = train(mixed, 3, **options)
  parts = [train(mixed, 3, num_shards=3, shard=i, **options) for i in range(3)]
  joined = [
    {key: np.concatenate([part[key] for part in batch]) for key in batch[0]}
    for batch in zip(*parts)
  ]
  assert_equal(joined, whole)


def test_evaluation_shards_cover_every_sample_once(data):
  seen = [
    list(
      pipeline.eval_batches(
        data.test,
        class_names=("nut",),
        image_size=SIZE,
        batch_size=4,
        num_shards=2,
        shard=i,
      )
    )
    for i in range(2)
  ]
  assert len(seen[0]) == len(seen[1]) == 2
  found = np.concatenate([indices(part) for part in seen])
  assert sorted(found[found >= 0]) == list(range(7))


def test_classes_of_two_sets_stay_apart(mixed):
  assert pipeline.class_names(mixed) == ("nut", "nut")
  batches = train(mixed, 12, batch_size=1)
  for batch in batches:
    assert batch["class_id"] == (batch["index"] >= 7)


def brute_force_mosaic(samples):
  """Paints every pixel of the canvas by hand, cell after cell."""
  pairs = [[np.asarray(im) for im in preprocess.open_pair(s)] for s in samples]
  height, width = pairs[0][1].shape
  image = np.zeros((2 * height, 2 * width, 3), np.uint8)
  mask = np.zeros((2 * height, 2 * width), np.uint8)
  corners = [(0, 0), (0, width), (height, 0), (height, width)]
  for (top, left), (rgb, gt) in zip(corners, pairs):
    for y in range(min(gt.shape[0], 2 * height - top)):
      for x in range(min(gt.shape[1], 2 * width - left)):
        image[top + y, left + x] = rgb[y, x]
        mask[top + y, left + x] = gt[y, x]
  return (
    preprocess.resize_image(Image.fromarray(image), SIZE),
    preprocess.resize_mask(Image.fromarray(mask), SIZE),
  )


@pytest.mark.parametrize("rule", ["stale", "any"])
def test_mosaic_by_brute_force(tmp_path, rule):
  data = make(tmp_path, 6, mosaic_prob=1.0)
  kind = Augmentation(mosaic_label=rule)
  batches = train([data], 12, batch_size=1, augmentation=kind)
  changed = False
  for step, batch in enumerate(batches):
    i = int(batch["index"][0])
    cells = mosaic.draw(range(6), prob=1.0, seed=1, epoch=step // 6, sample=i)
    assert len(set(cells)) == 4
    image, mask = brute_force_mosaic([data.test[j] for j in cells])
    np.testing.assert_array_equal(batch["image"][0], image)
    np.testing.assert_array_equal(batch["mask"][0], mask)
    label = i % 2 if rule == "stale" else max(j % 2 for j in cells)
    assert batch["label"] == label
    changed |= label != i % 2
  assert changed == (rule == "any")


def test_mosaics_stay_within_the_class(tmp_path):
  small = make(tmp_path, 3, class_name="bolt")
  data = make(tmp_path, 5, class_name="nut")
  both = index.make_dataset("both", tmp_path, test=small.test + data.test)
  plain = train([both], 8, batch_size=1)
  both = dataclasses.replace(both, mosaic_prob=1.0)
  for batch, other in zip(train([both], 8, batch_size=1), plain):
    same = np.array_equal(batch["image"], other["image"])
    assert same == (batch["index"][0] < 3)  # Too few bolts for a mosaic.


def test_mosaic_rate():
  draws = [
    mosaic.draw(range(9), prob=0.2, seed=0, epoch=e, sample=i)
    for e in range(20)
    for i in range(100)
  ]
  assert 0.16 < sum(cells is not None for cells in draws) / 2000 < 0.24
  cells = [c for c in draws if c]
  assert len(set(cells)) > len(cells) / 2
  assert {i for c in cells for i in c} == set(range(9))
  assert mosaic.draw(range(9), prob=0.0, seed=0, epoch=0, sample=0) is None
  assert mosaic.draw(range(3), prob=1.0, seed=0, epoch=0, sample=0) is None


@pytest.fixture
def damaged(tmp_path):
  data = make(tmp_path, 5)
  (tmp_path / "nut2.png").write_bytes(b"nothing")
  return data


def test_a_damaged_image_stops_by_name(damaged):
  with pytest.raises(ValueError, match=r"nut2\.png: cannot be read") as info:
    list(
      pipeline.eval_batches(
        damaged.test, class_names=("nut",), image_size=SIZE, batch_size=2
      )
    )
  assert len(str(info.value).splitlines()) == 1


def test_a_damaged_image_can_be_skipped(damaged):
  batches = pipeline.train_batches(
    [damaged], image_size=SIZE, batch_size=1, seed=0, skip_corrupt=True
  )
  found = take(batches, 10)
  assert len(batches.skipped) == 1 and "nut2.png" in batches.skipped[0]
  for batch in found:
    assert batch["weight"] == (batch["index"] != 2)


def test_an_unmasked_anomaly_says_so(tmp_path):
  data = make(tmp_path, 4)
  samples = [dataclasses.replace(s, mask_path="") for s in data.test]
  (batch,) = pipeline.eval_batches(
    samples, class_names=("nut",), image_size=SIZE, batch_size=4
  )
  assert batch["has_mask"].tolist() == [True, False, True, False]
  data = dataclasses.replace(data, test=tuple(samples), mosaic_prob=1.0)
  for batch in train([data], 4, batch_size=1):
    assert not batch["has_mask"].any()  # All four are in every mosaic.


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(batch_size=3, num_shards=2), "3 images cannot be split over 2 hosts"),
    (dict(batch_size=0), "0 images"),
    (dict(num_shards=1, shard=1), "expected 0 to 0, found 1"),
    (dict(seed=-1), "must not be negative, found -1"),
    (dict(datasets=[]), "no sample"),
  ],
)
def test_arguments_are_checked(data, options, message):
  datasets = options.pop("datasets", [data])
  with pytest.raises(ValueError, match=message):
    train(datasets, 1, **options)


def test_an_unknown_class_is_named(data):
  with pytest.raises(ValueError, match=r"\['nut'\] occur in the samples"):
    pipeline.eval_batches(
      data.test, class_names=("bolt",), image_size=SIZE, batch_size=1
    )


@pytest.mark.slow
def test_leaving_in_the_middle_is_quiet_and_ends(data):
  code = f"""
from zsad_jax.datasets import pipeline
from zsad_jax.datasets.index import Dataset, Sample
batches = pipeline.train_batches(
    [{data!r}], image_size=64, batch_size=2, seed=0)
next(batches)
"""
  done = subprocess.run(
    [sys.executable, "-c", code],
    timeout=60,
    check=True,
    capture_output=True,
    text=True,
  )
  assert done.stdout + done.stderr == ""
