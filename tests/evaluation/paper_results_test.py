"""The papers' numbers: read, found, compared; protocols that are refused."""

import csv
import dataclasses
import shutil

import pytest

from tests.helpers import small_run
from zsad_jax.datasets import index, registry
from zsad_jax.datasets.references import NONE, References
from zsad_jax.evaluation import paper_results
from zsad_jax.evaluation.protocol import Protocol, check_names

COLUMNS = (
  "table",
  "caption",
  "method",
  "shots",
  "train_protocol",
  "dataset",
  "category",
  "level",
  "metric",
  "value",
  "std",
  "notes",
)
ROW = dict(
  table="Table 1",
  caption="x",
  method="AdaCLIP",
  shots="0",
  train_protocol="",
  dataset="VisA",
  category="mean",
  level="image",
  metric="AUROC",
  value="85.8",
  std="",
  notes="",
)


def write(folder, *rows, name="adaclip"):
  with (folder / f"{name}.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows({**ROW, **row} for row in rows)
  return paper_results.Tables(paper_results.read(folder))


@pytest.fixture(scope="module")
def papers():
  return paper_results.Tables(paper_results.read())


def find(tables, name, **what):
  defaults = dict(dataset="visa", shots=0, metric="image_auroc")
  return tables.find(name, **{**defaults, **what})


def test_the_shipped_tables_hold_what_the_papers_print(papers):
  ours = find(papers, "adaclip_paper")
  assert (ours.paper, ours.value) == ("adaclip", 0.858)
  plus = find(papers, "anomalyclip_paper", shots=1, metric="pixel_ap")
  assert plus.method == "AnomalyCLIP+" and plus.metric == "AUPR"
  category = find(papers, "faprompt_paper", category="candle")
  assert category.paper == "faprompt" and 0 < category.value < 1
  assert find(papers, "adaclip_paper", dataset="elsewhere") is None
  ablation = find(papers, "faprompt_paper_no_dap", dataset="elpv")
  assert ablation.method == "FAPrompt [AnomalyCLIP + CAP]"


def test_the_own_paper_and_sure_readings_come_first(tmp_path):
  write(tmp_path, dict(value="70.0"), name="adaptclip")
  tables = write(
    tmp_path,
    dict(value="1.0", notes="ocr: x; doubtful: y"),
    dict(value="80.0", caption="in the AnomalyCLIP setting"),
    dict(value="81.0"),
  )
  assert find(tables, "adaclip").value == 0.81


def test_differences_are_named_and_doubtful_cells_left_out(tmp_path):
  tables = write(
    tmp_path,
    dict(value="85.8"),
    dict(metric="F1max", value="83.0", notes="doubtful: unclear"),
    dict(level="pixel", value="", notes="lost: a line"),
  )
  means = {
    ("adaclip_paper", "visa", 0): dict(
      image_auroc=0.8512,
      image_f1_max=0.5,
      pixel_auroc=0.9,
      image_ap=float("nan"),
    )
  }
  (found,) = paper_results.compare(tables, means)
  assert found.metric == "image_auroc"
  assert str(found) == (
    "adaclip_paper, 0-shot, visa, image_auroc: 85.1, adaclip Table 1 has "
    "85.8 (-0.7)"
  )


def test_a_table_of_another_form_is_named(tmp_path):
  (tmp_path / "x.csv").write_text("method,value\nAdaCLIP,81.0\n")
  with pytest.raises(ValueError, match=r"x\.csv, line 2: "):
    paper_results.read(tmp_path)
  with pytest.raises(FileNotFoundError, match="--paper_results"):
    paper_results.read(tmp_path / "none")


# ---- Protocols.


PROTOCOL = Protocol(("seen",), ("y",), "last", ())


@pytest.fixture
def seen(monkeypatch):
  """A data set, and a registry that knows it alone."""
  dataset = index.Dataset("seen", "/data/seen", (), (), (), True)
  other = dataclasses.replace(dataset, root="/data/other")
  monkeypatch.setattr(
    "zsad_jax.evaluation.protocol.registry.open_dataset",
    lambda name, data_root: {"seen": dataset}.get(name, other),
  )
  return dataset


def test_testing_on_what_was_trained_on_is_refused(seen):
  with pytest.raises(ValueError, match="seen .*was trained on.*allow_trained"):
    PROTOCOL.check(seen, None)
  allowed = dataclasses.replace(PROTOCOL, allow_trained=True)
  assert "no zero-shot" in allowed.check(seen, None)[0]
  elsewhere = dataclasses.replace(PROTOCOL, train_data=("x",))
  assert elsewhere.check(seen, None) == []


def test_official_selection_is_said_beside_the_numbers(seen):
  official = Protocol(("x",), ("y",), "official", ("seen",))
  assert "on this target set" in official.check(seen, None)[0]
  assert "checkpoint official" in official.describe()


def test_an_unknown_variant_is_refused():
  with pytest.raises(ValueError, match="no variant"):
    Protocol((), (), "last", (), variant="best")


def test_what_was_trained_on_may_be_elsewhere(seen):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("zsad_jax.evaluation.protocol.registry.open_dataset", missing)
    assert PROTOCOL.check(seen, None) == []


def missing(name, data_root):
  raise FileNotFoundError(name)


def test_files_of_a_training_set_are_not_tested_on(tmp_path):
  small_run.write_mvtec(tmp_path / "parts")
  shutil.copytree(tmp_path / "parts", tmp_path / "copy")
  (tmp_path / "link").symlink_to(tmp_path / "parts")
  how = dataclasses.replace(PROTOCOL, train_data=(str(tmp_path / "parts"),))
  for name, message in (
    ("link", "link.* was trained on"),
    ("parts/bolt", "has 8 test images of 8 that were trained on"),
  ):
    dataset = registry.open_dataset(str(tmp_path / name))
    with pytest.raises(ValueError, match=message):
      how.check(dataset, None)
    config = small_run.get_config(str(tmp_path / "parts"))
    config.test_data = (str(tmp_path / name),)
    config.allow_trained = False
    with pytest.raises(ValueError, match="config.test_data"):
      check_names(config)
  # A copy is another data set, with a note.
  (note,) = how.check(registry.open_dataset(str(tmp_path / "copy")), None)
  assert "16 of 16 test images are copies" in note


def test_the_protocol_states_the_references_that_were_used():
  some = {"nut": ("a.png",)}
  sampled = [References(some, k, seed) for k in (1, 2) for seed in (10, 20)]
  text = PROTOCOL.with_references([NONE, *sampled]).describe()
  assert "shots 0, 1, 2, seeds 10, 20;" in text
  text = PROTOCOL.with_references(sampled[:1]).describe()
  assert "shots 1, seeds 10;" in text
  given = PROTOCOL.with_references([NONE, References(some, 1)]).describe()
  assert "shots 0, given references;" in given
