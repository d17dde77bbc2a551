"""Completed stages of a run."""

import pytest

from zsad_jax.runs import finished


def test_a_stage_is_done_while_its_files_exist(tmp_path):
  report = tmp_path / "evaluation" / "results.json"
  report.parent.mkdir()
  report.touch()
  stages = finished.Stages(tmp_path, 8)
  assert not stages.is_done("evaluation of parts")
  stages.mark("evaluation of parts", [report])
  again = finished.Stages(tmp_path, 8)
  assert again.is_done("evaluation of parts")
  assert not again.is_done("evaluation of others")
  assert not finished.Stages(tmp_path, 9).is_done("evaluation of parts")
  report.unlink()
  assert not again.is_done("evaluation of parts")
  finished.reset(tmp_path)
  assert not (tmp_path / finished.FILE).exists()
  finished.reset(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 8, "stages": 1}'])
def test_a_corrupt_file_means_that_nothing_is_done(tmp_path, text):
  (tmp_path / finished.FILE).write_text(text)
  assert not finished.Stages(tmp_path, 8).is_done("calibration")


def test_a_stage_without_files_is_not_done(tmp_path):
  stages = finished.Stages(tmp_path, 8)
  stages.mark("calibration", [])
  assert not stages.is_done("calibration")
