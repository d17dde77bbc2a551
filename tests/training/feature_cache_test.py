"""Feature cache: the losses of a run are those without it."""

import functools
import json

import numpy as np
import pytest

from tests.helpers import small_run
from zsad_jax import backbones, train
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import distributed
from zsad_jax.training import feature_cache


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "mvtec"
  small_run.write_mvtec(folder)
  return str(folder)


@pytest.fixture(autouse=True)
def backbone(monkeypatch):
  monkeypatch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)


CONFIGS = {
  "anomalyclip": small_run.get_anomalyclip_config,
  "adaptclip": small_run.get_adaptclip_config,  # Learns from references.
  "adaclip": small_run.get_config,
}


def losses(config, workdir):
  assert train.train(config, workdir)
  text = (workdir / "metrics.jsonl").read_text()
  return [json.loads(line)["loss"] for line in text.splitlines()]


def prepared(name, data, storage, folder="", dtype="float32"):
  config = CONFIGS[name](data)
  config.batch_size = 3  # Does not divide the images.
  config.mosaic_prob = 0.0
  config.features = dict(storage=storage, dtype=dtype, folder=str(folder))
  return config


@pytest.fixture(scope="module")
def uncached(data, tmp_path_factory):
  """Return the losses of a method that encodes each step, computed once."""

  @functools.cache
  def found(name):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(clip_load, "RANDOM_CONFIG", small_run.BACKBONE)
      folder = tmp_path_factory.mktemp("run")
      return losses(prepared(name, data, "none"), folder)

  return found


@pytest.mark.parametrize(
  "name, storage",
  [
    pytest.param("anomalyclip", "host", marks=pytest.mark.slow),
    # Bytes of images instead of floats.
    pytest.param("adaclip", "disk", marks=pytest.mark.slow),
    pytest.param("adaptclip", "device", marks=pytest.mark.slow),
    pytest.param("adaptclip", "host", marks=pytest.mark.slow),
    pytest.param("adaptclip", "disk", marks=pytest.mark.slow),
    pytest.param("anomalyclip", "device", marks=pytest.mark.slow),
  ],
)
def test_losses_are_those_of_encoding_each_step(
  name, storage, data, uncached, tmp_path, capsys
):
  config = prepared(name, data, storage, tmp_path / "features")
  # The same batch size and learning rate.
  config.batch_size, config.batch_scale = 1, 3
  config.optax.learning_rate /= 3
  found = losses(config, tmp_path / "run")
  # Terms near 1 are rounded, also where their sum has been trained to 0.1.
  np.testing.assert_allclose(found, uncached(name), rtol=1e-5, atol=3e-6)
  out = capsys.readouterr().out
  assert "Features of 16 images" in out
  assert "config.batch_scale is 3: the batch size is 3 (3 x 1)" in out
  stored = json.loads((tmp_path / "run" / "config.json").read_text())
  assert (stored["batch_size"], stored["batch_scale"]) == (1, 3)  # As given.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adaptclip", "adaclip"])
def test_losses_from_the_devices_are_those_from_the_host(name, data, tmp_path):
  found = {}
  for storage in ("host", "device"):
    config = prepared(name, data, storage)
    found[storage] = losses(config, tmp_path / storage)
  assert found["device"] == found["host"]  # To the last bit.


@pytest.mark.slow
def test_bfloat16_takes_half_and_is_near(data, uncached, tmp_path):
  config = prepared("adaptclip", data, "host", dtype="bfloat16")
  found = losses(config, tmp_path / "run")
  assert found != uncached("adaptclip")
  np.testing.assert_allclose(found, uncached("adaptclip"), rtol=0.02)


def test_a_second_run_reads_the_disk(data, tmp_path, monkeypatch):
  config = prepared("anomalyclip", data, "disk", tmp_path / "features")
  first = losses(config, tmp_path / "first")
  monkeypatch.setattr(feature_cache.pipeline, "eval_batches", never)
  second = losses(config, tmp_path / "second")
  assert first == second


def never(*args, **kwargs):
  raise AssertionError("Encoded again.")


def test_other_weights_have_other_features(data, tmp_path, monkeypatch):
  config = prepared("anomalyclip", data, "disk", tmp_path / "features")
  losses(config, tmp_path / "first")
  monkeypatch.setattr(clip_load, "RANDOM_SEED", 1)
  losses(config, tmp_path / "second")
  assert len(list((tmp_path / "features").iterdir())) == 2


@pytest.mark.slow
def test_unreadable_images_count_nothing(data, tmp_path, capsys):
  small_run.write_mvtec(tmp_path / "data")
  (tmp_path / "data/bolt/test/good/0.png").write_bytes(b"no image")
  (tmp_path / "data/nut/train/good/1.png").write_bytes(b"nor this")
  found = {}
  for storage in ("none", "host"):
    config = prepared("adaptclip", str(tmp_path / "data"), storage)
    config.skip_corrupt = True
    found[storage] = losses(config, tmp_path / storage)
  np.testing.assert_allclose(found["host"], found["none"], rtol=1e-5)
  assert "bolt/test/good/0.png" in capsys.readouterr().out


@pytest.mark.slow
def test_an_unreadable_image_is_named_by_every_run(data, tmp_path, capsys):
  small_run.write_mvtec(tmp_path / "data")
  bad = tmp_path / "data/bolt/test/good/0.png"
  bad.write_bytes(b"no image")
  config = prepared(
    "anomalyclip", str(tmp_path / "data"), "disk", tmp_path / "features"
  )
  config.skip_corrupt = True
  found = []
  for name in ("first", "second"):
    found.append(losses(config, tmp_path / name))
    assert str(bad) in capsys.readouterr().out
  assert found[0] == found[1]
  config.skip_corrupt = False
  with pytest.raises(ValueError, match="bolt/test/good/0.png"):
    losses(config, tmp_path / "third")


def test_several_processes_cannot_use_the_memory_of_one(
  data, tmp_path, monkeypatch
):
  config = prepared("anomalyclip", data, "host")
  method = run_lib.make_method(config.method_name, config.method.to_dict())
  backbone = backbones.load(**config.backbone)
  datasets = [run_lib.open_dataset(config, data)]
  mesh = distributed.make_mesh()
  monkeypatch.setattr(feature_cache.jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match='"host", but processes do not share'):
    feature_cache.make(config, method, backbone, mesh, datasets)
  config.features.storage = "auto"
  choice = feature_cache.storage_choice
  monkeypatch.setattr(choice, "nearest_storage", lambda *_: "host")
  made = feature_cache.make(config, method, backbone, mesh, datasets)
  assert made is None  # Each step encodes.


def test_images_are_kept_as_bytes(data):
  config = prepared("adaclip", data, "host")
  method = run_lib.make_method(config.method_name, config.method.to_dict())
  backbone = backbones.load(**config.backbone)
  frozen = feature_cache.make(
    config,
    method,
    backbone,
    distributed.make_mesh(),
    [run_lib.open_dataset(config, data)],
  )
  batch = next(frozen.batches(start_step=0))
  assert batch["features"]["pixels"].dtype == np.uint8


@pytest.mark.parametrize(
  "settings, message",
  [
    (
      dict(features=dict(storage="gpu")),
      "config.features.storage is one of auto, device",
    ),
    (
      dict(features=dict(dtype="int8")),
      "config.features.dtype is one of float32",
    ),
    (
      dict(features=dict(storage="host"), mosaic_prob=0.2),
      "mosaics change the images at random: set config.mosaic_prob to 0",
    ),
    (
      dict(features=dict(storage="host"), augmentation="vcpclip"),
      'at random: set config.augmentation to "none"',
    ),
  ],
)
def test_invalid_settings_are_errors(settings, message, data, tmp_path):
  config = prepared("anomalyclip", data, "auto")
  config.update(settings)
  with pytest.raises(ValueError, match=message):
    train.train(config, tmp_path)


def test_mosaics_are_encoded_at_each_step(data, tmp_path, capsys):
  config = prepared("anomalyclip", data, "auto")
  config.mosaic_prob = 0.5
  losses(config, tmp_path)
  assert "Features of" not in capsys.readouterr().out
