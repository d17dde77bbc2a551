"""Overlays of `predict`: sizes, colors, outlines and the caption."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from zsad_jax.reporting import figures, overlays
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import threshold as threshold_lib

LIMITS = threshold_lib.Threshold(0.5, 0.0, 1.0, "", pixel=0.5)
OUTLINE = np.array(overlays._OUTLINE)


def detection(raw_map, size, **changes):
  return detector_lib.Detection(
    score=0.7,
    limits=dataclasses.replace(LIMITS, **changes),
    raw_map=np.asarray(raw_map, np.float32),
    image_size=size,
    smooth_sigma=0.0,
  )


def test_colors_are_those_of_the_map_and_the_caption_covers_nothing():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (40, 60, 3), np.uint8)
  hot = np.zeros((4, 6))
  hot[:, 3:] = 1.0
  found = detection(hot, (40, 60), pixel=None)
  drawn = np.asarray(overlays.draw(Image.fromarray(image), found))
  assert drawn.shape[0] > 40 and drawn.shape[1] >= 60
  expected = figures.overlay(image, found.anomaly_map, low=0.0, high=1.0)
  np.testing.assert_array_equal(drawn[:40, :60], expected)
  assert (drawn[40:].min(axis=(1, 2)) < 120).sum() > 10  # Text.


@pytest.mark.parametrize(
  ("size", "side", "expected"),
  [
    ((400, 300), 200, (200, 150)),
    ((300, 400), 200, (150, 200)),
    ((400, 300), 0, (400, 300)),
    ((40, 30), 200, (40, 30)),
    ((900, 1), 100, (100, 1)),
    ((1, 900), 100, (1, 100)),
  ],
)
def test_the_longest_side_is_bounded(size, side, expected):
  image = Image.new("RGB", size, (200, 0, 0))
  found = detection(np.zeros((8, 8)), size[::-1])
  drawn = np.asarray(overlays.draw(image, found, side=side))
  red = (drawn == (200, 0, 0)).all(axis=-1)
  width, height = expected
  assert red[:height, :width].all()
  # All paper but for the caption.
  assert (drawn[:height, width:] == 255).all()


def test_every_region_is_outlined_without_being_covered():
  raw = np.zeros((300, 400))
  raw[30:60, 30:60] = raw[200, 300] = 0.9  # The second one is a single pixel.
  image = Image.new("RGB", (400, 300), (90, 90, 90))
  drawn = np.asarray(overlays.draw(image, detection(raw, (300, 400)), side=100))
  marked = (drawn[:75, :100] == OUTLINE).all(axis=-1)
  assert marked[6:16, 6:16].sum() == 36 and not marked[7:15, 7:15].any()
  assert marked[49:52, 74:77].sum() == 8 and not marked[50, 75]
  assert marked.sum() == 36 + 8
  assert not (drawn[:, :, 2] > 250)[:75, :100][marked == 0].any()


@pytest.mark.parametrize("pixel", [None, -1.0, 0.0, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("bounds", [(0.2, 0.8), (0.4, 0.4), (0.0, 1e-9)])
@pytest.mark.parametrize("size", [(1, 1), (64, 64), (1700, 9)])
def test_any_limits_can_be_drawn(size, bounds, pixel):
  low, high = bounds
  found = detection(
    np.full((4, 4), 0.4), size[::-1], map_low=low, map_high=high, pixel=pixel
  )
  drawn = overlays.draw(Image.new("RGB", size), found)
  assert drawn.width >= 150
  rows = np.asarray(drawn)[-60:].min(axis=(1, 2))
  assert rows[-1] > 200  # The caption ends within the image.


def test_the_caption_states_label_and_score(monkeypatch):
  texts = []
  write = overlays.ImageDraw.ImageDraw.text

  def spy(self, position, text, *args, **kwargs):
    texts.append(text)
    write(self, position, text, *args, **kwargs)

  monkeypatch.setattr(overlays.ImageDraw.ImageDraw, "text", spy)
  found = detection(np.full((4, 4), 0.4), (9, 9), map_low=0.1, map_high=0.9)
  overlays.draw(Image.new("RGB", (9, 9)), found)
  assert texts == [
    *("anomalous", "score 0.7", "threshold 0.5"),
    *("0.10", "0.90", "outlined from 0.5"),
  ]
