"""Notes about thresholds that do not fit, for every long-running command."""

import dataclasses
import types
from unittest import mock

import pytest
from absl import flags

from tests.helpers import fake_detector
from tests.helpers.definer import Definer
from zsad_jax.inference import tiling
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import opening
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib


@pytest.fixture
def open_with(monkeypatch, tmp_path, caplog):
  """A function from flags and the source of a threshold to what is logged."""
  values = flags.FlagValues()
  for module in (opening, tiling):
    monkeypatch.setattr(module, "flags", Definer(values))
  opening.define_flags()
  flags.DEFINE_string("workdir", str(tmp_path), "", flag_values=values)
  config = types.SimpleNamespace(
    name="run", backbone=types.SimpleNamespace(name="other")
  )
  method = types.SimpleNamespace(needs_references=False)
  run = mock.Mock(run_lib.Run, workdir=tmp_path, config=config, method=method)
  run.categories = None
  monkeypatch.setattr(opening.ensemble, "load", lambda workdir: run)

  def logged(arguments, source):
    limits = dataclasses.replace(fake_detector.LIMITS, source=source)
    limits.write(tmp_path)
    detector = mock.Mock(detector_lib.Detector, limits=limits)
    make = lambda run, **settings: detector
    monkeypatch.setattr(opening.ensemble_detector, "make_detector", make)
    values(["command", *arguments])
    caplog.clear()
    with caplog.at_level("INFO"):
      opening.from_flags(values)
    return caplog.text

  return logged


def test_tiles_with_the_threshold_of_whole_images_are_named(open_with):
  assert opening.TILE_NOTE in open_with(["--tile=64"], "own images")


def test_a_given_threshold_or_whole_images_need_no_warning(open_with):
  assert opening.TILE_NOTE not in open_with([], "own images")
  given = ["--tile=64", "--threshold=0.5"]
  assert opening.TILE_NOTE not in open_with(given, "own images")


def test_a_threshold_of_the_training_is_named(open_with):
  note = threshold_lib.TRAINING_NOTE
  source = f"best F1 on {threshold_lib.AUXILIARY} (aux)"
  assert note in open_with([], source)
  assert note not in open_with([], "own images")


@pytest.mark.parametrize("tiles", [None, tiling.Tiling(100)])
def test_the_warm_up_scores_an_image_that_has_tiles(tiles):
  seen = []

  def stream(images):
    seen.append([image.shape for image in images])
    return iter(())

  detector = mock.Mock(detector_lib.Detector, tiling=tiles, stream=stream)
  opening.warm_up(detector, [1, 3])
  assert [len(shapes) for shapes in seen] == [1, 3]
  for height, width, channels in sum(seen, []):
    assert channels == 3 and height == width
    assert tiles is None or height > tiles.size
