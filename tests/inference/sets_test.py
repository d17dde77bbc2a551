"""Sets of images: blocks, padding, evaluation, detection and refusals."""

import dataclasses
import pathlib
from types import SimpleNamespace
from typing import Any

import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import musc as config_lib
from zsad_jax.datasets import index, references
from zsad_jax.evaluation import evaluator, results, transductive
from zsad_jax.inference import predictor, sets
from zsad_jax.inference.tiling import Tiling
from zsad_jax.methods import clip, musc
from zsad_jax.runs import detector, run, set_scores, threshold
from zsad_jax.runtime import distributed

METHOD = musc.Method(feature_layers=(2, 3), neighborhoods=(1, 3))
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 32, 32, 3), np.uint8)
LIMITS = threshold.Threshold(0.5, 0.0, 1.0, "a test")


@pytest.fixture(scope="module")
def model(small_clip):
  """Compiled functions for one class."""
  mesh = distributed.make_mesh()
  return predictor.Predictor(METHOD, small_clip, ["bolt"], mesh)


def predictions(model, pixels, batch_size):
  """Return maps and scores of all images, read in batches."""
  batch_size = predictor.round_up(batch_size)
  images = sets.ImageSet(model, METHOD, distributed.make_mesh())
  for first in range(0, len(pixels), batch_size):
    part = pixels[first : first + batch_size]
    rows = np.zeros((batch_size, 32, 32, 3), np.uint8)
    rows[: len(part)] = part
    batch = {"image": rows, "class_id": np.zeros(batch_size, np.int32)}
    images.add(batch, np.arange(batch_size) < len(part))
  assert len(images) == len(pixels)
  found = list(images.predictions({}, {}))
  images.close()
  joined = {k: np.concatenate([x[k] for x in found]) for k in found[0]}
  joined = {k: x[images.numbers >= 0] for k, x in joined.items()}
  joined["pred_score"] = METHOD.category_scores(joined["score_terms"])
  return joined


@pytest.fixture(scope="module")
def together(model):
  """Predictions of the set, read in one batch."""
  return predictions(model, PIXELS, 7)


def test_blocks_and_order_change_no_result(model, together):
  for name, value in together.items():
    assert name == "score_terms" or (value >= 0).all() and (value <= 1).all()
  order = np.array([3, 6, 0, 5, 2, 1, 4])
  for pixels, expected in (
    (PIXELS, together),
    (PIXELS[order], {k: x[order] for k, x in together.items()}),
  ):
    found = predictions(model, pixels, 3)
    for name, value in found.items():
      np.testing.assert_allclose(value, expected[name], atol=2e-6, err_msg=name)


def test_every_image_counts(model, together):
  """Without one image, the maps of the others change."""
  found = predictions(model, PIXELS[:6], 3)
  difference = np.abs(found["anomaly_map"] - together["anomaly_map"][:6])
  assert (difference.max(axis=(1, 2)) > 1e-4).any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """The images as files."""
  folder = tmp_path_factory.mktemp("images")
  paths = [str(folder / f"{i}.png") for i in range(7)]
  for path, pixels in zip(paths, PIXELS):
    Image.fromarray(pixels).save(path)
  return paths


@pytest.fixture(scope="module")
def trained(small_clip):
  """A run of the method."""
  config = config_lib.get_config()
  config.image_size, config.eval_batch_size = 32, 3
  none: ml_collections.ConfigDict = config.lock()
  return run.Run(
    pathlib.Path("nowhere"), none, small_clip, METHOD, {}, {}, 0, 0.0
  )


def dataset(samples):
  return index.Dataset("own", "/", ("bolt",), (), samples, has_masks=False)


def test_an_evaluation_scores_categories_together(trained, folder, together):
  samples = tuple(
    index.Sample(path, "", "bolt", "", int(i > 3))
    for i, path in enumerate(folder)
  )
  data = dataset(samples)
  evaluate = evaluator.Evaluator.from_config(
    trained.config, METHOD, trained.backbone, distributed.make_mesh()
  )
  (category,) = evaluate.categories({}, {}, data)
  np.testing.assert_allclose(
    category.pred_score, together["pred_score"], atol=2e-6
  )
  row = category.compute()
  assert (row["num_normal"], row["num_anomalous"]) == (4, 3)
  few = dataset(samples[:4])
  with pytest.raises(ValueError, match="at least 5 images .* got 4"):
    list(evaluate.categories({}, {}, few))


def test_a_detector_scores_its_images_together(trained, folder, together):
  detect = detector.Detector(trained, limits=LIMITS, batch_size=3)
  found = detect(folder)
  scores = [each.score for each in found]
  np.testing.assert_allclose(scores, together["pred_score"], atol=2e-6)
  maps = np.stack([each.raw_map for each in found])
  np.testing.assert_allclose(maps, together["anomaly_map"], atol=2e-6)
  with pytest.raises(ValueError, match="musc: .* at least 5 .* got 1"):
    detect(folder[0])


def test_unreadable_images_are_left_out_of_the_set(trained, folder, tmp_path):
  (tmp_path / "broken.png").write_bytes(b"no image")
  paths = [*folder[:3], str(tmp_path / "broken.png"), *folder[3:]]
  detect = detector.Detector(trained, limits=LIMITS, batch_size=3)
  found: list[Any] = [x for _, x in detect.stream(paths, skip_corrupt=True)]
  assert isinstance(found.pop(3), str)
  expected = [each.score for each in detect(folder)]
  scores = [each.score for each in found]
  np.testing.assert_allclose(scores, expected, atol=2e-6)
  few = [*folder[:4], str(tmp_path / "broken.png")]
  with pytest.raises(ValueError, match="at least 5 .* got 4"):
    list(detect.stream(few, skip_corrupt=True))


def test_what_needs_single_images_is_refused(trained, folder):
  tiles = Tiling(16, 0.0)
  detect = detector.Detector(trained, limits=LIMITS)
  for refused, message in (
    (lambda: detect.with_references(folder), "not with references"),
    (lambda: detector.Detector(trained, tiling=tiles), "leave out --tile"),
    (
      lambda: set_scores.check_single_images(trained, "zsad x"),
      "^zsad x: musc",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      refused()
  given = references.References({"bolt": ("a.png",)}, 1, 10)
  for choices, tiling, message in (
    ((given,), None, "leave out --shots"),
    ((references.NONE,), tiles, "leave out --tile"),
  ):
    with pytest.raises(ValueError, match=message):
      transductive.check(METHOD, "musc", choices, tiling)


def test_the_note_on_the_threshold(trained):
  assert "scores depend on the set" in set_scores.training_note(trained)
  single = dataclasses.replace(trained, method=clip.Method())
  assert set_scores.training_note(single) == threshold.TRAINING_NOTE


def test_results_are_marked():
  (note,) = transductive.notes(METHOD, references.NONE)
  assert note.startswith("transductive: ")
  assert transductive.without(METHOD) is METHOD
  given = dict(method="musc", references=references.NONE)
  group = lambda **more: results.Result.group.fget(  # pyright: ignore
    SimpleNamespace(**given, **more)
  )
  assert group(transductive=True).startswith("musc (transductive), ")
  assert group(transductive=False).startswith("musc, ")
