"""Grids of tiles and merged maps against brute force."""

import itertools

import hypothesis
import numpy as np
import pytest
from absl import flags
from hypothesis import strategies as st

from tests.helpers.definer import Definer
from zsad_jax.inference import tiling

LENGTHS = st.integers(1, 3000)
OVERLAPS = st.floats(0, 0.9)


@hypothesis.given(LENGTHS, LENGTHS, LENGTHS, OVERLAPS, st.integers(1, 700))
def test_tiles_cover_the_image_and_overlap(height, width, size, overlap, side):
  grid = tiling.Tiling(size, overlap).grid((height, width), side)
  rows, columns = grid.axes
  assert len(grid) == len(rows.offsets) * len(columns.offsets)
  assert grid.shape == (rows.cells, columns.cells)
  for axis, length in ((rows, height), (columns, width)):
    assert axis.length == length
    first, last = axis.offsets[0], axis.offsets[-1]
    assert first == 0 and last + side == axis.cells >= side
    for a, b in itertools.pairwise(axis.offsets):
      # A pixel of the merged map is the least step.
      assert b == a + 1 or a < b <= a + side - overlap * side + 1e-5
    assert (len(axis.offsets) == 1) == (axis.cells == side)
    if length <= size:
      assert axis.offsets == (0,)
    # The scale is that of a tile, up to the rounding of the map's size.
    scale = min(size, length) / side
    assert axis.cells == side or abs(axis.cells * scale - length) <= scale
  for number in {0, len(grid) // 2, len(grid) - 1}:
    left, top, right, bottom = grid.box(number)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height


@hypothesis.given(LENGTHS, LENGTHS, st.integers(1, 700))
def test_a_small_image_is_one_tile_with_exact_borders(height, width, side):
  size = max(height, width)
  grid = tiling.Tiling(size).grid((height, width), side)
  assert len(grid) == 1
  assert grid.box(0) == (0, 0, width, height)


GRIDS = st.tuples(
  st.tuples(st.integers(1, 60), st.integers(1, 60)),
  st.integers(4, 60),
  OVERLAPS,
  st.integers(4, 16),
)


def make(image_size, size, overlap, side):
  return tiling.Tiling(size, overlap).grid(image_size, side)


def cut(whole, grid):
  """Yield number and part of a map of the merged size for each tile."""
  rows, columns = (axis.offsets for axis in grid.axes)
  for number, (y, x) in enumerate(itertools.product(rows, columns)):
    yield number, whole[y : y + grid.side, x : x + grid.side]


@hypothesis.given(GRIDS, st.floats(0, 1), st.floats(-1, 1), st.floats(-1, 1))
def test_constant_and_linear_maps_have_no_seams(given, value, down, right):
  """The weights of each pixel sum to 1: a constant map stays constant."""
  grid = make(*given)
  y, x = np.indices(grid.shape)
  whole = value + down * y / grid.shape[0] + right * x / grid.shape[1]
  merger = tiling.MapMerger(grid)
  for number, part in cut(whole.astype(np.float32), grid):
    merger.add(number, part)
  assert merger.complete
  np.testing.assert_allclose(merger.result(), whole, atol=1e-6)


@hypothesis.settings(max_examples=30)
@hypothesis.given(GRIDS, st.integers(0, 2**32 - 1))
def test_merged_maps_are_the_weighted_mean(given, seed):
  grid = make(*given)
  hypothesis.assume(len(grid) < 40)
  side = grid.side
  rng = np.random.default_rng(seed)
  maps = rng.random((len(grid), side, side), np.float32)
  tent = [
    min(1, min(i + 0.5, side - i - 0.5) / max(1, grid.overlap * side))
    for i in range(side)
  ]
  total, weights = np.zeros(grid.shape), np.zeros(grid.shape)
  places = itertools.product(*(axis.offsets for axis in grid.axes))
  for one_map, (top, left) in zip(maps, places):
    for y, x in itertools.product(range(side), range(side)):
      weight = tent[y] * tent[x]
      total[top + y, left + x] += weight * one_map[y, x]
      weights[top + y, left + x] += weight
  merger = tiling.MapMerger(grid)
  for number in rng.permutation(len(grid)):
    merger.add(int(number), maps[number])
  np.testing.assert_allclose(merger.result(), total / weights, atol=1e-6)


def test_a_missing_tile_is_an_error():
  grid = tiling.Tiling(8).grid((20, 8), 4)
  merger = tiling.MapMerger(grid)
  merger.add(0, np.zeros((4, 4), np.float32))
  with pytest.raises(ValueError, match="tile 1 is missing"):
    merger.result()


def parse(*arguments):
  """Return the tiling of a command line."""
  options = flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(tiling, "flags", Definer(options))
    tiling.define_flags()
  options(["command", *arguments])
  return tiling.from_flags(options)


def test_flags_give_a_tiling():
  assert parse() is None
  assert parse("--tile=512") == tiling.Tiling(512, 0.25)
  assert parse("--tile=512", "--tile_overlap=0") == tiling.Tiling(512, 0.0)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--tile_overlap=0.5"], "--tile_overlap.*give --tile, too"),
    (["--tile=0"], "--tile=0"),
    (["--tile=4", "--tile_overlap=0.95"], "--tile_overlap=0.95"),
    (["--tile=4", "--tile_overlap=nan"], "overlap of tiles is nan"),
    (["--tile=x"], "--tile=x"),
  ],
)
def test_wrong_flags_are_named(arguments, message):
  with pytest.raises((ValueError, flags.Error), match=message):
    parse(*arguments)


def test_text_of_a_tiling():
  assert tiling.Tiling.of(None) is None
  assert tiling.Tiling.of(512) == tiling.Tiling(512)
  assert tiling.Tiling(512).label == "tile512"
  assert tiling.Tiling(512, 0.5).label == "tile512_overlap0.5"
  assert tiling.Tiling(512).describe() == "tiles of 512 px, overlap 0.25"
