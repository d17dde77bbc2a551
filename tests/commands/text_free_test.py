"""Commands on a backbone without text: conversion, training, prediction."""

import pytest

from tests.helpers import dinov2_files, small_run
from tests.helpers.given_flags import GivenFlags
from zsad_jax import convert, train
from zsad_jax.backbones.dinov2 import config as dino_config
from zsad_jax.backbones.dinov2 import load as dino_load
from zsad_jax.backbones.dinov2 import model
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import config_files

TINY = dino_config.DinoConfig(
  width=64, layers=2, image_size=32, patch_size=8, registers=2
)


def small(name, folder):
  """Return a configuration of a method on the random DINOv2."""
  config = config_files.load(name).unlock()
  config.backbone.name, config.image_size = dino_load.RANDOM, 32
  config.train_data = config.test_data = (str(folder),)
  config.allow_trained, config.smooth_sigma = True, 1.0
  return config


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setattr(dino_load, "RANDOM_CONFIG", TINY)
  small_run.write_mvtec(tmp_path / "data", classes=("bolt",))
  return tmp_path / "data"


@pytest.mark.slow
def test_a_run_on_a_random_dinov2_finds_a_square(folder, tmp_path):
  config = small("anomalydino", folder)
  assert train.train(config, tmp_path / "run")
  run, _ = train.calibrated(tmp_path / "run")
  alone = detector_lib.Detector(run, threshold=0.5)
  image = str(folder / "bolt/test/bright/0.png")
  with pytest.raises(ValueError, match="needs references, normal images"):
    alone(image)
  good = [str(folder / f"bolt/train/good/{i}.png") for i in range(2)]
  few = alone.with_references(good)
  normal = few(str(folder / "bolt/test/good/0.png"))
  assert few(image).score > normal.score + 0.05
  assert few(image).zero_shot_score is None


def test_a_method_of_text_is_refused_before_training(folder, tmp_path):
  config = small("clip", folder)
  with pytest.raises(ValueError, match="dinov2-random, which has no text enc"):
    train.train(config, tmp_path / "run")
  assert not (tmp_path / "run" / run_lib.model_file.FILE).exists()


def test_convert_needs_the_model_of_a_backbone_that_is_no_clip(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setitem(dino_config.MODELS, "dinov2-tiny", TINY)
  monkeypatch.setattr(dino_load, "CONVERTIBLE", ("dinov2-tiny",))
  monkeypatch.setattr(dino_load, "NAMES", ("dinov2-tiny",))
  tiny, path = model.random_dinov2(TINY, 0), tmp_path / "tiny.pth"
  dinov2_files.write_meta(tiny, path)
  given = {"source": str(path), "output": str(tmp_path / "x")}
  run = lambda **more: convert.main(GivenFlags(**given, **more))
  run(model="dinov2-tiny")
  assert "registers=2" in capsys.readouterr().out
  with pytest.raises(ValueError, match="--pixels is for CLIP, not for"):
    run(model="dinov2-tiny", pixels="openai")
  with pytest.raises(ValueError, match="Is it a DINOv2. Give its --model"):
    run()
