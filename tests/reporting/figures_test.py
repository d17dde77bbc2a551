"""Tests of the figures."""

import numpy as np
import pytest
from PIL import Image

from zsad_jax.reporting import figures

RNG = np.random.default_rng(0)
TILE = figures.TILE
HEADER = 56  # Above the names of the columns.
BRIGHTEST = figures.heat_colours(np.array(1.0))
DARKEST = figures.heat_colours(np.array(0.0))


def sample(size=32):
  """A grey image, a mask of its upper left quarter, a map that finds it."""
  image = np.full((size, size, 3), 128, np.uint8)
  mask = np.zeros((size, size), np.uint8)
  mask[: size // 2, : size // 2] = 1
  return image, mask, mask.astype(np.float32)


def grid(masks="known", maps=None, captions=None, title="AdaCLIP, bottle"):
  image, mask, anomaly_map = sample()
  known = {"known": [mask, mask], "unknown": None, "one": [mask, None]}
  return figures.comparison_grid(
    [image, image],
    known[masks],
    [anomaly_map, 0 * anomaly_map] if maps is None else maps,
    captions or ["crack  score 0.83", "good  score 0.10"],
    title=title,
  )


def tiles(image):
  """{(row, column): pixels} of every tile, found by the documented layout."""
  pixels = np.asarray(image)
  lefts = [figures._MARGIN + k * (TILE + figures._GAP) for k in range(4)]
  tops = [
    figures._HEAD + i * figures._ROW
    for i in range((image.height - figures._HEAD) // figures._ROW)
  ]
  return {
    (i, k): pixels[top : top + TILE, left : left + TILE]
    for i, top in enumerate(tops)
    for k, left in enumerate(lefts)
  }


def lightness(rgb):
  """CIE L* of sRGB in [0, 1]."""
  linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
  y = linear @ [0.2126, 0.7152, 0.0722]
  return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)


def test_lightness_rises_evenly():
  colours = figures.heat_colours(np.linspace(0, 1, 33))
  assert colours.dtype == np.uint8 and colours.shape == (33, 3)
  steps = np.diff(lightness(colours / 255))
  assert lightness(colours[-1] / 255) - lightness(colours[0] / 255) > 80
  assert steps.min() > 0.6 * steps.mean()
  assert steps.max() < 1.4 * steps.mean()


def test_values_beyond_the_scale_are_clipped():
  colours = figures.heat_colours(np.array([[-3.0, 0.0], [1.0, np.inf]]))
  assert colours.shape == (2, 2, 3)
  np.testing.assert_array_equal(colours[:, 0], [DARKEST, BRIGHTEST])
  np.testing.assert_array_equal(colours[:, 1], [DARKEST, BRIGHTEST])


def test_overlay_colours_what_is_high_and_nothing_else():
  image = RNG.integers(0, 256, (6, 4, 3), np.uint8)
  anomaly_map = np.tile(np.float32([-9, 2, 6, 50]), (6, 1))
  blend = figures.overlay(image, anomaly_map, low=2.0, high=6.0)
  assert blend.dtype == np.uint8
  np.testing.assert_array_equal(blend[:, :2], image[:, :2])
  far = lambda x: np.abs(x.astype(int) - BRIGHTEST).sum(axis=-1)
  assert (far(blend[:, 2:]) < 0.5 * far(image[:, 2:])).all()
  contrast = np.ptp(blend[:, 2:], axis=(0, 1)) / np.ptp(
    image[:, 2:], axis=(0, 1)
  )
  assert (contrast > 0.25).all()  # The image is seen through the colour.


def test_overlay_of_a_constant_map_is_the_image():
  image, _, anomaly_map = sample()
  blend = figures.overlay(image, 0 * anomaly_map + 3, low=3.0, high=3.0)
  np.testing.assert_array_equal(blend, image)


def test_overlay_refuses_a_scale_upside_down():
  image, _, anomaly_map = sample()
  with pytest.raises(ValueError, match="got 2.0 and 1.0"):
    figures.overlay(image, anomaly_map, low=2.0, high=1.0)


def test_grid_has_a_row_per_sample():
  image = grid()
  assert image.mode == "RGB"
  assert image.width == 2 * figures._MARGIN + 4 * TILE + 3 * figures._GAP
  one_row = figures.comparison_grid(
    *([x] for x in sample()), ["crack"], title=""
  )
  assert image.height - one_row.height == figures._ROW > TILE


def test_columns_are_image_mask_map_overlay():
  found = tiles(grid())
  inside, outside = np.s_[:80, :80], np.s_[150:, 150:]
  assert (found[0, 0] == 128).all()
  assert (found[0, 1][inside] == 255).all() and not found[0, 1][outside].any()
  assert (found[0, 2][inside] == BRIGHTEST).all()
  assert (found[0, 2][outside] == DARKEST).all()
  assert (found[0, 3][inside] != 128).any(axis=-1).all()
  assert (found[0, 3][outside] == 128).all()


def test_rows_share_one_scale():
  _, _, anomaly_map = sample()
  found = tiles(grid(maps=[anomaly_map, anomaly_map / 4]))
  assert (found[0, 2][:80, :80] == BRIGHTEST).all()
  quarter = figures.heat_colours(np.array(0.25))
  assert (found[1, 2][:80, :80] == quarter).all()


def test_unknown_masks_are_no_black_masks():
  empty = tiles(grid("unknown"))
  mixed = tiles(grid("one"))
  for tile in (empty[0, 1], empty[1, 1], mixed[1, 1]):
    assert (tile[:50] == figures._EMPTY).all()
    assert (tile != figures._EMPTY).any()  # The text.
  np.testing.assert_array_equal(mixed[0, 1], tiles(grid())[0, 1])


def test_a_single_pixel_of_a_mask_stays_visible():
  image, mask, anomaly_map = sample(518)
  mask[:] = 0
  mask[300, 301] = 255
  picture = figures.comparison_grid(
    [image], [mask], [anomaly_map], ["dot"], title=""
  )
  assert tiles(picture)[0, 1].max() > 60


def test_infinite_values_do_not_set_the_scale():
  _, _, anomaly_map = sample()
  extreme = anomaly_map.copy()
  extreme[0, :16], extreme[-1] = np.inf, -np.inf
  np.testing.assert_array_equal(grid(maps=[extreme, 0 * anomaly_map]), grid())
  constant = np.full_like(anomaly_map, np.inf)
  grid(maps=[constant, constant])


def test_title_caption_and_scale_are_drawn():
  plain, other = np.asarray(grid()), np.asarray(grid(title="WinCLIP, pill"))
  assert (plain != other)[:HEADER].any() and (plain == other)[HEADER:].all()
  _, _, anomaly_map = sample()
  other = np.asarray(grid(maps=[2 * anomaly_map, 0 * anomaly_map]))
  assert (plain != other)[:HEADER].any() and (plain == other)[HEADER:].all()
  other = np.asarray(grid(captions=["hole", "good  score 0.10"]))
  below = figures._HEAD + TILE
  changed = np.flatnonzero((plain != other).any(axis=(1, 2)))
  assert changed.size
  assert below < changed[0] <= changed[-1] < figures._HEAD + figures._ROW


def test_long_texts_stay_inside():
  image = np.asarray(grid(title="x" * 500, captions=["y" * 500] * 2))
  blank = np.array(figures._PAPER)
  assert (image[:, : figures._MARGIN - 2] == blank).all()
  assert (image[:, -figures._MARGIN + 2 :] == blank).all()


def test_scale_labels():
  assert figures.scale_labels(-1e-5, 0.9993) == ("0.00", "1.00")
  assert figures.scale_labels(0.0131, 0.0299) == ("0.013", "0.030")
  assert figures.scale_labels(-40.0, 1234.5) == ("-40", "1234")
  assert figures.scale_labels(0.5, 0.5) == ("0.5", "0.5")


def test_bad_grids_are_refused():
  image, mask, anomaly_map = sample()
  with pytest.raises(ValueError, match="1 maps, 2 captions, 2 images"):
    grid(maps=[anomaly_map])
  with pytest.raises(ValueError, match="at least one"):
    figures.comparison_grid([], None, [], [], title="")
  with pytest.raises(ValueError, match="image 1 contains NaN"):
    grid(maps=[anomaly_map, np.full_like(anomaly_map, np.nan)])


def test_png_is_the_same_image(tmp_path):
  path = tmp_path / "new" / "grid.png"
  figures.save_png(path, grid())
  with Image.open(path) as image:
    np.testing.assert_array_equal(image, grid())
  assert [p.name for p in path.parent.iterdir()] == ["grid.png"]


def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
  path = tmp_path / "grid.png"
  path.write_bytes(b"old")

  def no_space(source, target):
    raise OSError(28, "No space left on device", source)

  monkeypatch.setattr("os.replace", no_space)
  with pytest.raises(OSError, match=r"No space left.*/grid\.png"):
    figures.save_png(path, grid())
  assert path.read_bytes() == b"old"
  assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(OSError, match=r"Cannot write.*file/grid\.png"):
    figures.save_png(tmp_path / "file" / "grid.png", grid())
