"""The flags of `predict --watch`."""

import argparse
from unittest import mock

import pytest

from tests.helpers import fake_detector
from zsad_jax.runs import opening
from zsad_jax.watch import command, loop


class Detector(fake_detector.FakeDetector):
  has_references = False


@pytest.mark.parametrize("image_only", [False, True])
def test_a_method_without_maps_writes_scores_only(
  image_only, tmp_path, monkeypatch
):
  run = mock.Mock(method=mock.Mock(image_only=image_only))
  opened = opening.Opened(run, Detector(), opening.Choice())
  monkeypatch.setattr(opening, "from_flags", lambda options: opened)
  monkeypatch.setattr(opening.Opened, "settings", lambda self: {})
  watchers = []
  monkeypatch.setattr(
    loop.Watcher, "run", lambda self, *_: watchers.append(self)
  )
  (tmp_path / "in").mkdir()
  command.run(
    argparse.Namespace(
      watch=str(tmp_path / "in"),
      output=str(tmp_path / "out"),
      save=None,
      overlay_side=0,
      batch_size=4,
    ),
    str,
  )
  (watcher,) = watchers
  expected = ["scores"] if image_only else ["scores", "overlays"]
  assert {*expected} <= watcher.writer.save
  assert (watcher.writer.save == {"scores"}) == image_only
  names = [table.name for table in watcher.tables]
  assert names == ["scores.csv"] + ["regions.csv"] * (not image_only)
