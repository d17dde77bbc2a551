"""Result files of `predict`: names, overlays and the score table."""

import csv
import os
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from zsad_jax.datasets import image_files
from zsad_jax.reporting import predictions
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import threshold as threshold_lib


def result(path, raw_map, size, zero_shot_score=None):
  detection = detector_lib.Detection(
    score=0.123456789,
    label="normal",
    threshold=0.5,
    raw_map=raw_map,
    image_size=size,
    smooth_sigma=0.0,
    zero_shot_score=zero_shot_score,
  )
  return predictions.ImageResult(str(path), "x", detection)


def test_names_of_results_do_not_collide(tmp_path):
  for name in ("a/x.png", "b/x.png", "b/y.png", "b/y.jpg"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(tmp_path / name)
  images = image_files.find([str(tmp_path)])
  assert len(images) == 4
  assert sorted(predictions.output_names(images)) == [
    "a_x",
    "b_x",
    "b_y.jpg",
    "b_y.png",
  ]
  again = image_files.find([str(tmp_path), str(tmp_path / "*/x.png")])
  assert again == images  # Each once.


def test_maps_are_resized_to_the_image(tmp_path):
  path = tmp_path / "wide.png"
  Image.new("RGB", (60, 20), (100, 100, 100)).save(path)
  hot = np.zeros((32, 32), np.float32)
  hot[:, 24:] = 1.0
  limits = threshold_lib.Threshold(0.5, 0.0, 1.0, "")
  found = predictions.overlay(result(path, hot, (20, 60)), limits)
  image = np.asarray(found, int)
  assert image.shape == (20, 60, 3)
  change = np.abs(image - 100).sum(axis=(0, 2))
  assert change[50:].min() > 3 * max(1, change[:30].max())


def test_the_table_and_the_map_have_the_values(tmp_path):
  raw = np.random.default_rng(0).random((4, 4), np.float32)
  one = result("x.png", raw, (4, 4), zero_shot_score=0.25)
  predictions.save_scores(tmp_path, [one])
  with (tmp_path / "scores.csv").open(encoding="utf-8") as file:
    (row,) = csv.DictReader(file)
  assert row == {
    "image": "x.png",
    "score": "0.123457",
    "label": "normal",
    "threshold": "0.5",
    "zero_shot_score": "0.25",
  }
  predictions.save_scores(tmp_path, [result("x.png", raw, (4, 4))])
  header = (tmp_path / "scores.csv").read_text().splitlines()[0]
  assert header == "image,score,label,threshold"
  predictions.save_map(tmp_path, one)
  np.testing.assert_array_equal(np.load(tmp_path / "x_map.npy"), raw)


parts = st.sampled_from(
  ("a", "b", "a_b", "x" * 120, "ß" * 100, "100%", "it's", "x\ny", "A", "con")
) | st.text("ab_-.é\udcdf", min_size=1, max_size=5).filter(
  lambda n: set(n) != {"."}
)
images = st.lists(
  st.tuples(
    st.lists(parts, max_size=3), parts, st.sampled_from(("png", "JPG"))
  ),
  min_size=1,
  max_size=8,
)


@settings(max_examples=50)
@given(images, st.randoms())
@example([(["a"], "b", "png"), ([], "a_b", "png")], random.Random(0))
def test_every_image_has_result_files_of_its_own(found, order):
  paths = list(
    dict.fromkeys("/".join(["/d", *f, f"{n}.{e}"]) for f, n, e in found)
  )
  names = predictions.output_names(paths)
  assert len({name.casefold() for name in names}) == len(paths)
  for name in names:
    assert os.path.basename(name) == name and name.strip(".")
    assert len(f".{name}_overlay.png.1234567.tmp".encode()) <= 255
  shuffled = order.sample(paths, len(paths))
  again = dict(zip(shuffled, predictions.output_names(shuffled)))
  assert [again[path] for path in paths] == names


def test_no_result_replaces_an_image(tmp_path):
  images = [str(tmp_path / n) for n in ("1.png", "1_overlay.png")]
  for path in images:
    Image.new("RGB", (8, 8)).save(path)
  with pytest.raises(ValueError, match=r"1_overlay\.png is an image that is"):
    predictions.check_replaces_no_image(tmp_path, images)
  predictions.check_replaces_no_image(tmp_path / "other", images)


def test_names_of_any_bytes_are_written(tmp_path):
  path = os.fsdecode(b"Stra\xdfe.png")
  raw = np.zeros((4, 4), np.float32)
  predictions.save_scores(tmp_path, [result(path, raw, (4, 4))])
  assert "Stra\\udcdfe.png,0.123457" in (tmp_path / "scores.csv").read_text()
