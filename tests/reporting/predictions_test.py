"""Result files of `predict`: names, overlays and the score table."""

import csv
import os
import random
import signal

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from zsad_jax.datasets import image_files
from zsad_jax.reporting import predictions
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import stopping

LIMITS = threshold_lib.Threshold(0.5, 0.0, 1.0, "")


def result(path, raw_map, size, zero_shot_score=None):
  detection = detector_lib.Detection(
    score=0.123456789,
    limits=LIMITS,
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
  found = predictions.overlay(result(path, hot, (20, 60)), LIMITS)
  image = np.asarray(found, int)
  assert image.shape == (20, 60, 3)
  change = np.abs(image - 100).sum(axis=(0, 2))
  assert change[50:].min() > 3 * max(1, change[:30].max())


RAW = np.random.default_rng(0).random((4, 4), np.float32)


def table(folder, images=("x.png",), *, has_references=False):
  return predictions.ScoreTable(folder, images, has_references=has_references)


def read(folder, name=predictions.SCORES):
  with (folder / name).open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def test_the_table_and_the_map_have_the_values(tmp_path):
  one = result("x.png", RAW, (4, 4), zero_shot_score=0.25)
  with table(tmp_path / "new", has_references=True) as scores:
    scores.add(one)
  assert read(tmp_path / "new") == [
    {
      "image": "x.png",
      "score": "0.123457",
      "label": "normal",
      "threshold": "0.5",
      "zero_shot_score": "0.25",
      "status": "scored",
    }
  ]
  with table(tmp_path) as scores:
    scores.add(result("x.png", RAW, (4, 4)))
  header = (tmp_path / "scores.csv").read_text().splitlines()[0]
  assert header == "image,score,label,threshold,status"
  predictions.save_map(tmp_path, one)
  np.testing.assert_array_equal(np.load(tmp_path / "x_map.npy"), RAW)


@pytest.mark.parametrize(
  "error", [ValueError("d.png is corrupt"), stopping.Stopped(signal.SIGTERM)]
)
def test_a_stopped_table_has_a_row_for_every_image(tmp_path, error):
  with pytest.raises(type(error)) as caught:
    with table(tmp_path, list("abcde")) as scores:
      scores.add(result("a", RAW, (4, 4)))
      scores.skip("not read: b is corrupt")
      scores.add(result("c", RAW, (4, 4)))
      # What a kill leaves.
      assert len(read(tmp_path, predictions.PARTIAL_SCORES)) == 3
      assert not (tmp_path / "scores.csv").exists()
      raise error
  reason = {
    ValueError: "not scored: d.png is corrupt",
    stopping.Stopped: "not scored: Stopped by SIGTERM.",
  }[type(error)]
  assert [
    (r["image"], bool(r["score"]), r["status"]) for r in read(tmp_path)
  ] == [
    ("a", True, "scored"),
    ("b", False, "not read: b is corrupt"),
    ("c", True, "scored"),
    ("d", False, reason),
    ("e", False, reason),
  ]
  assert [p.name for p in tmp_path.iterdir()] == ["scores.csv"]
  assert "the scores of 2 of 5 images" in caught.value.__notes__[0]


def test_a_signal_while_a_row_is_written_loses_no_row(tmp_path, monkeypatch):
  write = predictions.ScoreTable._write

  def interrupted(self, row):
    write(self, row)
    if row[0] == "b":
      signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(predictions.ScoreTable, "_write", interrupted)
  with pytest.raises(stopping.Stopped), stopping.handled():
    with table(tmp_path, list("abc")) as scores:
      for name in "abc":
        scores.add(result(name, RAW, (4, 4)))
  assert [r["image"] for r in read(tmp_path)] == list("abc")
  assert [bool(r["score"]) for r in read(tmp_path)] == [True, True, False]


def test_bytes_of_names_that_are_not_utf8_are_escaped(tmp_path):
  name = os.fsdecode(b"Stra\xdfe.png")
  with table(tmp_path, [name]) as scores:
    scores.add(result(name, RAW, (4, 4)))
  assert "Stra\\udcdfe.png,0.123457" in (tmp_path / "scores.csv").read_text()


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
