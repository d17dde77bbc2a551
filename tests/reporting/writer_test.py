"""Files of an evaluation: complete, partial after a stop, of other data."""

import csv
import json
from unittest import mock

import numpy as np
import pytest

from tests.helpers import small_run
from zsad_jax.datasets import layouts, naming, references
from zsad_jax.evaluation import paper_results, results
from zsad_jax.evaluation.category import CategoryResult
from zsad_jax.evaluation.protocol import Protocol
from zsad_jax.metrics import accumulators
from zsad_jax.reporting import report, writer
from zsad_jax.runs import run as run_lib


@pytest.fixture
def evaluation(tmp_path):
  """Returns a writer for a data set of two classes, and its categories."""
  small_run.write_mvtec(tmp_path / "site1/parts")
  dataset = layouts.read_mvtec(tmp_path / "site1/parts")
  config = small_run.get_anomalyclip_config(str(tmp_path / "site2/parts"))
  workdir = tmp_path / "runs/x"
  run = mock.Mock(spec=run_lib.Run, config=config, workdir=workdir, step=4)
  place = naming.place(dataset.root)
  names = naming.names([place, *writer.trained_on(config)])
  protocol = Protocol.from_config(config, test_data=(dataset.root,))
  made = writer.Writer(run, dataset, tmp_path / "out", place, protocol, names)
  return made, [category(dataset, name) for name in dataset.class_names]


def category(dataset, name):
  samples = [s for s in dataset.test if s.class_name == name]
  found = CategoryResult(
    name,
    references.NONE,
    samples,
    variant=accumulators.variant("streamed"),
    num_examples=1,
  )
  maps = np.random.default_rng(0).random((len(samples), 32, 32))
  maps = maps.astype(np.float32)
  known = np.ones(len(samples), bool)
  # The last image could not be read.
  kept = np.arange(len(samples) - 1)
  score = maps.max(axis=(1, 2))
  found.update(kept, maps[kept] > 0.9, known[kept], maps[kept], score[kept])
  return found


def result_of(made, categories):
  rows = {c.name: c.compute() for c in categories}
  return made._interim(references.NONE, rows)


def read(path):
  with path.open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def test_a_stopped_evaluation_keeps_what_is_done(evaluation, tmp_path, caplog):
  made, categories = evaluation
  folder = tmp_path / "out/site1/parts"
  folder.mkdir(parents=True)
  (folder / "results.csv").write_text("of an earlier evaluation")
  made.add_category(categories[0])
  with caplog.at_level("INFO"):
    made.stopped()
  assert "1 of 2 categories of site1/parts" in caplog.text
  assert (folder / "results.csv").read_text() == "of an earlier evaluation"
  partial = folder / "partial"
  (row, mean) = read(partial / "results.csv")
  assert row["partial"] == mean["partial"] == "1 of 2 categories are done"
  assert "PARTIAL" in (partial / "results.md").read_text()
  assert json.loads((partial / "results.json").read_text())["partial"]
  assert len(read(partial / "scores.csv")) == 8
  assert not [*folder.glob("*.png")] and (partial / "bolt.png").is_file()


def test_a_complete_evaluation_has_every_image(evaluation, tmp_path):
  made, categories = evaluation
  for each in categories:
    made.add_category(each)
  reports = made.write([result_of(made, categories)])
  folder = tmp_path / "out/site1/parts"
  assert not (folder / "partial").exists()
  assert {p.name for p in folder.glob("*.png")} == {"bolt.png", "nut.png"}
  scores = read(folder / "scores.csv")
  assert [*scores[0]] == [*writer.SCORE_COLUMNS]
  assert len(scores) == 16
  for each in categories:
    of_class = [r for r in scores if r["class"] == each.name]
    expected = dict(zip(each.samples, each.pred_score))
    assert [bool(r["score"]) for r in of_class] == [True] * 7 + [False]
    for row, sample in zip(of_class, each.listed):
      assert sample.image_path.endswith(f"/site1/parts/{row['path']}")
      assert row["label"] == str(sample.label)
      if sample in expected:
        assert np.float32(row["score"]) == expected[sample]
  # The first columns are as before; facts follow.
  row = read(folder / "results.csv")[0]
  assert row["backbone"] == "embedded_random" and row["image_size"] == "32"
  assert "trained on site2/parts; tested on site1/parts" in row["protocol"]
  assert "random weights" in row["backbone_note"] and "partial" not in row
  document = json.loads((folder / "results.json").read_text())
  assert document["dataset"]["name"] == "site1/parts"
  assert document["config"]["train_data"] == ["site2/parts"]
  captions = [c for c, _ in reports[0].details["nut"].examples]
  assert any("nut/test/bright/" in caption for caption in captions)
  for path in (tmp_path / "out").rglob("*.*"):
    if path.suffix != ".png":
      assert str(tmp_path) not in path.read_text(), path
  report.summarize(reports, tmp_path / "out", paper_results.Tables(()))
  (line,) = read(tmp_path / "out/site1/parts_summary.csv")
  assert line["backbone"] == "embedded_random" and line["repetitions"] == "1"
  summary = (tmp_path / "out/site1/parts_summary.md").read_text()
  assert "Backbone embedded_random, 32 px" in summary[: summary.index("|")]


def test_results_of_another_data_set_are_not_replaced(evaluation, tmp_path):
  made, categories = evaluation
  made.add_category(categories[0])
  made.write([result_of(made, categories[:1])])
  output, name = tmp_path / "out/site1", "parts"
  same = naming.place(str(tmp_path / "site1/parts"))
  assert writer.is_free(output, name, same)
  assert not writer.is_free(output, name, naming.Place("", "/d/site3/parts"))
  assert writer.is_free(output, "other", naming.Place("", "/d/other"))


def test_without_a_category_nothing_is_written(evaluation, tmp_path):
  made, _ = evaluation
  made.stopped()
  assert not (tmp_path / "out").exists()
  assert results.Setting("x", 1, 0.0, "last", None, 0).note == ""
