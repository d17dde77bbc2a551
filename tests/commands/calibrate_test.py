"""Images of a calibration: each once, with one role, never against itself."""

import shutil
import types
from typing import Any
from unittest import mock

import numpy as np
import pytest

from tests.helpers import small_run
from zsad_jax import calibrate
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib


class Compared(detector_lib.Detector):
  """A detector whose score is 1 for an image without other references."""

  log: list = []

  def __init__(self, run, references=(), **_):
    self.references = references

  @property
  def has_references(self):
    return bool(self.references)

  def with_references(self, images):
    return Compared(None, tuple(images))

  def stream(self, images, skip_corrupt):
    for i, image in enumerate(images):
      Compared.log.append((image, self.references))
      raw_map = np.full((4, 4), 0.5, np.float32)
      yield i, types.SimpleNamespace(score=0.1 * i, raw_map=raw_map)


@pytest.fixture
def images(tmp_path, monkeypatch):
  small_run.write_images(tmp_path)
  monkeypatch.setattr(detector_lib, "Detector", Compared)
  monkeypatch.setattr(Compared, "log", [])
  return tmp_path


def run(images, normal="normal", **more):
  paths: Any = {k: [str(images / v)] for k, v in more.items()}
  config = small_run.get_config(str(images / "aux"))
  of = mock.Mock(spec=run_lib.Run, workdir=images, config=config)
  return calibrate.calibrate(of, [str(images / normal)], rate=0.3, **paths)


@pytest.mark.parametrize("copied", [False, True])
def test_a_reference_is_left_out_for_itself(images, copied, capsys):
  where = "normal"
  if copied:
    where = "copies"
    shutil.copytree(images / "normal", images / where)
  stored = run(images, reference_paths=where)
  assert "from 4 normal images, with 4 references" in stored.source
  assert stored == threshold_lib.read(images, few_shot=True)
  assert "4 of the 4 normal images are references" in capsys.readouterr().out
  assert len(Compared.log) == 4
  for image, references in Compared.log:
    own = image.replace("/normal/", f"/{where}/")
    assert len(references) == 3 and own not in references


def test_the_only_reference_is_not_compared_with_itself(images):
  with pytest.raises(ValueError, match="0.png is the only reference"):
    run(images, reference_paths="normal/0.png")
  assert not Compared.log


@pytest.mark.parametrize("copied", [False, True])
def test_an_image_has_one_role(images, copied):
  other = "normal"
  if copied:
    shutil.copytree(images / "normal", images / "more")
    other = "more"
  with pytest.raises(ValueError, match=r"0\.png.* as normal and as anomalous"):
    run(images, anomalous=other)
  with pytest.raises(ValueError, match="is a reference and anomalous"):
    run(images, anomalous="anomalous", reference_paths="anomalous")
  assert not Compared.log and not (images / threshold_lib.FILE).exists()


def test_copies_count_once(images, capsys):
  shutil.copy(images / "normal/0.png", images / "normal/9.png")
  stored = run(images)
  assert "from 4 normal images" in stored.source
  assert "9.png is a copy of" in capsys.readouterr().out


def test_images_that_were_trained_on_are_counted(images, capsys):
  small_run.write_images(images / "aux")  # The same images.
  run(images)
  assert "warning: 4 of the images were trained on" in capsys.readouterr().out


def test_the_rate_is_checked_first(images):
  with pytest.raises(ValueError, match="rate of false alarms"):
    calibrate.calibrate(mock.Mock(spec=run_lib.Run), ["nowhere"], rate=1.0)


@pytest.mark.parametrize("kind", ["normal", "anomalous"])
def test_an_image_is_named_where_none_can_be_read(images, kind, monkeypatch):
  stream = Compared.stream

  def unreadable(self, paths, skip_corrupt):
    for i, found in stream(self, paths, skip_corrupt):
      yield i, "corrupt" if f"/{kind}/" in paths[i] else found

  monkeypatch.setattr(Compared, "stream", unreadable)
  with pytest.raises(ValueError, match=f"the 4 {kind} images .*/{kind}/0.png"):
    run(images, anomalous="anomalous")
