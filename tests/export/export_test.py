"""The export command on stored runs, against the detector of the run."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image
from scipy import ndimage

import zsad_jax
from tests.helpers.definer import Definer
from zsad_jax.export import __main__ as command
from zsad_jax.inference import export, export_stablehlo, tiling
from zsad_jax.runs import opening

ROOT = pathlib.Path(__file__).parents[2]
OLD_RUNS = ROOT / "tests" / "goldens" / "old_runs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Stored runs and photographs of several sizes and kinds."""
  folder = tmp_path_factory.mktemp("export")
  rng = np.random.default_rng(0)
  pixels = lambda *shape: rng.integers(0, 255, shape).astype(np.uint8)
  (folder / "photos").mkdir()
  (folder / "good").mkdir()
  save = lambda array, name, **more: Image.fromarray(array).save(
    folder / name, **more
  )
  save(pixels(50, 70, 3), "photos/wide.png")
  save(pixels(90, 40), "photos/grey.png")
  save(pixels(90, 40, 4), "photos/alpha.png")
  save(pixels(80, 60, 2).view(np.uint16)[..., 0], "photos/deep.png")
  turned = Image.Exif()
  turned[274] = 6  # Orientation.
  save(pixels(60, 80, 3), "photos/turned.jpg", exif=turned)
  Image.fromarray(pixels(40, 60, 3)).quantize(16).save(
    folder / "photos/palette.png"
  )
  for i in range(2):
    save(pixels(64, 64, 3), f"good/{i}.png")
  return folder


@pytest.fixture
def run_command(monkeypatch):
  """A function that runs the command with flags of its own."""
  monkeypatch.setattr(opening, "check_alone", lambda what: None)

  def run(*arguments):
    values = flags.FlagValues()
    for module in (command, opening, tiling):
      monkeypatch.setattr(module, "flags", Definer(values))
    command.define_flags()
    values(["export", *map(str, arguments)])
    command.main(values)

  return run


def stored_run(folder, name):
  workdir = folder / name
  if not workdir.exists():
    shutil.copytree(OLD_RUNS / name, workdir)
  return workdir


def smoothed(detection):
  return ndimage.gaussian_filter(detection.raw_map, detection.smooth_sigma)


@pytest.mark.slow
def test_stablehlo_of_references(folder, run_command, capsys):
  workdir = stored_run(folder, "clip")
  run_command(
    f"--workdir={workdir}",
    "--format=stablehlo",
    f"--references={folder / 'good'}",
    "--class_name=carpet",
    f"--images={folder / 'photos'}",
  )
  target = workdir / "export" / "stablehlo"
  assert sorted(path.name for path in target.iterdir()) == [
    "detector.json",
    "detector.stablehlo",
  ]
  side = json.loads((target / "detector.json").read_text())
  assert side["class_name"] == "carpet" and side["method"] == "clip"
  assert [each["file"] for each in side["references"]] == ["0.png", "1.png"]
  assert side["versions"]["jax"] == jax.__version__
  assert side["backbone"]["licence"] == "Apache-2.0"
  assert side["train_data"] == [] and side["text_backbone"] is None
  assert max(side["largest_difference"]["pred_score"], 1e-9) < 1e-5
  assert "detector.stablehlo" in capsys.readouterr().out

  # The five lines of docs/export.md.
  data = (target / "detector.stablehlo").read_bytes()
  exported = jax.export.deserialize(bytearray(data))
  assert set(exported.platforms) == set(export_stablehlo.PLATFORMS)
  photos = sorted((folder / "photos").glob("*.png"))[:3]
  side_length = side["preprocessing"]["resize"][0]
  pixels = np.stack(
    [
      np.array(
        Image.open(path)
        .convert("RGB")
        .resize((side_length,) * 2, Image.Resampling.BICUBIC)
      )
      for path in photos
      if path.name != "deep.png"
    ]
  )
  live = zsad_jax.load(workdir, class_name="carpet").with_references(
    sorted((folder / "good").iterdir())
  )
  found = live([path for path in photos if path.name != "deep.png"])
  for images in (pixels, pixels[:1]):  # Any batch size.
    scores, maps = exported.call(images)
    for score, each, expected in zip(scores, maps, found):
      np.testing.assert_allclose(score, expected.score, atol=1e-5)
      np.testing.assert_allclose(each, smoothed(expected), atol=1e-5)


def test_a_program_that_differs_leaves_nothing(
  folder, run_command, monkeypatch
):
  workdir, target = stored_run(folder, "clip"), folder / "refused"

  def load(path):
    del path
    return lambda images: (
      np.zeros(len(images), np.float32),
      np.zeros(images.shape[:3], np.float32),
    )

  monkeypatch.setattr(export_stablehlo, "load", load)
  monkeypatch.setattr(export_stablehlo, "write", lambda program, path: [path])
  with pytest.raises(ValueError, match="pred_score of the stablehlo program"):
    run_command(
      f"--workdir={workdir}", "--format=stablehlo", f"--output={target}"
    )
  assert not target.exists()
  assert not [p for p in folder.iterdir() if p.name.startswith(".refused")]


def test_targets(folder, run_command, tmp_path):
  workdir = stored_run(folder, "clip")
  given = f"--workdir={workdir}", "--format=stablehlo"
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "notes.txt").write_text("")
  with pytest.raises(ValueError, match="no former export"):
    run_command(*given, f"--output={tmp_path / 'mine'}")
  (tmp_path / "mine" / "detector.json").write_text("{}")
  with pytest.raises(ValueError, match="--overwrite"):
    run_command(*given, f"--output={tmp_path / 'mine'}")
  with pytest.raises(ValueError, match="is a URL"):
    run_command(*given, "--output=gs://bucket/folder")
  with pytest.raises(ValueError, match="whole images"):
    run_command(*given, "--tile=64", f"--output={tmp_path / 'new'}")


def test_publish_replaces_a_former_export(tmp_path):
  for name in ("old", "new"):
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}.txt").write_text("")
  command.publish(tmp_path / "new", tmp_path / "old")
  assert [p.name for p in (tmp_path / "old").iterdir()] == ["new.txt"]
  assert [p.name for p in tmp_path.iterdir()] == ["old"]


def test_differences_of_results_that_are_not_finite():
  images = np.zeros((2, 4, 4, 3), np.uint8)
  scores, maps = np.zeros(2, np.float32), np.zeros((2, 4, 4), np.float32)
  run = lambda x: (scores[: len(x)] + 0.5, maps[: len(x)] * np.nan)
  found = export.differences(run, images, scores, maps)
  assert found["pred_score"] == 0.5 and np.isnan(found["anomaly_map"])
  with pytest.raises(ValueError, match="0.5"):
    export.check("onnx", found, pathlib.Path("x"))
  with pytest.raises(ValueError, match="nan"):
    export.check("onnx", found | {"pred_score": 0.0}, pathlib.Path("x"))


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, shots",
  [
    ("clip", 0),
    ("clip", 2),
    ("adaclip", 0),
    ("anomalyclip", 0),
    ("anomalyclip", 2),
    ("faprompt", 0),
    ("adaptclip", 0),
    ("adaptclip", 2),
  ],
)
@pytest.mark.parametrize("form", export.FORMATS)
def test_methods_and_the_example(folder, run_command, name, shots, form):
  if form == "onnx":
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
  workdir = stored_run(folder, name)
  target = folder / f"{name}{shots}_{form}"
  given = [f"--workdir={workdir}", f"--format={form}", f"--output={target}"]
  given += [f"--images={folder / 'photos'}"]
  given += [f"--references={folder / 'good'}"] * bool(shots)
  run_command(*given)
  side = json.loads((target / "detector.json").read_text())
  assert side["largest_difference"]["images"] == 6
  if form != "onnx":
    return
  photos = sorted(map(str, (folder / "photos").iterdir()))
  broken = folder / "broken.png"
  broken.write_bytes(b"no image")
  dim, empty = folder / "dim.png", folder / "empty"
  Image.fromarray(np.full((9, 9), 4095, np.uint16)).save(dim)
  empty.mkdir(exist_ok=True)
  refused = [broken, dim, empty]
  ended = subprocess.run(
    [sys.executable, target / "predict.py", *refused, folder / "photos"],
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 1
  errors = ended.stderr.splitlines()
  for line, path in zip(errors, refused, strict=True):
    assert line.startswith(f"error: {path}: ")
  live = zsad_jax.load(workdir)
  if shots:
    live = live.with_references(sorted((folder / "good").iterdir()))
  for line, expected in zip(
    ended.stdout.splitlines(), live(photos), strict=True
  ):
    score, label, _ = re.split(" ", line, maxsplit=2)
    assert abs(float(score) - expected.score) < 1e-5
    assert label == expected.label
