"""The predict command: files written, and errors."""

import csv
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

from tests.helpers import small_run
from zsad_jax import predict, train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.datasets import image_files
from zsad_jax.evaluation import calibration
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
  with (output / "scores.csv").open(newline="", encoding="utf-8") as file:
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
    assert Image.open(tmp_path / f"{i}_overlay.png").size == (40, 40)
  out = capsys.readouterr().out
  assert "4 images" in out and "best F1 on the auxiliary images" in out


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
  assert "Skipped 1 images" in capsys.readouterr().out


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
