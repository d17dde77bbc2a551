"""Few-shot detection from training to prediction, on two small classes."""

import csv
import dataclasses
import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from absl import flags
from PIL import Image
from scipy import ndimage

from tests.commands.train_test import how
from tests.helpers import small_run
from tests.helpers.definer import Definer
from zsad_jax import calibrate, evaluate, predict, train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.datasets import preprocess, references
from zsad_jax.evaluation import calibration, paper_results, results
from zsad_jax.inference import tiling
from zsad_jax.metrics import exact
from zsad_jax.reporting import report, tables
from zsad_jax.runs import calibrations, ensemble_detector
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "parts"
  small_run.write_mvtec(folder)
  return folder


def trained(config, workdir):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
    train.train(config.lock(), workdir)
    run = run_lib.load(workdir)
  calibration.store(run)
  return run


@pytest.fixture(scope="module")
def native(folder, tmp_path_factory):
  """AdaptCLIP, which is trained with references."""
  config = small_run.get_adaptclip_config(str(folder))
  return trained(config, tmp_path_factory.mktemp("adaptclip"))


@pytest.fixture(scope="module")
def plus(folder, tmp_path_factory):
  """AnomalyCLIP, which gets a memory bank."""
  config = small_run.get_anomalyclip_config(str(folder))
  config.epochs = 1
  return trained(config, tmp_path_factory.mktemp("anomalyclip"))


@pytest.fixture(params=[pytest.param("native", marks=pytest.mark.slow), "plus"])
def run(request):
  return request.getfixturevalue(request.param)


def rows(path):
  with path.open(newline="", encoding="utf-8-sig") as file:
    return list(csv.DictReader(file))


def test_zero_and_few_shot_in_one_evaluation(run, folder, tmp_path, capsys):
  choose = evaluate.chooser([2, 1], [10, 20], None)
  reports = evaluate.evaluate_and_write(
    run, str(folder), tmp_path, how(run), choose=choose
  )
  results = [r.result for r in reports]
  labels = [r.references.label for r in results]
  assert labels == ["0-shot"] + [
    f"{k}-shot_seed{seed}" for k in (1, 2) for seed in (10, 20)
  ]
  kept = json.loads((tmp_path / "parts/2-shot_seed20/results.json").read_text())
  assert kept["references"]["seed"] == 20
  chosen = kept["references"]["images"]["nut"]
  where = sorted((folder / "nut/train/good").iterdir())
  assert chosen == [
    f"nut/train/good/{where[i].name}" for i in references.indices(5, 2, 20)
  ]
  with_references = rows(tmp_path / "parts/2-shot_seed20/results.csv")
  assert with_references[1]["category"] == "nut"
  assert with_references[1]["references"] == "; ".join(chosen)
  scores = rows(tmp_path / "parts/scores.csv")
  assert len(scores) == 5 * 16 and {r["split"] for r in scores} == {"test"}
  assert {(r["shots"], r["seed"]) for r in scores} == {
    ("0", ""),
    *((k, s) for k in "12" for s in ("10", "20")),
  }
  assert all((folder / r["path"]).is_file() for r in scores)
  alone = evaluate.evaluate_and_write(
    run, str(folder), tmp_path / "alone", how(run)
  )
  # Zero-shot results do not depend on the few-shot ones.
  for name, row in alone[0].result.rows.items():
    for metric, value in row.items():
      np.testing.assert_allclose(results[0].rows[name][metric], value)
  report.summarize(reports, tmp_path, paper_results.Tables(()))
  out = capsys.readouterr().out
  assert "2-shot" in out and "±" in out
  lines = rows(tmp_path / "parts_summary.csv")
  assert [line["repetitions"] for line in lines] == ["1", "2", "2"]
  means = [tables.mean_row(r.rows)[0]["image_auroc"] for r in results[3:]]
  np.testing.assert_allclose(float(lines[2]["image_auroc"]), np.mean(means))
  np.testing.assert_allclose(
    float(lines[2]["image_auroc_std"]), np.std(means, ddof=1)
  )


def test_prediction_with_references(run, folder, tmp_path, capsys):
  tested = [str(folder / "nut/test")]
  normal = folder / "nut/train/good"
  predict.predict(run, tested, tmp_path / "zero")
  few = tmp_path / "few"
  predict.predict(run, tested, few, reference_paths=[str(normal)])
  zero, both = rows(tmp_path / "zero/scores.csv"), rows(few / "scores.csv")
  for a, b in zip(zero, both):
    np.testing.assert_allclose(
      float(a["score"]), float(b["zero_shot_score"]), atol=1e-5
    )
    assert a["score"] != b["score"]
  listed = json.loads((few / "references.json").read_text())
  assert listed == {"object": sorted(map(str, normal.iterdir()))}
  assert "5 references" in capsys.readouterr().out
  # One fewer, without training anything: other scores.
  one = [str(normal / "0.png")]
  predict.predict(run, tested, tmp_path / "one", reference_paths=one)
  fewer = rows(tmp_path / "one/scores.csv")
  assert [r["score"] for r in fewer] != [r["score"] for r in both]


def test_a_corrupt_reference_is_named(plus, folder, tmp_path):
  bad = tmp_path / "bad.png"
  bad.write_bytes((folder / "nut/train/good/0.png").read_bytes()[:200])
  tested = [str(folder / "nut/test/good/0.png")]
  with pytest.raises(ValueError, match="bad.png: cannot be read"):
    predict.predict(plus, tested, tmp_path, reference_paths=[str(bad)])


def test_missing_references_are_an_error(folder, tmp_path):
  config = small_run.get_adaptclip_config(str(folder))
  config.method.update(visual=False, textual=False)
  config.epochs = 0
  run = trained(config, tmp_path / "run")
  tested = [str(folder / "nut/test/good/0.png")]
  with pytest.raises(ValueError, match="needs references"):
    predict.predict(run, tested, tmp_path)
  (found,) = evaluate.evaluate_and_write(run, str(folder), tmp_path, how(run))
  assert found.result.references.label == "1-shot_seed10"


def test_training_images_are_needed_to_learn_a_comparison(tmp_path):
  small_run.write_images(tmp_path / "cells")
  config = small_run.get_adaptclip_config(str(tmp_path / "cells"))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
    with pytest.raises(ValueError, match="no normal training image"):
      train.train(config.lock(), tmp_path / "run")


def test_mistakes_are_named(plus, folder, tmp_path):
  with pytest.raises(ValueError, match="not both"):
    evaluate.chooser([1], [10], "x")
  choose = evaluate.chooser([], [10], "nowhere")
  with pytest.raises(FileNotFoundError, match="nowhere is neither"):
    evaluate.evaluate_and_write(
      plus, str(folder), tmp_path, how(plus), choose=choose
    )
  assert not list(tmp_path.iterdir())


def test_reference_images_can_be_of_any_size(plus, folder, tmp_path):
  file = tmp_path / "large.png"
  Image.open(folder / "nut/train/good/0.png").resize((99, 70)).save(file)
  tested = [str(folder / "nut/test/good/0.png")]
  predict.predict(plus, tested, tmp_path, reference_paths=[str(file)])
  assert len(rows(tmp_path / "scores.csv")) == 1


# ---- Reports and thresholds of such runs.


def command(options, plus, folder, monkeypatch, output, load=None):
  """`python -m zsad_jax.evaluate`, in this process."""
  monkeypatch.setattr(run_lib, "load", load or (lambda workdir: plus))
  known = flags.FlagValues()
  for module in (evaluate, tiling):
    monkeypatch.setattr(module, "flags", Definer(known))
  evaluate.define_flags()
  known(
    [
      "evaluate",
      f"--workdir={plus.workdir}",
      f"--data={folder}",
      f"--output={output}",
      *options,
    ]
  )
  return evaluate.main(known)


REFUSED = {
  "--shots=9": "9 references of 'bolt'",
  "--shots=1 --references=x": "not both",
  "--seeds=1": "give --shots",
  "--official_references": "give --shots",
  "--shots=1 --seeds=": "--seeds is empty",
  "--check=-1": "--check is a number of at least 0",
  "--check=nan": "--check is a number of at least 0",
  "--check=1": "no paper has a number",
  "--variant=best": "no variant",
  "--paper_results=nowhere": "has no tables",
  "--references=nowhere": "nowhere is neither",
  "--data=nowhere": "nowhere",
}


@pytest.mark.parametrize("options, message", REFUSED.items())
def test_mistakes_are_refused_before_weights_are_loaded(
  plus, folder, tmp_path, monkeypatch, options, message
):
  def load(workdir):
    pytest.fail("Weights were loaded.")

  with pytest.raises((ValueError, FileNotFoundError), match=message):
    command(
      options.split(), plus, folder, monkeypatch, tmp_path / "out", load=load
    )
  assert not (tmp_path / "out").exists()


def planted(folder, value):
  """Writes a table that prints this image AUROC for the run."""
  folder.mkdir()
  (folder / "paper.csv").write_text(
    "table,caption,method,shots,train_protocol,dataset,category,level,"
    "metric,value,std,notes\n"
    f"Table 1,x,AnomalyCLIP,0,,parts,mean,image,AUROC,{value},,\n"
  )
  return f"--paper_results={folder}"


def test_check_names_what_differs(plus, folder, tmp_path, monkeypatch, capsys):
  paper = planted(tmp_path / "wrong", 12.5)
  key = ("anomalyclip", "parts")
  monkeypatch.setattr(results, "paper_key", lambda *_, **__: key)
  check = lambda *options: command(
    options, plus, folder, monkeypatch, tmp_path / "out"
  )
  assert check(paper, "--check=2") == 1
  out = capsys.readouterr().out
  assert "1 means compared with the papers', 1 differ" in out
  line = out.strip().splitlines()[-1]
  assert "anomalyclip, 0-shot, parts, image_auroc" in line and "12.5" in line
  (ours,) = rows(tmp_path / "out/parts_summary.csv")
  assert ours["image_auroc_published"] == "0.125"
  summary = json.loads((tmp_path / "out/parts_summary.json").read_text())
  (group,) = summary["groups"].values()
  assert group["published"] == {"image_auroc": 0.125}
  assert {"versions", "device", "commit"} <= summary.keys()
  paper = planted(tmp_path / "right", 100 * float(ours["image_auroc"]))
  assert check(paper, "--check=0.1") == 0
  with pytest.raises(ValueError, match="no paper has a number"):
    check("--check=2")
  trained_on = plus.workdir / "config.json"
  text = trained_on.read_text()
  trained_on.write_text(
    text.replace('"allow_trained": true', '"allow_trained": false')
  )
  with pytest.raises(ValueError, match="was trained on"):
    check()
  trained_on.write_text(text)


def test_the_page_is_self_contained(plus, folder, tmp_path, monkeypatch):
  command(["--shots=1"], plus, folder, monkeypatch, tmp_path)
  text = (tmp_path / "report.html").read_text()
  ElementTree.fromstring(text.removeprefix("<!doctype html>"))
  assert "http" not in text and "<script" not in text
  for part in (
    "anomalyclip, 0-shot",
    "anomalyclip, 1-shot",
    "bolt",
    "nut",
    "<svg",
    "data:image/jpeg;base64,",
    "was trained on",
    "nut/train/good/",  # References.
    "random weights",
  ):
    assert part in text
  # No report has a path of this machine.
  for path in tmp_path.rglob("*.*"):
    if path.suffix in (".csv", ".md", ".json", ".html"):
      content = path.read_text()
      for absolute in (folder, folder.parent, plus.workdir, tmp_path):
        assert str(absolute) not in content, (path, absolute)
  assert not list(tmp_path.rglob("partial"))
  exact = command(["--variant=exact"], plus, folder, monkeypatch, tmp_path)
  assert exact == 0


def test_a_threshold_from_normal_images(plus, folder, tmp_path, capsys):
  run = dataclasses.replace(plus, workdir=tmp_path)
  normal = [str(folder / "nut/train/good"), str(folder / "bolt/train/good")]
  stored = calibrate.calibrate(run, normal, rate=0.1)
  assert stored == threshold_lib.read(tmp_path)
  assert "from 10 normal images" in stored.source
  assert "warning" not in capsys.readouterr().out
  predict.predict(run, normal, tmp_path / "out")
  labels = [row["label"] for row in rows(tmp_path / "out/scores.csv")]
  assert labels.count("anomalous") == 0  # Above the largest of ten.
  calibrate.calibrate(run, normal, rate=0.01)
  assert "Give at least 99" in capsys.readouterr().out
  both = calibrate.calibrate(
    run,
    normal,
    rate=0.1,
    anomalous=[str(folder / "nut/test/bright")],
    reference_paths=[str(folder / "nut/test/good")],
  )
  assert "best F1 on 10 normal and 4 anomalous" in both.source
  assert both == threshold_lib.read(tmp_path, few_shot=True)


def test_the_pixel_threshold_of_a_run_has_the_best_f1(plus, folder):
  """Over the maps of all auxiliary images, smoothed at the model's size."""
  detector = ensemble_detector.make_detector(plus)
  truth, maps = [], []
  for sample in run_lib.open_dataset(plus.config, str(folder)).test:
    found = detector(sample.image_path)
    maps.append(ndimage.gaussian_filter(found.raw_map, found.smooth_sigma))
    truth.append(preprocess.load_pair(sample, len(maps[-1]))[1])
  label, value = np.stack(truth).ravel() > 0, np.stack(maps).ravel()
  best, _ = exact.f1_max(label.astype(int), value)
  flagged = value >= (threshold_lib.read(plus.workdir).pixel or 0)
  f1 = 2 * (flagged & label).sum() / (flagged.sum() + label.sum())
  assert 0 < f1 == pytest.approx(best, abs=0.01)


def test_a_named_calibration_scores_as_its_detector(plus, folder, tmp_path):
  run = dataclasses.replace(plus, workdir=tmp_path)
  normal = sorted(map(str, (folder / "nut/train/good").iterdir()))
  copies = tmp_path / "copies"
  shutil.copytree(folder / "nut/train/good", copies)
  image = str(folder / "nut/test/bright/0.png")
  stored = calibrate.calibrate(
    run,
    normal[2:],
    rate=0.3,
    reference_paths=[str(copies / "0.png"), str(copies / "1.png")],
    product=calibrate.Product("nut", tiling=tiling.Tiling(30, 0.5)),
  )
  shutil.rmtree(copies)
  expected = ensemble_detector.make_detector(
    run, tiling=tiling.Tiling(30, 0.5), limits=stored
  ).with_references(normal[:2])(image)
  named = calibrations.read(run.workdir, "nut")
  found = ensemble_detector.from_calibration(run, named)(image)
  np.testing.assert_array_equal(found.raw_map, expected.raw_map)
  assert (found.score, found.limits) == (expected.score, stored)
  assert found.normal_percentile == 100 * np.mean(
    np.array(stored.normal_scores) < found.score
  )
  assert not (tmp_path / threshold_lib.FEW_SHOT_FILE).exists()


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_new_normal_images_keep_the_false_positive_rate(rate):
  rng = np.random.default_rng(5)
  repetitions, fresh, flagged = 200, 1000, 0
  for _ in range(repetitions):
    score = rng.gamma(2.0, size=int(rng.integers(100, 400)))
    limit, warning = calibration.normal_threshold(score, rate)
    assert not warning
    flagged += (rng.gamma(2.0, size=fresh) >= limit).sum()
  # The expected rate is at most `rate`; three deviations of its mean, of the
  # order statistics and of the binomial counts.
  deviation = np.sqrt(rate * (1 - rate) * (1 / 100 + 1 / fresh) / repetitions)
  assert flagged / (repetitions * fresh) < rate + 3 * deviation


def test_scores_without_a_threshold_are_refused():
  for rate in (0.0, 1.0):
    with pytest.raises(ValueError, match="rate of false alarms"):
      calibration.normal_threshold(np.arange(9.0), rate)
  with pytest.raises(ValueError, match="NaN"):
    calibration.normal_threshold(np.array([1.0, np.nan]), 0.1)
  tied, _ = calibration.normal_threshold(np.zeros(99), 0.1)
  assert tied > 0  # All-equal scores are all normal.
