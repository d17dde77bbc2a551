"""The public Python API against direct preprocessing and the stored run."""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import zsad_jax
from zsad_jax.inference import predictor
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import distributed

ROOT = pathlib.Path(__file__).parents[2]
OLD_RUNS = ROOT / "tests" / "goldens" / "old_runs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A run, two images and two references."""
  folder = tmp_path_factory.mktemp("api")
  shutil.copytree(OLD_RUNS / "anomalyclip", folder / "runs" / "adaclip")
  rng = np.random.default_rng(0)
  (folder / "good").mkdir()
  for name, shape in {
    "photo": (50, 70, 3),
    "other": (40, 40, 3),
    "good/0": (40, 40, 3),
    "good/1": (45, 30, 3),
  }.items():
    pixels = rng.integers(60, 180, shape).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
  return folder


@pytest.fixture(scope="module")
def detector(folder):
  return zsad_jax.load(folder / "runs" / "adaclip", batch_size=3)


@pytest.fixture(scope="module")
def few_shot(detector, folder):
  return detector.with_references(
    [folder / "good/0.png", folder / "good/1.png"]
  )


@pytest.fixture
def pixels(folder):
  return np.asarray(Image.open(folder / "photo.png"))


def assert_same(a, b):
  assert (a.label, a.threshold, a.image_size) == (
    b.label,
    b.threshold,
    b.image_size,
  )
  np.testing.assert_allclose(a.score, b.score, atol=1e-5)
  np.testing.assert_allclose(a.raw_map, b.raw_map, atol=1e-5)
  np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, atol=1e-5)


def test_scores_equal_those_of_the_model_on_pixels_resized_by_pillow(
  detector, folder, pixels
):
  run = run_lib.load(folder / "runs" / "adaclip")
  size = run.config.image_size
  small = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
  model = predictor.Predictor(
    run.method, run.backbone, ["object"], distributed.make_mesh()
  )
  batch = {"image": np.asarray(small)[None], "class_id": np.zeros(1, np.int32)}
  (expected,) = model.predict(run.params, run.stats, model.encode(batch))
  found = detector(folder / "photo.png")
  np.testing.assert_allclose(found.score, expected["pred_score"][0], atol=1e-6)
  raw = np.asarray(expected["anomaly_map"][0])
  np.testing.assert_allclose(found.raw_map, raw, atol=1e-6)
  assert found.anomaly_map.shape == (50, 70)
  assert found.anomaly_map.dtype == np.float32
  smooth = Image.fromarray(ndimage.gaussian_filter(raw, 1.0))
  np.testing.assert_allclose(
    found.anomaly_map, smooth.resize((70, 50), Image.BILINEAR), atol=1e-6
  )
  assert 0 <= found.anomaly_map.min() and found.anomaly_map.max() <= 1
  stored = threshold_lib.read(folder / "runs" / "adaclip").image_score
  assert found.threshold == stored
  assert found.label == ("anomalous" if found.score >= stored else "normal")
  assert found.zero_shot_score is None


def test_paths_images_and_arrays_give_the_same(detector, folder, pixels):
  path = folder / "photo.png"
  image = Image.open(path)  # Not read yet, and given twice.
  given = [path, str(path), image, image, pixels, pixels[:, ::-1][:, ::-1]]
  found = detector(given)
  assert len(found) == len(given)
  for one in found[1:]:
    assert_same(one, found[0])


def test_a_reference_is_not_compared_with_itself(few_shot, folder):
  copy = np.asarray(Image.open(folder / "good/1.png"))
  for image in (folder / "good/0.png", copy):
    with pytest.raises(ValueError, match="is one of the references"):
      few_shot([image])


def test_a_list_gives_the_same_as_single_calls(few_shot, folder, pixels):
  given = [pixels, folder / "other.png", pixels[:20], pixels[5:6, :1]]
  together = few_shot(given)
  assert [d.image_size for d in together] == [
    (50, 70),
    (40, 40),
    (20, 70),
    (1, 1),
  ]
  for one, image in zip(together, given):
    alone = few_shot(image)
    assert_same(alone, one)
    np.testing.assert_allclose(
      alone.zero_shot_score, one.zero_shot_score, atol=1e-5
    )
  assert few_shot([]) == []
  assert isinstance(few_shot((pixels,)), list)


def test_orientation_and_16_bits_as_for_files(detector, tmp_path, pixels):
  exif = Image.Exif()
  exif[274] = 6  # Rotate by 90 degrees.
  Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
  deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
  deep.save(tmp_path / "deep.png")
  paths = [tmp_path / "turned.png", tmp_path / "deep.png"]
  from_files = detector(paths)
  assert from_files[0].image_size == (70, 50)
  for a, b in zip(from_files, detector([Image.open(p) for p in paths])):
    assert_same(a, b)
  grey = np.repeat(pixels[..., :1], 3, axis=2)
  assert_same(from_files[1], detector(grey))


@pytest.mark.parametrize(
  ("image", "error", "message"),
  [
    (np.zeros((4, 4, 3), np.float32), TypeError, r"float32 .*\(4, 4, 3\)"),
    (np.zeros((4, 4, 3), np.int64), TypeError, "int64"),
    (np.zeros((4, 4, 3), bool), TypeError, "bool"),
    (np.zeros((4, 4), np.uint8), ValueError, r"\(4, 4\)"),
    (np.zeros((4, 4, 4), np.uint8), ValueError, r"\(4, 4, 4\)"),
    (np.zeros((2, 4, 4, 3), np.uint8), ValueError, r"\(2, 4, 4, 3\)"),
    (np.zeros((0, 4, 3), np.uint8), ValueError, r"\(0, 4, 3\)"),
    (jax.numpy.zeros((4, 4, 3), np.uint8), TypeError, "ArrayImpl"),
    (b"png", TypeError, "bytes"),
    (None, TypeError, "NoneType"),
    (iter([]), TypeError, "iterator"),
  ],
)
def test_other_inputs_are_errors_that_name_what_is_accepted(
  detector, image, error, message
):
  with pytest.raises(error, match=f"{message}.*Accepted are a path, a PIL"):
    detector(image)
  with pytest.raises(error, match=rf"images\[1\].*{message}"):
    detector(["nowhere.png", image])
  with pytest.raises(error, match=rf"images\[0\].*{message}"):
    detector.with_references([image])


def test_unreadable_images_are_named_or_skipped(detector, tmp_path, pixels):
  bad = tmp_path / "bad.png"
  bad.write_bytes(b"no image")
  with pytest.raises(ValueError, match="bad.png"):
    detector([pixels, bad])
  with pytest.raises(ValueError, match="nowhere.png"):
    detector("nowhere.png")
  found = dict(detector.stream([bad, pixels, bad], skip_corrupt=True))
  assert "bad.png" in found[0] and "bad.png" in found[2]
  assert_same(found[1], detector(pixels))


def test_references_change_scores_and_not_the_detector(
  detector, few_shot, folder, pixels
):
  before = detector(pixels)
  both = few_shot(pixels)
  assert both.score != before.score
  np.testing.assert_allclose(both.zero_shot_score, before.score, atol=1e-5)
  stored = threshold_lib.read(folder / "runs" / "adaclip", few_shot=True)
  assert both.threshold == stored.image_score
  assert few_shot.has_references and not detector.has_references
  arrays = [np.asarray(Image.open(folder / f"good/{i}.png")) for i in (0, 1)]
  assert_same(detector.with_references(arrays)(pixels), both)
  other = few_shot.with_references(arrays[:1], class_name="hex nut")
  assert other(pixels).score != both.score
  assert_same(few_shot(pixels), both)
  with pytest.raises(ValueError, match="at least one"):
    detector.with_references([])
  with pytest.raises(TypeError, match="str"):
    detector.with_references("good")


def test_thresholds(detector, tmp_path, pixels):
  run = dataclasses.replace(detector._run, workdir=tmp_path)
  with pytest.raises(FileNotFoundError, match="threshold.json"):
    detector_lib.Detector(run)(pixels)
  score = detector(pixels).score
  at = detector_lib.Detector(run, threshold=score)(pixels)
  assert at.label == "anomalous" and at.threshold == score
  above = float(np.nextafter(np.float32(score), np.float32(2)))
  assert detector_lib.Detector(run, threshold=above)(pixels).label == "normal"
  with pytest.raises(ValueError, match="NaN"):
    detector_lib.Detector(run, threshold=float("nan"))
  with pytest.raises(ValueError, match="batch_size"):
    detector_lib.Detector(run, batch_size=0)


def test_a_nan_is_an_error_that_names_the_image(detector, folder):
  run = detector._run
  nan = jax.tree.map(lambda x: x * np.nan, run.params)
  broken = detector_lib.Detector(dataclasses.replace(run, params=nan))
  with pytest.raises(ValueError, match="photo.png.*not finite"):
    broken(folder / "photo.png")


@pytest.mark.slow
def test_neither_import_nor_scoring_loads_tensorflow(folder):
  code = (
    "import sys, zsad_jax\n"
    "heavy = lambda: {'tensorflow', 'torch'} & set(sys.modules)\n"
    "assert not heavy() and 'jax' not in sys.modules\n"
    "assert set(zsad_jax.__all__) <= set(dir(zsad_jax))\n"
    "detector = zsad_jax.load('runs/adaclip')\n"
    "print(detector, detector('photo.png').label, heavy())\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert re.search("normal set|anomalous set", done.stdout), done.stderr


def test_unknown_names_are_attribute_errors():
  with pytest.raises(AttributeError, match="nothing"):
    zsad_jax.nothing  # noqa: B018


def example():
  """The Python block of the README, or of docs/usage.md."""
  for name in ("README.md", "docs/usage.md"):
    text = (ROOT / name).read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
      if "zsad_jax.load" in block:
        return block
  raise AssertionError("No Python example.")


def test_the_documented_example_runs(folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  names = {}
  exec(example(), names)
  assert "(50, 70)" in capsys.readouterr().out
  assert all(isinstance(d, zsad_jax.Detection) for d in names["results"])


def test_scores_of_a_category_are_no_predictions(
  detector, folder, monkeypatch, capsys
):
  """A setting for evaluations has a note; nothing is compiled for the test."""

  class OfCategories(type(detector._run.method)):
    transductive_score = True

    def category_scores(self, terms):
      return terms[:, 0]

  run = dataclasses.replace(detector._run, method=OfCategories())
  other = detector_lib.Detector(run)
  stop = property(lambda self: self.no_such_model)
  monkeypatch.setattr(detector_lib.Detector, "_few_shot_model", stop)
  for given in (other, detector):
    with pytest.raises(AttributeError, match="no_such_model"):
      given.with_references([folder / "good/0.png"])
  assert capsys.readouterr().out.count("transductive_score has no effect") == 1
