"""Regions of masks, against flood fill and a decoder of run lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from zsad_jax.inference import regions

maps = arrays.arrays(
  np.float32,
  arrays.array_shapes(min_dims=2, max_dims=2, max_side=9),
  elements=st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.7000001, 1.0]),
)


def flood(mask):
  """Return the sets of pixels of the 8-connected regions, by first pixel."""
  left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
  found = []
  while left:
    part, todo = set(), [min(left)]
    while todo:
      y, x = todo.pop()
      if (y, x) not in left:
        continue
      left.remove((y, x))
      part.add((y, x))
      todo += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    found.append(part)
  return found


def decode(counts, height, width):
  """Return the mask of COCO's uncompressed RLE, pixel by pixel."""
  mask = np.zeros((height, width), bool)
  at = 0
  for i, count in enumerate(counts):
    for _ in range(count):
      mask[at % height, at // height] = i % 2
      at += 1
  assert at == height * width
  return mask


@settings(max_examples=200)
@given(maps, st.integers(1, 6))
def test_regions_are_those_of_a_flood_fill(anomaly_map, limit):
  mask = anomaly_map >= 0.5
  found = regions.find(anomaly_map, mask, limit=limit)
  expected = flood(mask)
  peak = lambda part: max(anomaly_map[p] for p in part)
  expected.sort(key=lambda part: -peak(part))  # Stable.
  assert found.count == len(expected)
  assert found.largest_area == max(map(len, expected), default=0)
  assert len(found.regions) == min(limit, len(expected))
  encoded = found.run_lengths()
  assert len(encoded) == len(found.regions)
  for region, counts, part in zip(found.regions, encoded, expected):
    rows, columns = zip(*part)
    left, top, width, height = region.box
    assert (left, top) == (min(columns), min(rows))
    assert (left + width, top + height) == (max(columns) + 1, max(rows) + 1)
    assert region.area == len(part) and region.peak == peak(part)
    mean = sum(float(anomaly_map[p]) for p in part) / len(part)
    np.testing.assert_allclose(region.mean, mean, rtol=1e-12)
    decoded = decode(counts, *mask.shape)
    assert {(int(y), int(x)) for y, x in np.argwhere(decoded)} == part


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_blocks_of_rows_change_nothing(block, monkeypatch):
  anomaly_map = np.random.default_rng(0).random((40, 30), np.float32)
  expected = regions.find(anomaly_map, anomaly_map > 0.6)
  monkeypatch.setattr(regions, "_BLOCK", block)
  found = regions.find(anomaly_map, anomaly_map > 0.6)
  assert found.count == expected.count > 10
  for region, other in zip(found.regions, expected.regions):
    assert region == other


def test_very_many_regions_are_counted_and_the_highest_described():
  anomaly_map = np.zeros((1000, 1000), np.float32)
  peaks = np.random.default_rng(0).permutation(250_000) + 1
  anomaly_map[::2, ::2] = (peaks / 250_001).reshape(500, 500)
  found = regions.find(anomaly_map, anomaly_map > 0)
  assert (found.count, found.largest_area) == (250_000, 1)
  order = np.sort(peaks)[::-1][: regions.LIMIT] / 250_001
  assert [region.peak for region in found.regions] == [
    *np.float32(order).tolist()
  ]
  lengths = found.run_lengths()
  assert len(lengths) == regions.LIMIT
  assert all(sum(each) == 10**6 and len(each) <= 3 for each in lengths)
