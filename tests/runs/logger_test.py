"""The file of measurements when a run is resumed."""

import json

import pytest

from zsad_jax.runs import logger

LINES = [
  {"step": 1, "loss": 3.0},
  {"step": 2, "loss": 2.0},
  {"step": 2, "selection/value": 0.5},
  {"step": 3, "loss": 1.0},
]


def resumed(folder, step, end="", **options):
  """Return the lines that a writer keeps."""
  path = folder / "metrics.jsonl"
  text = "".join(json.dumps(line) + "\n" for line in LINES)
  path.write_text(text + end)
  logger.Writer(folder, first_step=step, total_steps=9, **options)
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_step_are_dropped(tmp_path):
  assert resumed(tmp_path, 2) == LINES[:3]
  assert resumed(tmp_path, 2, drop_extra=True) == LINES[:2]
  assert resumed(tmp_path, 0) == []


def test_a_line_that_was_not_completed_is_dropped(tmp_path):
  assert resumed(tmp_path, 5, end='{"step": 4, "lo') == LINES


@pytest.mark.parametrize("line", ["", "nothing", "[]", '{"loss": 1}'])
def test_a_corrupt_line_is_named(tmp_path, line):
  with pytest.raises(ValueError, match="metrics.jsonl has a line"):
    resumed(tmp_path, 5, end=line + "\n")


def test_a_full_disk_is_named(tmp_path):
  writer = logger.Writer(tmp_path, first_step=0, total_steps=9)
  (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
  with pytest.raises(OSError, match="Cannot write.*No space.*metrics.jsonl'"):
    writer.write(1, {"loss": 1.0})


def test_the_first_report_gives_no_time_left(tmp_path, capsys):
  writer = logger.Writer(tmp_path, first_step=0, total_steps=9)
  for step in (1, 2):
    writer.progress(step, 0.5, batch_size=2)
  first, second = capsys.readouterr().out.splitlines()
  assert "left" not in first and second.endswith("left")
