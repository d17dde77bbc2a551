"""Parameters per category and image scores alone, from training to commands."""

import json
import pathlib

import jax
import numpy as np
import pytest

from tests.helpers import small_run
from zsad_jax import calibrate, predict, train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.datasets import references
from zsad_jax.evaluation import calibration, protocol, results
from zsad_jax.reporting import result_files, writer
from zsad_jax.runs import categories, ensemble, exporting, logger, threshold
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import config_files, stopping
from zsad_jax.training import per_category

NAMES = ("bolt", "nut")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "goods"
  small_run.write_mvtec(folder)
  return str(folder)


def small_config(data, variant="cls"):
  config = config_files.load(f"promptad:{variant}").unlock()
  config.method.update(context_length=2, feature_layers=(1,), score_side=40)
  config = small_run._shrink(config, data)
  config.epochs, config.batch_size, config.allow_trained = 4, 400, False
  config.optax.learning_rate = 0.1
  return config


@pytest.fixture(autouse=True)
def backbone(monkeypatch):
  monkeypatch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)


def lines(workdir):
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line) for line in text.splitlines()]


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_category_without_parameters_is_named(tmp_path):
  known = categories.Categories(NAMES, NAMES, (("a.png",), ("b.png",)))
  known.write(tmp_path)
  assert categories.read(tmp_path) == known and known.index("nut") == 1
  with pytest.raises(ValueError, match="category 'gear': it was .* bolt, nut"):
    known.index("gear")
  (tmp_path / categories.FILE).write_text('{"names": ["bolt"]}')
  with pytest.raises(ValueError, match="json is corrupt"):
    categories.read(tmp_path)


def test_settings_that_do_not_go_together_are_refused(data):
  config = small_config(data)
  method = run_lib.make_method("promptad", config.method.to_dict())
  per_category.check(config, method)
  protocol.check_names(config)  # Its own categories may be tested.
  config.selection = "official"
  with pytest.raises(ValueError, match='selection is "last"'):
    per_category.check(config, method)
  config.per_category = False
  with pytest.raises(ValueError, match="per_category has to be True"):
    per_category.check(config, method)
  config.per_category, config.references.shots = True, 9
  dataset = run_lib.open_dataset(config, data)
  with pytest.raises(ValueError, match="9 references of 'bolt'"):
    per_category.plan(config, [dataset])


def test_the_plan_learns_from_the_references_alone(data):
  config = small_config(data)
  dataset = run_lib.open_dataset(config, data)
  plan = per_category.plan(config, [dataset])
  assert plan is not None and plan.names == NAMES and plan.steps == 4
  drawn = references.sample(dataset, shots=2, seed=10)
  for part in plan.datasets:
    paths = tuple(sample.image_path for sample in part.test)
    assert paths == drawn.images[part.class_names[0]]
  named = plan.named(4, {"loss": 1.0}), plan.named(5, {"loss": 2.0})
  assert named == (
    {"loss": 1.0, "loss/bolt": 1.0},
    {"loss": 2.0, "loss/nut": 2.0},
  )


def test_maps_of_image_scores_alone_are_refused():
  limits = threshold.Threshold(0.5, 0.0, 1.0, source="", pixel=None)
  choose = lambda names: result_files.choose(names, limits, image_only=True)
  assert choose(None) == choose(["scores"]) == {"scores"}
  with pytest.raises(ValueError, match="--save=masks: .* image scores only"):
    choose(["scores", "masks"])


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
  """The workdir of a run of two categories, four steps each."""
  workdir = tmp_path_factory.mktemp("run") / "cls"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
    progress, rows = logger.Writer.progress, []

    def recorded(self, step, loss, batch_size):
      rows.append(batch_size)
      return progress(self, step, loss, batch_size)

    patch.setattr(logger.Writer, "progress", recorded)
    assert train.train(small_config(data).lock(), workdir)
  assert set(rows) == {2}  # The references, not config.batch_size.
  return workdir


@pytest.mark.slow
def test_stopped_within_a_category_and_resumed_is_the_same_run(
  data, trained, tmp_path, monkeypatch
):
  config = small_config(data)
  for steps in (2, 4):  # Within the first category, and within the second.
    monkeypatch.setattr(
      stopping, "Deferred", lambda steps=steps: small_run.StopAfter(steps)
    )
    assert not train.train(config.copy_and_resolve_references(), tmp_path)
  monkeypatch.setattr(stopping, "Deferred", small_run.StopAfter)
  assert train.train(config, tmp_path)
  runs = [run_lib.load(workdir) for workdir in (trained, tmp_path)]
  equal(*((run.params, run.stats) for run in runs))
  values = [[line["loss"] for line in lines(w)] for w in (trained, tmp_path)]
  assert values[0] == values[1] and len(values[0]) == 8
  found = lines(trained)
  assert all("loss/bolt" in line for line in found[:4])
  assert all("loss/nut" in line for line in found[4:])


@pytest.mark.slow
def test_each_category_is_trained_as_if_alone(data, trained, tmp_path):
  """The second category begins anew: parameters, optimizer, learning rate."""
  run = run_lib.load(trained)
  assert run.num_trained == 2 * (3 * 2 + 4) * 64
  folder = tmp_path / "nut_alone"
  folder.mkdir()
  (folder / "nut").symlink_to(pathlib.Path(data) / "nut")
  config = small_config(str(folder))
  assert train.train(config.lock(), tmp_path / "alone")
  alone = run_lib.load(tmp_path / "alone").of_category("nut")
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
  own = run.of_category("nut")
  jax.tree.map(close, own.params, alone.params)
  jax.tree.map(close, own.stats, alone.stats)
  moved = (
    own.params["normal_context"]
    - run.of_category("bolt").params["normal_context"]
  )
  assert np.abs(np.asarray(moved)).max() > 1e-4


@pytest.mark.slow
def test_commands_use_the_parameters_of_the_category(
  data, trained, tmp_path, capsys
):
  run = run_lib.load(trained)
  calibration.store(run)
  assert "has no threshold" in capsys.readouterr().out
  assert not list(trained.glob("threshold*"))
  how = protocol.Protocol.from_config(run.config)
  (report,) = writer.evaluate(run, data, tmp_path / "evaluation", how)
  result = report.result
  assert result.references.label == "2-shot_seed10"
  for row in result.rows.values():
    assert np.isfinite(row["image_auroc"]) and np.isnan(row["pixel_auroc"])
  text = next((tmp_path / "evaluation").rglob("results.md")).read_text()
  assert "n/a" in text
  assert not list((tmp_path / "evaluation").rglob("*.png"))

  # A detector has the scores of the evaluation.
  dataset = run_lib.open_dataset(run.config, data)
  paths = [s.image_path for s in dataset.test if s.class_name == "nut"][:2]
  detector = detector_lib.Detector(run, class_name="nut", threshold=0.5)
  scores = [found.score for found in detector(paths)]
  table = next((tmp_path / "evaluation").rglob("scores.csv")).read_text()
  stored = [
    x.split(",") for x in table.splitlines() if "/nut/" in x or "nut" in x
  ]
  expected = [float(x[3]) for x in stored[:2]]
  np.testing.assert_allclose(scores, expected, rtol=1e-4)
  with pytest.raises(ValueError, match="image scores only"):
    _ = detector(paths[0]).anomaly_map
  with pytest.raises(ValueError, match="no parameters for the category 'obj"):
    detector_lib.Detector(run, threshold=0.5)
  with pytest.raises(ValueError, match="trained on: leave out --references"):
    detector.with_references(paths)
  with pytest.raises(ValueError, match="image scores only, and a program"):
    exporting.make_program(detector)
  with pytest.raises(ValueError, match="parameters per category"):
    ensemble.write(tmp_path / "both", [str(trained)])
  with pytest.raises(ValueError, match="references that each category"):
    choice = references.sample(dataset, shots=1, seed=10)
    results.evaluate_run(run, dataset, how, choices=[choice])

  # A calibration per category.
  good = [str(p) for p in pathlib.Path(data, "nut/train/good").iterdir()]
  with pytest.raises(ValueError, match="--name and --class_name"):
    calibrate.calibrate(run, good, rate=0.2, class_name="nut")
  product = calibrate.Product("line")
  found = calibrate.calibrate(
    run, good, rate=0.3, class_name="nut", product=product
  )
  assert found.pixel is None
  output = tmp_path / "results"
  predict.predict(run, paths, output, calibration="line")
  assert [p.name for p in output.iterdir()] == ["scores.csv"]
  with pytest.raises(ValueError, match="--save=maps"):
    predict.predict(run, paths, output, calibration="line", save=["maps"])


@pytest.mark.slow
def test_evaluation_names_a_category_without_parameters(trained, tmp_path):
  small_run.write_mvtec(tmp_path / "other", classes=("gear",))
  run = run_lib.load(trained)
  how = protocol.Protocol.from_config(run.config)
  with pytest.raises(ValueError, match="the category 'gear'"):
    writer.evaluate(run, str(tmp_path / "other"), tmp_path / "out", how)


@pytest.mark.slow
def test_image_scores_alone_are_calibrated_evaluated_and_predicted(
  data, tmp_path
):
  """InCTRL: trained on auxiliary images, always with references."""
  config = config_files.load("inctrl").unlock()
  config.method.update(feature_layers=(1, 2), grid=4, head_widths=(8, 4))
  config = small_run._shrink(config, data)
  assert train.train(config.lock(), tmp_path / "run")
  run, _ = train.calibrated(tmp_path / "run")
  how = protocol.Protocol.from_config(run.config, allow_trained=True)
  (report,) = writer.evaluate(run, data, tmp_path / "evaluation", how)
  assert report.result.references.label == "1-shot_seed10"
  for row in report.result.rows.values():
    assert np.isfinite(row["image_auroc"]) and np.isnan(row["pixel_auroc"])
  assert not list((tmp_path / "evaluation").rglob("*.png"))
  good = [str(p) for p in pathlib.Path(data, "nut/train/good").iterdir()]
  dataset = run_lib.open_dataset(run.config, data)
  paths = [s.image_path for s in dataset.test if s.class_name == "nut"][:2]
  with pytest.raises(ValueError, match="needs references"):
    predict.predict(run, paths, tmp_path / "out")
  with pytest.raises(ValueError, match="--save=masks"):
    predict.predict(
      run, paths, tmp_path / "out", reference_paths=good, save=["masks"]
    )
  predict.predict(run, paths, tmp_path / "out", reference_paths=good)
  names = {p.name for p in (tmp_path / "out").iterdir()}
  assert names == {"scores.csv", "references.json"}
