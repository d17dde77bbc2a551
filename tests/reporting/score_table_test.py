"""The table of scores of `predict`: complete, whatever stops it."""

import csv
import os
import signal

import pytest

from zsad_jax.reporting import predictions, result_files, score_table
from zsad_jax.runtime import stopping

COLUMNS = ["image", "score", "label", "status"]


def row(path):
  values = (predictions.absolute(path), 0.123456789, "normal", "scored")
  return result_files.ImageRow(dict(zip(COLUMNS, values)))


def table(folder, images=("x.png",)):
  return score_table.ScoreTable(folder, images, COLUMNS)


def read(folder, name=score_table.SCORES):
  with (folder / name).open(newline="", encoding="utf-8-sig") as file:
    return list(csv.DictReader(file))


def test_the_table_has_a_mark_and_absolute_paths(tmp_path):
  with table(tmp_path / "new") as scores:
    scores.add(row("x.png"))
  path = tmp_path / "new/scores.csv"
  start = b"\xef\xbb\xbfimage,score,label,status\n"
  assert path.read_bytes().startswith(start)
  assert read(tmp_path / "new") == [
    {
      "image": os.path.abspath("x.png"),
      "score": "0.123457",
      "label": "normal",
      "status": "scored",
    }
  ]


@pytest.mark.parametrize(
  "error", [ValueError("d.png is corrupt"), stopping.Stopped(signal.SIGTERM)]
)
def test_a_stopped_table_has_a_row_for_every_image(tmp_path, error):
  with pytest.raises(type(error)) as caught:
    with table(tmp_path, list("abcde")) as scores:
      scores.add(row("a"))
      scores.skip("not read: b is corrupt")
      scores.add(row("c"))
      # What a kill leaves.
      assert len(read(tmp_path, score_table.PARTIAL_SCORES)) == 3
      assert not (tmp_path / "scores.csv").exists()
      raise error
  reason = {
    ValueError: "not scored: d.png is corrupt",
    stopping.Stopped: "not scored: Stopped by SIGTERM.",
  }[type(error)]
  assert [
    (r["image"], bool(r["score"]), r["status"]) for r in read(tmp_path)
  ] == [
    (os.path.abspath("a"), True, "scored"),
    (os.path.abspath("b"), False, "not read: b is corrupt"),
    (os.path.abspath("c"), True, "scored"),
    (os.path.abspath("d"), False, reason),
    (os.path.abspath("e"), False, reason),
  ]
  assert [p.name for p in tmp_path.iterdir()] == ["scores.csv"]
  assert "the scores of 2 of 5 images" in caught.value.__notes__[0]


def test_a_signal_while_a_row_is_written_loses_no_row(tmp_path, monkeypatch):
  write = score_table.ScoreTable._write

  def interrupted(self, cells):
    write(self, cells)
    if cells[0].endswith("b"):
      signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(score_table.ScoreTable, "_write", interrupted)
  with pytest.raises(stopping.Stopped), stopping.handled():
    with table(tmp_path, list("abc")) as scores:
      for name in "abc":
        scores.add(row(name))
  assert [os.path.basename(r["image"]) for r in read(tmp_path)] == list("abc")
  assert [bool(r["score"]) for r in read(tmp_path)] == [True, True, False]


def test_bytes_of_names_that_are_not_utf8_are_escaped(tmp_path):
  name = os.fsdecode(b"Stra\xdfe.png")
  with table(tmp_path, [name]) as scores:
    scores.add(row(name))
  text = (tmp_path / "scores.csv").read_text(encoding="utf-8-sig")
  assert "Stra\\udcdfe.png,0.123457" in text
