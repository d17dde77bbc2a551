"""Evaluation by tiles against a loop over images and tiles."""

import dataclasses
import types
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from tests.helpers.brightness import BrightnessModel
from zsad_jax.datasets import index, references
from zsad_jax.evaluation import evaluator, protocol, tiled
from zsad_jax.evaluation.ensemble import EnsembleEvaluator
from zsad_jax.inference.tiling import MapMerger, Tiling
from zsad_jax.runtime import distributed

SIDE = 16
TILING = Tiling(32)
SIZES = [(40, 64), (30, 30), (64, 40), (50, 50)]


@dataclasses.dataclass(frozen=True)
class BrightEvaluator(evaluator.Evaluator):
  """An evaluator of the model that detects bright pixels."""

  def predictor(self, dataset):
    return BrightnessModel()


@dataclasses.dataclass(frozen=True)
class BrightEnsemble(EnsembleEvaluator):
  """An ensemble, whose fields are not checked."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Return images of several sizes; the odd ones have a bright rectangle."""
  folder, rng = tmp_path_factory.mktemp("sizes"), np.random.default_rng(0)
  test, train = [], []
  for i, size in enumerate(SIZES):
    image = rng.integers(0, 200, (*size, 3)).astype(np.uint8)
    mask = np.zeros(size, np.uint8)
    if i % 2:
      mask[10:22, 5:20] = 255
      image[mask > 0] |= 128
    Image.fromarray(image).save(folder / f"{i}.png")
    Image.fromarray(mask).save(folder / f"{i}_mask.png")
    mask_path = str(folder / f"{i}_mask.png") if i % 2 else ""
    path = str(folder / f"{i}.png")
    test.append(index.Sample(path, mask_path, "bolt", "", i % 2))
  Image.fromarray(rng.integers(0, 50, (70, 40, 3)).astype(np.uint8)).save(
    folder / "train.png"
  )
  train = [index.Sample(str(folder / "train.png"), "", "bolt", "", 0)]
  return index.make_dataset("sizes", str(folder), train=train, test=test)


def make(kind: Any = BrightEvaluator, **more):
  settings = {
    "method": types.SimpleNamespace(),
    "backbone": None,
    "mesh": None,
    "image_size": SIDE,
    "batch_size": 3,
    "smooth_sigma": 1.0,
    "prompt_names": "verbatim",
    "skip_corrupt": False,
    "num_examples": 2,
    "tiling": TILING,
  }
  return kind(**settings | more)


def tiles_of(path):
  image = Image.open(path)
  grid = TILING.grid((image.height, image.width), SIDE)
  cut = lambda i: image.resize((SIDE, SIDE), Image.BICUBIC, box=grid.box(i))
  return grid, np.stack([np.asarray(cut(i)) for i in range(len(grid))])


def expected(sample, bank=None):
  """Return score, smoothed map and mask of an image."""
  grid, tiles = tiles_of(sample.image_path)
  (found,) = BrightnessModel().predict({}, {}, tiles, (bank,))
  merger = MapMerger(grid)
  for number, one_map in enumerate(found["anomaly_map"]):
    merger.add(number, one_map)
  smooth = ndimage.gaussian_filter(merger.result(), 1.0)
  mask = np.zeros(grid.shape, bool)
  if sample.mask_path:
    resized = Image.open(sample.mask_path).resize(
      grid.shape[::-1], Image.BILINEAR
    )
    mask = np.asarray(resized) / 255 > 0.5
  return found["pred_score"].max(), smooth, mask


@pytest.mark.parametrize("few_shot", [False, True])
def test_metrics_are_those_of_merged_maps(data, few_shot):
  path, bank = data.train[0].image_path, None
  choice = references.NONE
  if few_shot:
    choice = references.References({"bolt": (path,)}, 1, 10)
    bank = np.mean(tiles_of(path)[1]) / 255
  (category,) = make().categories({}, {}, data, [choice])
  scores, maps, masks = zip(*(expected(s, bank) for s in data.test))
  np.testing.assert_allclose(category.pred_score, scores, rtol=1e-6)
  row = category.compute()
  flat = lambda parts: np.concatenate([part.ravel() for part in parts])
  auroc = sklearn_metrics.roc_auc_score(flat(masks), flat(maps))
  bound = row["pixel_auroc_bound"] + 1e-9
  np.testing.assert_allclose(row["pixel_auroc"], auroc, atol=bound)
  labels = [s.label for s in data.test]
  np.testing.assert_allclose(
    row["image_auroc"], sklearn_metrics.roc_auc_score(labels, scores)
  )
  assert category.pixel_metrics.state.num_regions == 2
  for number, example in category.examples.kept.items():
    np.testing.assert_allclose(example.anomaly_map, maps[number], atol=1e-6)
    np.testing.assert_array_equal(example.gt_mask, masks[number])


def test_one_tile_for_each_image_gives_the_metrics_of_whole_images(data):
  small = dataclasses.replace(data, test=(data.test[1], data.test[3]))
  rows = []
  for tiling in (None, Tiling(64)):
    compare = make(tiling=tiling, batch_size=2)
    (category,) = compare.categories({}, {}, small)
    rows.append((category.compute(), category.pred_score.tolist()))
  np.testing.assert_equal(*rows)


def test_images_are_counted_once_by_several_processes(data, monkeypatch):
  run = lambda batch, collect: BrightnessModel().predict({}, {}, batch["image"])
  monkeypatch.setattr(distributed, "local_slice", lambda batch: batch)
  counted = np.zeros(4)
  for process in range(3):
    own = types.SimpleNamespace(
      process_count=lambda: 3, process_index=lambda process=process: process
    )
    monkeypatch.setattr(tiled, "jax", own)
    images = tiled.TiledImages(TILING, SIDE, 3, 0.0, skip_corrupt=False)
    _, batches = images.predict(data.test, 0, run)
    parts = [batch for batch, _ in batches]
    assert [int(x["index"][0]) for x in parts] == [0, 1, 2, 3]
    counted += [float(x["weight"][0]) for x in parts]
  np.testing.assert_array_equal(counted, 1)


def test_unreadable_images_are_counted(data, tmp_path):
  bad = tmp_path / "bad.png"
  bad.write_bytes(b"no image")
  broken = index.Sample(str(bad), "", "bolt", "", 0)
  more = dataclasses.replace(data, test=(broken, *data.test))
  found = make(skip_corrupt=True).evaluate({}, {}, more)
  assert len(found.skipped) == 1 and "bad.png" in found.skipped[0]
  assert found.rows[0]["bolt"]["num_normal"] == 2
  with pytest.raises(ValueError, match="bad.png"):
    make().evaluate({}, {}, more)


def test_a_given_reference_is_not_scored(data, tmp_path):
  copy = tmp_path / "copy.bmp"
  Image.open(data.test[0].image_path).save(copy)
  chosen = references.References({"bolt": (str(copy),)}, 1, None)
  with pytest.raises(ValueError, match=r"0.png has the pixels of .*copy.bmp"):
    list(make().categories({}, {}, data, [chosen]))


def test_maps_of_an_ensemble_are_averaged(data):
  members = (make(), make(image_size=24))
  lead = make(BrightEnsemble, image_size=24, members=members)
  predictor = lead.predictor(data)
  states = {"01": {}, "02": {}}
  _, found = lead.predict_batches(
    predictor, states, states, data, data.test, [()]
  )
  found = list(found)
  alone = [
    list(m.predict_batches(p, {}, {}, data, data.test, [()])[1])
    for m, p in zip(members, predictor)
  ]
  for (batch, (mean,)), (_, (first,)), (other, (second,)) in zip(found, *alone):
    np.testing.assert_array_equal(batch["mask"], other["mask"])
    assert mean["anomaly_map"].shape == second["anomaly_map"].shape
    assert mean["anomaly_map"].shape != first["anomaly_map"].shape
    np.testing.assert_allclose(
      mean["pred_score"], (first["pred_score"] + second["pred_score"]) / 2
    )


def test_variants_of_one_size_and_papers_are_refused():
  make_protocol = lambda **more: protocol.Protocol(
    ("x",), ("y",), "last", (), tiling=TILING, **more
  )
  assert "tiles of 32 px, overlap 0.25" in make_protocol().describe()
  with pytest.raises(ValueError, match="--variant=exact needs maps of one"):
    make_protocol(variant="exact")
