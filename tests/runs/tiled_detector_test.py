"""Detectors that score by tiles, of a model that detects bright pixels."""

import pathlib
from typing import Any
from unittest import mock

import ml_collections
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.helpers.brightness import BrightnessModel
from zsad_jax.inference.tiling import Tiling
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import ensemble_detector
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib

SIDE = 16
TILING = Tiling(32)
LIMITS = threshold_lib.Threshold(0.5, 0.0, 1.0, "test")


class Bright(detector_lib.Detector):
  """A detector with the model instead of that of its run."""

  def __init__(self, *args, **settings):
    super().__init__(*args, **settings)
    self.model = BrightnessModel()

  _zero_shot_model = property(lambda self: self.model)
  _few_shot_model = property(lambda self: self.model)


class BrightEnsemble(ensemble_detector.EnsembleDetector):
  """An ensemble, whose members are set afterwards."""

  def __init__(self, *args, **settings):
    detector_lib.Detector.__init__(self, *args, **settings)


def make(tiling: Tiling | None = TILING, kind: Any = Bright, **more):
  config = ml_collections.ConfigDict(
    {
      "image_size": SIDE,
      "smooth_sigma": 1.5,
      "name": "bright",
      "matmul_precision": "float32",
    }
  )
  run = mock.Mock(spec=run_lib.Run, config=config, workdir=pathlib.Path())
  run.params, run.stats, run.categories = {}, {}, None
  run.method = mock.Mock(spec=["needs_references"], needs_references=False)
  run.backbone = mock.Mock(spec=["patch_size"], patch_size=4)
  return kind(run, limits=LIMITS, tiling=tiling, **more)


def dark(height=70, width=100, spot=None):
  """Return a dark image of noise, with a bright spot of 2 x 2 pixels."""
  rng = np.random.default_rng(height * width)
  image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
  if spot:
    image[spot[0] : spot[0] + 2, spot[1] : spot[1] + 2] = 255
  return image


def test_a_small_defect_is_found_in_its_place():
  image = dark(spot=(50, 81))
  whole, tiles = (make(t)(image) for t in (None, TILING))
  assert whole.label == "normal" and tiles.label == "anomalous"
  assert whole.raw_map.shape == (16, 16) and tiles.raw_map.shape == (35, 50)
  assert tiles.anomaly_map.shape == tiles.image_size == (70, 100)
  place = np.unravel_index(tiles.anomaly_map.argmax(), (70, 100))
  assert np.abs(np.subtract(place, (51, 82))).max() <= 2
  smooth = Image.fromarray(ndimage.gaussian_filter(tiles.raw_map, 1.5))
  np.testing.assert_allclose(
    tiles.anomaly_map, smooth.resize((100, 70), Image.BILINEAR), atol=1e-6
  )


@pytest.mark.parametrize("references", [False, True])
def test_an_image_of_one_tile_has_the_result_of_the_whole(references):
  images = [dark(20, 32, (3, 4)), dark(32, 9)]
  found = []
  for tiling in (None, TILING):
    detector = make(tiling, batch_size=2)
    if references:
      detector = detector.with_references([dark(32, 32), dark(10, 30)])
    found.append(detector(images))
  for whole, tiles in zip(*found):
    assert whole.score == tiles.score
    assert whole.zero_shot_score == tiles.zero_shot_score
    assert (whole.zero_shot_score is None) != references
    np.testing.assert_array_equal(whole.raw_map, tiles.raw_map)
    np.testing.assert_array_equal(whole.anomaly_map, tiles.anomaly_map)


def test_scores_are_the_largest_of_the_tiles():
  """Also those without references, and for any batch size."""
  images = [dark(spot=(50, 81)), dark(33, 20), dark(90, 40, (0, 0))]
  references = [dark(80, 50), dark(20, 20)]
  results = []
  for batch_size in (1, 4, 50):
    detector = make(batch_size=batch_size).with_references(references)
    assert len(detector.model.references) > len(references)
    results.append(detector(images))
  bank = np.mean(detector.model.references) / 255
  for image, *found in zip(images, *results):
    grid = TILING.grid(image.shape[:2], SIDE)
    tiles = [
      np.asarray(
        Image.fromarray(image).resize(
          (SIDE, SIDE), Image.BICUBIC, box=grid.box(i)
        )
      )
      for i in range(len(grid))
    ]
    brightest = max(tile.mean(-1).max() for tile in tiles) / 255
    for each in found:
      np.testing.assert_allclose(each.zero_shot_score, brightest, rtol=1e-6)
      np.testing.assert_allclose(each.score, brightest - bank, rtol=1e-5)
      assert each.score == found[0].score
      np.testing.assert_array_equal(each.raw_map, found[0].raw_map)


def test_a_reference_is_not_compared_with_itself(tmp_path):
  Image.fromarray(dark()).save(tmp_path / "a.png")
  detector = make().with_references([tmp_path / "a.png", dark(40, 40)])
  detector(dark(71, 100))
  with pytest.raises(ValueError, match=r"images\[1\] is one of the references"):
    detector([dark(71, 100), dark()])


def test_unreadable_images_are_named_or_skipped(tmp_path):
  bad = tmp_path / "bad.png"
  bad.write_bytes(b"no image")
  with pytest.raises(ValueError, match="bad.png"):
    make()([dark(), bad])
  found = dict(make().stream([bad, dark(), bad, dark()], skip_corrupt=True))
  assert list(found) == [0, 1, 2, 3]
  assert [isinstance(found[i], str) for i in found] == [True, False] * 2
  with pytest.raises(ValueError, match="bad.png"):
    make().with_references([dark(), bad])


def test_a_nan_is_an_error_that_names_the_image():
  detector = make()
  predict = detector._zero_shot_model.predict

  def broken(*args):
    (found,) = predict(*args)
    found["anomaly_map"][0, 0, 0] = np.nan
    return [found]

  detector._zero_shot_model.predict = broken
  with pytest.raises(ValueError, match=r"images\[0\].*not finite"):
    detector([dark()])


def test_a_large_image_is_warned_of_once(capsys):
  detector = make(None)
  detector(dark(64, 30))
  assert not capsys.readouterr().out
  few_shot = detector.with_references([dark(10, 160)])
  for each in (few_shot, detector, few_shot.with_references([dark(200, 9)])):
    each([dark(300, 300), dark(400, 100)])
  (line,) = capsys.readouterr().out.splitlines()
  assert "images[0]: the image of 160 x 10 pixels" in line
  assert "about 40 pixels" in line
  make()(dark(300, 300))
  assert not capsys.readouterr().out


def test_tiling_is_passed_on(monkeypatch):
  detector, given = make(), []
  assert detector.tiling is TILING and make(None).tiling is None
  monkeypatch.setattr(ensemble_detector.ensemble_lib, "load", lambda _: "run")
  monkeypatch.setattr(
    ensemble_detector,
    "make_detector",
    lambda _, **settings: given.append(settings["tiling"]) or detector,
  )
  ensemble_detector.load("", tile=9)
  ensemble_detector.load("", tile=9, tile_overlap=0.5)
  ensemble_detector.load("")
  assert given == [Tiling(9), Tiling(9, 0.5), None]
  with pytest.raises(ValueError, match="size of tiles is 0"):
    ensemble_detector.load("", tile=0)


def test_an_ensemble_averages_merged_maps():
  """Members of other sizes: the map has the shape of the largest one."""
  images = [dark(spot=(50, 81)), dark(20, 20)]
  members = [make(), make()]
  members[1]._config.image_size = 24
  ensemble = make(kind=BrightEnsemble)
  ensemble._members = members
  found = ensemble(images)
  alone = [member(images) for member in members]
  assert [each.raw_map.shape for each in found] == [(52, 75), (24, 24)]
  for mean, *parts in zip(found, *alone):
    np.testing.assert_allclose(mean.score, np.mean([x.score for x in parts]))
    np.testing.assert_allclose(
      mean.anomaly_map, np.mean([x.anomaly_map for x in parts], axis=0)
    )
