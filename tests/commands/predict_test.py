"""The predict command: files written, and errors."""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from tests.commands import fuzz_test
from tests.helpers import small_run
from tests.reporting import result_files_test
from zsad_jax import predict, train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.datasets import image_files
from zsad_jax.evaluation import calibration
from zsad_jax.runs import calibrations, ensemble_detector
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A trained run with its threshold."""
  folder = tmp_path_factory.mktemp("run")
  small_run.write_images(folder / "parts")

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
    config = small_run.get_config(str(folder / "parts"))
    train.train(config.lock(), folder)
    loaded = run_lib.load(folder)
  with pytest.raises(FileNotFoundError, match="training was not finished"):
    threshold_lib.read(folder)
  calibration.store(loaded)
  return loaded


def read(output):
  with (output / "scores.csv").open(newline="", encoding="utf-8-sig") as file:
    return list(csv.DictReader(file))


def test_a_folder_gives_scores_maps_and_overlays(run, tmp_path, capsys):
  images = run.workdir / "parts"
  predict.predict(run, [str(images / "normal")], tmp_path)
  rows = read(tmp_path)
  assert [r["image"] for r in rows] == [
    str(images / "normal" / f"{i}.png") for i in range(4)
  ]
  stored = threshold_lib.read(run.workdir)
  for i, row in enumerate(rows):
    flagged = float(row["score"]) >= stored.image_score
    assert row["label"] == ("anomalous" if flagged else "normal")
    raw = np.load(tmp_path / f"{i}_map.npy")
    assert raw.shape == (32, 32) and raw.dtype == np.float32
    assert 0 <= raw.min() and raw.max() <= 1
    width, height = Image.open(tmp_path / f"{i}_overlay.png").size
    assert width >= 40 and height > 40  # With a caption.
  out = capsys.readouterr().out
  assert "4 images" in out and "best F1 on the auxiliary images" in out


def test_all_outputs_are_those_of_the_python_interface(run, tmp_path, capsys):
  path = str(run.workdir / "parts" / "anomalous")
  predict.predict(run, [path], tmp_path)
  printed = capsys.readouterr().out.splitlines()
  detector, masks = ensemble_detector.make_detector(run), {}
  (heading,) = (x.split() for x in printed if x.startswith("score"))
  assert heading == ["score", "normalized", "label", "image"]
  for row in read(tmp_path):
    found = detector(row["image"])
    numbers = [f"{found.score:.4g}", f"{found.normalized_score:.4f}"]
    line = [*numbers, found.label, row["image"]]
    assert any(x.split()[:4] == line for x in printed)
    masks[row["image"]] = mask = np.asarray(Image.open(row["mask"])) == 255
    close = abs(found.anomaly_map - found.limits.pixel) < 1e-5
    agree = (mask == found.mask) | close
    assert agree.all()
    assert int(row["regions"]) > 0 < int(row["largest_region_area"])
    np.testing.assert_allclose(np.load(row["map"]), found.raw_map, atol=1e-5)
    assert float(row["normalized_score"]) == pytest.approx(
      found.normalized_score, abs=1e-4
    )
    assert row["status"] == "scored" and Image.open(row["overlay"])
  assert len(masks) == 4
  result_files_test.check_tables(tmp_path, masks)


def test_masks_without_a_pixel_threshold(run, tmp_path, capsys, monkeypatch):
  limits = threshold_lib.Threshold(0.5, 0.0, 1.0, "old")
  monkeypatch.setattr(threshold_lib, "read", lambda *_, **__: limits)
  images = [str(run.workdir / "parts/normal/0.png")]
  predict.predict(run, images, tmp_path)
  assert "note: masks and regions are left out" in capsys.readouterr().out
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {"scores.csv", "0_overlay.png", "0_map.npy"}
  predict.predict(run, images, tmp_path / "b", save=["scores", "maps"])
  assert "note:" not in capsys.readouterr().out
  assert len([*(tmp_path / "b").iterdir()]) == 2
  monkeypatch.setattr(detector_lib.Detector, "_predict", None)
  monkeypatch.setattr(detector_lib.Detector, "with_references", None)
  for references in ([], [str(run.workdir / "parts/normal/1.png")]):
    with pytest.raises(ValueError, match="masks and regions need a pixel"):
      predict.predict(
        run,
        images,
        tmp_path / "c",
        save=["regions"],
        reference_paths=references,
      )
  assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--save=scores,heat"], "--save: 'heat' is unknown"),
    (["--calibration=line3", "--references=good"], "leave out --references"),
    (["--calibration=line3", "--class_name=object"], "leave out --class_name"),
    (["--calibration=line3", "--tile=64"], "leave out --tile,"),
  ],
)
def test_flags_that_are_refused_at_once(arguments, message):
  ended = fuzz_test.run(predict, "--workdir=none", "a.png", *arguments)
  assert ended.status == 1 and message in ended.err, ended


def test_a_calibration_has_its_references_and_thresholds(run, tmp_path, capsys):
  normal = [str(run.workdir / f"parts/normal/{i}.png") for i in (0, 1)]
  limits = threshold_lib.Threshold(
    0.4, 0.0, 1.0, "set", pixel=0.3, normal_scores=(0.0, 0.9)
  )
  stored = calibrations.Calibration(
    name="line3",
    threshold=limits,
    class_name="bolt",
    tiling=None,
    references=calibrations.describe_references(normal),
    rate=0.05,
    num_normal=2,
    num_anomalous=0,
    date=calibrations.now(),
    run_digest=calibrations.run_digest(run),
  )
  calibrations.write(run.workdir, stored, overwrite=True)
  images = [str(run.workdir / "parts/normal/3.png")]
  predict.predict(run, images, tmp_path, calibration="line3")
  (row,) = read(tmp_path)
  assert float(row["threshold"]) == 0.4
  assert float(row["normal_percentile"]) == 50.0
  assert row["zero_shot_score"] and row["mask"] and row["regions"]
  listed = json.loads((tmp_path / "references.json").read_text())["bolt"]
  assert listed == calibrations.reference_paths(run.workdir, stored)
  assert "2 references" in capsys.readouterr().out


def test_batch_size_changes_nothing(run, tmp_path):
  paths = [str(run.workdir / "parts" / "*" / "?.png")]
  for size in (1, 3):
    predict.predict(run, paths, tmp_path / str(size), batch_size=size)
  for a, b in zip(read(tmp_path / "1"), read(tmp_path / "3")):
    assert a["image"] == b["image"]
    np.testing.assert_allclose(float(a["score"]), float(b["score"]), atol=1e-5)


def test_a_given_threshold_decides(run, tmp_path):
  path = [str(run.workdir / "parts/normal/0.png")]
  predict.predict(run, path, tmp_path, limit=0.0)
  assert read(tmp_path)[0]["label"] == "anomalous"
  predict.predict(run, path, tmp_path, limit=1.1)
  assert read(tmp_path)[0]["label"] == "normal"


@pytest.mark.parametrize("limit", [float("inf"), -float("inf"), float("nan")])
def test_a_threshold_that_is_not_finite_is_refused(limit):
  options = flags.FlagValues()
  flags.DEFINE_float("threshold", limit, "", flag_values=options)
  flags.DEFINE_list("arguments", ["a.png"], "", flag_values=options)
  options.mark_as_parsed()
  with pytest.raises(ValueError, match="--threshold is .*finite number"):
    predict.main(options)


def test_bad_files_are_named_or_counted(run, tmp_path, capsys):
  (tmp_path / "broken.png").write_bytes(b"no image")
  Image.new("RGB", (9, 7)).save(tmp_path / "fine.png")
  Image.new("RGB", (9, 7)).save(tmp_path / "above.png")
  with pytest.raises(ValueError, match="broken.png"):
    predict.predict(run, [str(tmp_path)], tmp_path / "out")
  # The image before it, of the same batch, has its score.
  rows = read(tmp_path / "out")
  assert [bool(r["score"]) for r in rows] == [True, False, False]
  assert "broken.png" in rows[1]["status"] and "broken.png" in rows[2]["status"]
  assert (tmp_path / "out" / "above_map.npy").exists()
  images = [str(tmp_path / "*.png")]
  predict.predict(run, images, tmp_path / "out", skip_corrupt=True)
  rows = read(tmp_path / "out")
  assert [bool(r["score"]) for r in rows] == [True, False, True]
  assert rows[1]["status"].startswith("not read:")
  assert "they cannot be read (1)" in capsys.readouterr().out


def test_missing_and_empty_paths(tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere"):
    image_files.find([str(tmp_path / "nowhere*.png")])
  with pytest.raises(ValueError, match="no image"):
    image_files.find([str(tmp_path)])
  with pytest.raises(FileNotFoundError, match="config.json"):
    run_lib.load(tmp_path)


def test_predict_needs_neither_tensorflow_nor_torch():
  code = (
    "import sys\n"
    "sys.modules['tensorflow'] = sys.modules['torch'] = None\n"
    "import zsad_jax, zsad_jax.predict, zsad_jax.methods.adaclip\n"
    "import zsad_jax.convert, zsad_jax.runs.run\n"
    "print('imported')\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.stdout == "imported\n", done.stderr
