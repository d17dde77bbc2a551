"""Ensembles of runs: mean of scores and maps, references, refusals."""

import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest
from absl import flags

from tests.helpers import small_run
from tests.helpers.definer import Definer
from zsad_jax import evaluate, train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.datasets import references
from zsad_jax.evaluation import ensemble as evaluation
from zsad_jax.evaluation import published
from zsad_jax.inference import ensemble as inference
from zsad_jax.inference import tiling
from zsad_jax.runs import ensemble, ensemble_detector
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import config_files

# Runs without training: temperature, image size, sigma.
MEMBERS = {"a": (0.07, 32, 1.0), "b": (0.02, 32, 1.0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Members, an ensemble of both, one of a single run, and a data set."""
  folder = tmp_path_factory.mktemp("ensembles")
  small_run.write_mvtec(folder / "parts", classes=("bolt",))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
    for name, (temperature, size, sigma) in MEMBERS.items():
      config = config_files.load("clip").unlock()
      small_run._shrink(config, str(folder / "parts"))
      config.method.update(prompts="pair", temperature=temperature)
      config.epochs, config.image_size, config.smooth_sigma = 0, size, sigma
      train.train(config.lock(), folder / name)
    yield folder


@pytest.fixture(scope="module")
def runs(folder):
  ensemble.write(folder / "one", [str(folder / "b")])
  ensemble.write(folder / "two", [str(folder / name) for name in MEMBERS])
  return {name: ensemble.load(folder / name) for name in (*MEMBERS, "two")}


def detect(run, images, normal=()):
  """Return the results for images of the class "bolt"."""
  detector = ensemble_detector.make_detector(
    run, class_name="bolt", threshold=0.5
  )
  return (detector.with_references(normal) if normal else detector)(images)


def files(folder, part):
  return sorted(map(str, (folder / "parts/bolt" / part).iterdir()))


@pytest.fixture(scope="module")
def detected(runs, folder):
  """Results of the ensemble, of a member in it, and of the other one alone."""
  images = files(folder, "test/bright")
  two, b = (detect(runs[name], images) for name in ("two", "b"))
  return {"two": two, "a": [each.members[0] for each in two], "b": b}


def test_detection_averages_the_members(detected):
  for two, a, b in zip(*(detected[name] for name in ("two", "a", "b"))):
    for name in ("score", "anomaly_map", "raw_map"):
      mean = (getattr(a, name) + getattr(b, name)) / 2
      np.testing.assert_allclose(getattr(two, name), mean, rtol=1e-6)
    assert abs(a.score - b.score) > 1e-3
    assert two.label == ("anomalous" if two.score >= 0.5 else "normal")
    assert two.members[1].score == b.score


def evaluated(run, folder, choices=(references.NONE,)):
  """Return the scores by image, for each choice of references."""
  dataset = run_lib.open_dataset(run.config, str(folder / "parts"))
  evaluator = evaluation.evaluator_of(run, few_shot=len(choices) > 1)
  return [
    dict(zip((s.image_path for s in each.samples), each.pred_score))
    for each in evaluator.categories(run.params, run.stats, dataset, choices)
  ]


def test_evaluation_averages_the_members(runs, detected, folder):
  """The evaluator and the detectors of the members are independent."""
  (scores,) = evaluated(runs["two"], folder)
  images = files(folder, "test/bright")
  for image, a, b in zip(images, detected["a"], detected["b"]):
    mean = (a.score + b.score) / 2
    np.testing.assert_allclose(scores[image], mean, rtol=1e-5)


def test_maps_of_the_members_are_averaged(runs, folder):
  """Members that return given maps, of a batch of two with padding."""
  rng, batch = np.random.default_rng(0), {"weight": np.array([1, 1, 0])}
  given = [
    {
      "anomaly_map": rng.random((3, 8, 8), np.float32),
      "pred_score": rng.random(3, np.float32),
    }
    for _ in range(2)
  ]
  evaluator = evaluation.evaluator_of(runs["two"])
  members = tuple(
    types.SimpleNamespace(
      image_size=32, predict_batches=lambda *_, x=x: ([], iter([(batch, [x])]))
    )
    for x in given
  )
  object.__setattr__(evaluator, "members", members)
  dataset = run_lib.open_dataset(runs["two"].config, str(folder / "parts"))
  state = {"01": {}, "02": {}}
  _, predicted = evaluator.predict_batches(
    (0, 0), state, state, dataset, dataset.test, [()]
  )
  ((found_batch, (mean,)),) = predicted
  assert found_batch is batch
  for name in ("anomaly_map", "pred_score"):
    np.testing.assert_array_equal(
      mean[name], (given[0][name] + given[1][name]) / 2
    )


def test_an_ensemble_of_one_is_its_run(runs, folder):
  run, alone = ensemble.load(folder / "one"), runs["b"]
  for ours, theirs in zip(
    jax.tree.leaves((run.params, run.stats, run.backbone)),
    jax.tree.leaves((alone.params, alone.stats, alone.backbone)),
  ):
    np.testing.assert_array_equal(ours, theirs)
  (member,) = evaluation.evaluator_of(run).members
  single = evaluation.evaluator_of(alone)
  for field in dataclasses.fields(single):
    if field.name not in ("backbone", "mesh"):
      assert getattr(member, field.name) == getattr(single, field.name)
  prediction = {
    "anomaly_map": np.random.default_rng(0).random((2, 4, 4), np.float32),
    "pred_score": np.random.default_rng(1).random(2, np.float32),
  }
  jax.tree.map(
    np.testing.assert_array_equal,
    inference.mean_prediction([prediction]),
    prediction,
  )


def test_maps_of_several_sizes_are_resized_to_the_largest():
  ramp = np.tile(np.arange(4, dtype=np.float32), (2, 4, 1))
  large = np.ones((2, 8, 8), np.float32)
  found = inference.mean_maps([ramp, large])
  values = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
  np.testing.assert_allclose(found[1, 3], (1 + np.array(values)) / 2, 1e-6)


@pytest.mark.slow
def test_members_may_differ_in_everything(folder, tmp_path):
  """Another method, image size and sigma; each reads images at its size."""
  config = small_run.get_anomalyclip_config(str(folder / "parts"))
  config.epochs, config.image_size, config.smooth_sigma = 0, 48, 2.0
  train.train(config.lock(), tmp_path / "large")
  ensemble.write(tmp_path / "all", [str(folder / "a"), str(tmp_path / "large")])
  images = files(folder, "test/bright")
  normal = files(folder, "train/good")[:2]
  run = ensemble.load(tmp_path / "all")
  found, small, large = (
    detect(ensemble.load(path), images, normal)
    for path in (tmp_path / "all", folder / "a", tmp_path / "large")
  )
  given = references.References({"bolt": tuple(normal)}, 2, 10)
  scores = evaluated(run, folder, (references.NONE, given))
  for image, both, a, b in zip(images, found, small, large):
    np.testing.assert_allclose(both.score, (a.score + b.score) / 2, rtol=1e-6)
    mean = (a.anomaly_map + b.anomaly_map) / 2
    np.testing.assert_allclose(both.anomaly_map, mean, atol=1e-6)
    assert both.raw_map.shape == (48, 48)
    zero_shot, few_shot = (each[image] for each in scores)
    np.testing.assert_allclose(zero_shot, both.zero_shot_score, rtol=1e-4)
    np.testing.assert_allclose(few_shot, both.score, rtol=1e-4)


def test_results_name_the_members(runs, folder, tmp_path):
  known = flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    for module in (evaluate, tiling):
      patch.setattr(module, "flags", Definer(known))
    patch.setattr(ensemble, "load", lambda workdir: runs["two"])
    evaluate.define_flags()
    members = f"{folder}/a,{folder}/b"
    given = [f"--ensemble={members}", f"--workdir={tmp_path}/new"]
    known(["evaluate", *given])
    assert evaluate.main(known) == 0
  assert ensemble.is_ensemble(tmp_path / "new")
  path = next((tmp_path / "new/evaluation").glob("*/results.json"))
  document = json.loads(path.read_text())
  assert document["method"] == "ensemble of 2: a, b"
  members = document["config"]["members"]
  assert members["02"]["method"]["temperature"] == 0.02
  assert published.paper_config(runs["two"].config) == ""
  fields = published.settings(runs["two"].config)
  assert fields["01.method.temperature"] == 0.07


def test_the_threshold_is_the_mean_of_the_members(folder, tmp_path):
  for name, score in (("a", 0.25), ("b", 0.5)):
    shutil.copytree(folder / name, tmp_path / name)
    threshold_lib.Threshold(score, 0.0, score, "").write(tmp_path / name)
  members = [str(tmp_path / name) for name in MEMBERS]
  ensemble.write(tmp_path / "two", members)
  found = threshold_lib.read(tmp_path / "two")
  assert (found.image_score, found.map_high) == (0.375, 0.375)
  threshold_lib.Threshold(0.75, 0.0, 1.0, "").write(tmp_path / "two")
  ensemble.write(tmp_path / "two", members)  # It is kept.
  assert threshold_lib.read(tmp_path / "two").image_score == 0.75
  assert not (tmp_path / "two" / threshold_lib.FEW_SHOT_FILE).exists()


def test_what_cannot_be_combined_is_refused(runs, folder, tmp_path):
  pair, states = str(folder / "b"), str(folder / "a")
  shutil.copytree(folder / "b", tmp_path / "fast")
  path = tmp_path / "fast/config.json"
  path.write_text(path.read_text().replace('"highest"', '"default"'))
  for workdir, members, message in (
    ("new", [pair, pair], "more than once"),
    ("new", [pair, str(folder / "one")], "is an ensemble itself"),
    ("new", [pair, str(tmp_path / "fast")], "matmul_precision is highest"),
    ("new", [pair, str(tmp_path / "none")], "does not exist"),
    ("new", [pair, "gs://bucket/run"], "is a URL"),
    (folder / "b", [states], "holds a run"),
    (folder / "one", [states], "is an ensemble of other runs"),
  ):
    with pytest.raises((ValueError, OSError), match=message):
      ensemble.write(tmp_path / workdir, members)
  assert not (tmp_path / "new").exists()
  ensemble.write(folder / "one", [pair])  # The same once more.
  (tmp_path / "bad").mkdir()
  (tmp_path / "bad" / ensemble.FILE).write_text('{"members": []}')
  with pytest.raises(ValueError, match="members must be a list"):
    ensemble.load(tmp_path / "bad")
  detector = ensemble_detector.make_detector(runs["two"])
  with pytest.raises(FileNotFoundError, match="zsad calibrate"):
    detector(next((folder / "parts/bolt/test/good").iterdir()))
