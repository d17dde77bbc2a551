"""Random changes of training images."""

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.datasets.pipeline_test import make
from zsad_jax.datasets import augmentation, mosaic, pipeline
from zsad_jax.datasets.augmentation import Augmentation

SIDE = 96


def disk():
  """Return an image of a bright disk off the center, and its mask."""
  y, x = np.mgrid[:SIDE, :SIDE]
  mask = 255 * ((y - 34) ** 2 + (x - 60) ** 2 < 20**2).astype(np.uint8)
  gray = np.where(mask > 0, 215, 40).astype(np.uint8)
  return Image.fromarray(np.stack([gray] * 3, -1)), Image.fromarray(mask)


def changed(seed):
  return augmentation.vcpclip(*disk(), np.random.default_rng(seed))


def test_the_mask_follows_the_image():
  moved = 0
  for seed in range(60):
    image, mask = changed(seed)
    assert (image.size, image.mode) == (mask.size, "RGB") and mask.mode == "L"
    values, labels = np.asarray(image).mean(-1), np.asarray(mask)
    assert set(np.unique(labels)) == {0, 255}
    # Filters and bilinear interpolation change the border of the disk alone.
    assert ((values > 127) == (labels > 0)).mean() > 0.97
    moved += not np.array_equal(labels, np.asarray(disk()[1]))
  # Not moved: neither rotated (1/2) nor by 90 to 270 degrees (1 - 3/8).
  assert 0.5 < moved / 60 < 0.85


def test_ranges_of_the_changes():
  means, deviations = [], []
  for seed in range(200):
    image, mask = changed(seed)
    inside = np.asarray(image, float)[np.asarray(mask) > 0]
    means.append(inside.mean())
    deviations.append(inside.std())
  # Nothing is done with probability 1/32, all with 1/32.
  assert min(means) < 180 and max(means) > 235
  assert np.mean(np.abs(np.array(means) - 215) < 3) > 0.2
  assert min(deviations) < 1 and max(deviations) > 5


def test_rotation_by_brute_force():
  image = np.arange(49, dtype=np.uint8).reshape(7, 7)
  for turns, degrees in ((1, 90.0), (2, 180.0), (0, 0.0)):
    found = augmentation.rotate(image, degrees, order=0)
    np.testing.assert_array_equal(found, np.rot90(image, turns))
  found = augmentation.rotate(image, 25.0, order=0)
  cos, sin = np.cos(np.radians(25)), np.sin(np.radians(25))
  mirror = lambda i: abs(i) if i < 7 else 12 - i
  for y, x in itertools.product(range(7), repeat=2):
    row, column = y - 3, x - 3
    from_y = round(cos * row + sin * column + 3)
    from_x = round(-sin * row + cos * column + 3)
    assert found[y, x] == image[mirror(from_y), mirror(from_x)]


@pytest.mark.parametrize("seed", range(4))
def test_color_jitter_keeps_gray_gray(seed):
  gray = Image.new("RGB", (8, 8), (100, 100, 100))
  found = augmentation.color_jitter(gray, np.random.default_rng(seed))
  pixels = np.asarray(found, int)
  assert np.ptp(pixels, axis=-1).max() <= 1
  assert 60 < pixels.mean() < 150


def batches(data, count, **options):
  settings: dict[str, Any] = dict(image_size=SIDE, batch_size=2, seed=1)
  settings |= options
  return [*itertools.islice(pipeline.train_batches([data], **settings), count)]


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
  data, policy = make(tmp_path, 4), Augmentation(policy="vcpclip")
  first = batches(data, 5, augmentation=policy)
  second = batches(data, 2, augmentation=policy, start_step=3)
  for one, other in zip(first[3:], second):
    np.testing.assert_array_equal(one["image"], other["image"])
    np.testing.assert_array_equal(one["mask"], other["mask"])
  plain = batches(data, 5)
  same = [np.array_equal(a["image"], b["image"]) for a, b in zip(first, plain)]
  assert not all(same)


def test_mosaics_of_anomalous_images(tmp_path):
  data = make(tmp_path, 6, mosaic_prob=1.0)
  kind = Augmentation(mosaic_images="anomalous", mosaic_label="any")
  found = batches(data, 9, batch_size=1, augmentation=kind)
  assert all(batch["label"] == 1 for batch in found)
  sizes = set()
  for epoch, sample in itertools.product(range(20), range(6)):
    cells = mosaic.draw(
      [1, 3, 5], prob=1.0, seed=1, epoch=epoch, sample=sample, distinct=False
    )
    assert cells and set(cells) <= {1, 3, 5}
    sizes.add(len(set(cells)))
  assert sizes == {1, 2, 3}  # Drawn with replacement.
