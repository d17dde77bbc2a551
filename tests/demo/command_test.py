"""The command `zsad demo`: its flags, notes and refusals."""

import types
from unittest import mock

import pytest

from tests.helpers import fake_detector
from zsad_jax.demo import __main__ as command
from zsad_jax.inference.tiling import Tiling
from zsad_jax.runs import opening
from zsad_jax.runtime import server, web


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(web.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    ValueError, match=r"gradio.*pip install 'zsad_jax\[demo\]'"
  ):
    web.check_installed("demo", command._PACKAGES)


def test_other_machines_need_a_token():
  server.check_token("127.0.0.1", "")
  server.check_token("::1", "")
  server.check_token("0.0.0.0", "x" * 16)
  with pytest.raises(ValueError, match=r"--host=0.0.0.0 .*--token_file"):
    server.check_token("0.0.0.0", "")


def notes(*, calibration=None, threshold=None, tiling=None):
  detector = fake_detector.FakeDetector()
  detector.tiling = tiling
  options = types.SimpleNamespace(calibration=calibration, threshold=threshold)
  return command._notes(options, detector)


def test_notes_name_the_threshold_and_the_tiles():
  assert notes() == ["Threshold of scores: 0.5 (given)."]
  assert notes(calibration="line3")[0].startswith("Calibration line3. Thresh")
  tiled = notes(tiling=Tiling(64, 0.25))
  assert "tiles of 64 pixels" in tiled[1] and tiled[2] == opening.TILE_NOTE
  assert len(notes(tiling=Tiling(64, 0.25), threshold=0.3)) == 2
  assert len(notes(tiling=Tiling(64, 0.25), calibration="line3")) == 2


def test_a_method_without_maps_is_refused():
  opened = lambda image_only: mock.Mock(
    opening.Opened,
    run=mock.Mock(method=mock.Mock(image_only=image_only)),
  )
  command._check_maps(opened(False))
  with pytest.raises(ValueError, match="image scores only: use zsad predict"):
    command._check_maps(opened(True))
