"""Images of a calibration: each once, with one role, never against itself.

Named calibrations: what is stored, refused, and found again.
"""

import functools
import json
import shutil
from typing import Any
from unittest import mock

import numpy as np
import pytest
from absl import flags
from PIL import Image

from tests.helpers import small_run
from zsad_jax import calibrate
from zsad_jax.inference import tiling
from zsad_jax.metrics import exact
from zsad_jax.runs import calibrations, ensemble_detector, opening
from zsad_jax.runs import detection as detection_lib
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib


class Compared(detector_lib.Detector):
  """A detector whose map is the red channel, its score the largest value.

  Attributes:
    log: images that were scored, with the references they were compared with.
  """

  log: list = []

  def __init__(self, run, references=(), **settings):
    self.references, self.settings = references, settings

  @property
  def has_references(self):
    return bool(self.references)

  def with_references(self, images):
    return Compared(None, tuple(images), **self.settings)

  def stream(self, images, skip_corrupt):
    for i, image in enumerate(images):
      Compared.log.append((image, self.references))
      yield i, detection(image)


def detection(image):
  pixels = np.asarray(Image.open(image).convert("RGB"), np.float32)
  raw_map = pixels[..., 0] / 255
  limits = threshold_lib.Threshold(0.5, 0.0, 1.0, "")
  score = float(raw_map.max())
  return detection_lib.Detection(score, limits, raw_map, raw_map.shape, 0.0)


@pytest.fixture
def images(tmp_path, monkeypatch):
  small_run.write_images(tmp_path)
  monkeypatch.setattr(detector_lib, "Detector", Compared)
  monkeypatch.setattr(Compared, "log", [])
  return tmp_path


def run(images, normal="normal", **more):
  given: Any = {"rate": 0.3, **more}
  for name in ("anomalous", "reference_paths"):
    if name in given:
      given[name] = [str(images / given[name])]
  if "anomalous_masks" in given:
    given["anomalous_masks"] = str(images / given["anomalous_masks"])
  return calibrate.calibrate(a_run(images), [str(images / normal)], **given)


def a_run(workdir, weight=1.0):
  return mock.Mock(
    spec=run_lib.Run,
    categories=None,
    method=mock.Mock(image_only=False, min_set_size=1),
    workdir=workdir,
    config=small_run.get_config(str(workdir / "aux")),
    params={"layer": {"w": np.full(3, weight, np.float32)}},
    stats={},
    backbone=[np.arange(6.0).reshape(2, 3)],
  )


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


def test_a_corrupt_threshold_is_set_again(images, capsys):
  (images / threshold_lib.FILE).write_text("{")
  assert run(images) == threshold_lib.read(images)
  out = capsys.readouterr().out
  assert "note: color limits are those of the normal images" in out


# ---- Pixel thresholds.


def peaks(folder):
  return [detection(path).anomaly_map.max() for path in folder.iterdir()]


def test_normal_images_set_both_thresholds(images):
  """At 30 % of 4 + 1 images, one normal image may reach the threshold."""
  stored = run(images)
  expected = sorted(peaks(images / "normal"))
  assert (stored.pixel or 0) == np.nextafter(expected[-1], np.float32(2))
  assert stored.pixel == stored.image_score  # The score is the largest value.
  assert stored.normal_scores == tuple(map(float, expected))
  assert "30 % of images flagged, from 4 normal images" in stored.pixel_source
  assert stored == threshold_lib.read(images)


@pytest.mark.parametrize("number", [3, 1])
def test_masks_set_the_pixel_threshold_by_f1(images, number, capsys):
  for i in range(number, 4):
    (images / "masks" / f"{i}.png").unlink()
  stored = run(images, anomalous="anomalous", anomalous_masks="masks")
  masked = [(images / "anomalous" / f"{i}.png") for i in range(number)]
  normal = sorted((images / "normal").iterdir())
  maps = np.stack([detection(path).anomaly_map for path in [*normal, *masked]])
  truth = np.zeros(maps.shape, bool)
  for i in range(number):
    file = Image.open(images / "masks" / f"{i}.png")
    truth[len(normal) + i] = np.asarray(file) > 0
  best, _ = exact.f1_max(truth.ravel(), maps.ravel())
  found = maps >= (stored.pixel or 0)
  f1 = 2 * (found & truth).sum() / (found.sum() + truth.sum())
  assert f1 == pytest.approx(best, abs=1e-9)
  assert stored.pixel_source.startswith(
    f"best pixel F1 on 4 normal and {number}"
  )
  out = capsys.readouterr().out
  assert f"{4 - number} of 4 anomalous images have no mask" in out
  assert (
    "With anomalous pixels, of these images: 0 of 4 normal and 4 of 4" in out
  )


def test_without_masks_the_rate_sets_the_pixel_threshold(images):
  stored = run(images, anomalous="anomalous")
  assert stored.source.startswith("best F1 on 4 normal and 4 anomalous")
  assert stored.pixel_source.startswith("30 % of images flagged")


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda masks: shutil.rmtree(masks), "masks is no folder"),
    (
      lambda masks: [
        f.rename(f.with_stem(f"x{f.stem}")) for f in masks.iterdir()
      ],
      "none of the 4 masks in .*masks has the name of an anomalous image",
    ),
    (
      lambda masks: Image.new("L", (9, 8)).save(masks / "2.png"),
      r"masks/2.png: the mask is 9 x 8 pixels, but its image .* is 40 x 40",
    ),
    (
      lambda masks: (masks / "2.png").write_bytes(b"x"),
      "masks/2.png: cannot be",
    ),
    (
      lambda masks: [Image.new("L", (40, 40)).save(f) for f in masks.iterdir()],
      "The 4 masks .* mark no pixel",
    ),
  ],
)
def test_masks_that_cannot_be_used_are_refused(images, change, message):
  change(images / "masks")
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    run(images, anomalous="anomalous", anomalous_masks="masks")
  assert not (images / threshold_lib.FILE).exists()


def test_masks_can_be_skipped_or_resized(images, capsys):
  Image.new("L", (20, 20), 255).save(images / "masks" / "0.png")
  (images / "masks" / "1.png").write_bytes(b"x")
  given = {"anomalous": "anomalous", "anomalous_masks": "masks"}
  stored = run(images, **given, masks="resize", skip_corrupt=True)
  assert "on 4 normal and 3 masked images" in stored.pixel_source
  out = capsys.readouterr().out
  assert "1 masks were resized" in out and "masks/1.png: cannot be read" in out


@pytest.mark.parametrize(
  "value, message",
  [
    (100, "all 4 normal images have the score 0.392157"),
    (255, "no pixel can reach the threshold 1.0000001"),
  ],
)
def test_thresholds_that_tell_nothing_are_noted(images, value, message, capsys):
  for i, path in enumerate(sorted((images / "normal").iterdir())):
    image = np.full((40, 40, 3), value, np.uint8)
    image[0, 0] = (value, i, 0)  # No copies of each other.
    Image.fromarray(image).save(path)
  run(images)
  assert message in capsys.readouterr().out


# ---- Calibrations with names.


def product(name="line3", **more) -> dict[str, Any]:
  return {"product": calibrate.Product(name, **more)}


def test_a_named_calibration_is_found_again(images):
  tiles = tiling.Tiling(20, 0.5)
  stored = run(
    images,
    reference_paths="normal",
    class_name="hex nut",
    **product(tiling=tiles),
  )
  assert not (images / threshold_lib.FEW_SHOT_FILE).exists()
  # The copies are enough.
  shutil.rmtree(images / "normal")
  named = calibrations.read(images, "line3")
  detector: Any = ensemble_detector.from_calibration(a_run(images), named)
  assert detector.settings["limits"] == stored
  assert detector.settings["tiling"] == tiles
  assert detector.settings["class_name"] == "hex nut"
  assert len(detector.references) == 4
  folder = images / "calibrations/line3/references"
  assert {*detector.references} == {*map(str, folder.iterdir())}
  assert (named.num_normal, named.num_anomalous, named.rate) == (4, 0, 0.3)
  assert calibrations.names(images) == ["line3"]


def test_commands_that_use_a_replaced_calibration_are_mentioned(images, capsys):
  for options in ({}, {"overwrite": True}):  # There is none to replace yet.
    run(images, **product(**options, name=f"line{len(options)}"))
    run(images)
    assert "Restart" not in capsys.readouterr().out
  run(images, **product(overwrite=True, name="line1"))
  last = capsys.readouterr().out.splitlines()[-1]
  assert "was replaced" in last and "Restart" in last and "--output" in last


def test_the_settings_of_a_watch_have_the_date_of_the_calibration(images):
  run(images, **product())
  named = calibrations.read(images, "line3")
  detector = mock.Mock(limits=named.threshold)
  choice = opening.choose(a_run(images), "line3")
  found = opening.Opened(a_run(images), detector, choice).settings()
  assert found["--calibration"] == "line3"
  assert found[opening.CALIBRATED] == named.date
  found = opening.Opened(a_run(images), detector, opening.Choice()).settings()
  assert found["--calibration"] is found[opening.CALIBRATED] is None


def test_a_name_is_refused_before_images_are_scored(images):
  run(images, **product())
  before = (images / "calibrations/line3.json").read_bytes()
  Compared.log.clear()
  for name, message in (("line3", "--overwrite"), ("LINE3", "--name=line3")):
    with pytest.raises(ValueError, match=f"line3.json exists.*{message}"):
      run(images, **product(name))
  assert not Compared.log
  assert (images / "calibrations/line3.json").read_bytes() == before
  run(images, rate=0.5, **product(overwrite=True))
  assert calibrations.read(images, "line3").rate == 0.5


def test_a_calibration_of_another_state_of_the_run_is_refused(images):
  run(images, **product())
  named = calibrations.read(images, "line3")
  ensemble_detector.from_calibration(a_run(images), named)
  with pytest.raises(
    ValueError, match=r"line3.json was made on .* other.*again"
  ):
    ensemble_detector.from_calibration(a_run(images, weight=1.5), named)


@pytest.mark.parametrize(
  "given, message",
  [
    ("--tile=64", "--tile needs --name"),
    ("--overwrite", "--overwrite needs --name"),
    ("--anomalous_masks=m", "--anomalous_masks needs --anomalous"),
    ("--masks=robust", "--masks needs --anomalous_masks"),
    ("--name=a/b", "'a/b' is no name of a calibration"),
    ("--name=", "'' is no name"),
    (
      "--rate=0.1 --anomalous=a --anomalous_masks=m",
      "both thresholds have the best F1",
    ),
  ],
)
def test_flags_that_contradict_are_refused(given, message):
  values = flags.FlagValues()
  names = ("DEFINE_string", "DEFINE_float", "DEFINE_list", "DEFINE_bool")
  with pytest.MonkeyPatch.context() as patch:
    for name in (*names, "DEFINE_integer"):
      define = functools.partial(getattr(flags, name), flag_values=values)
      patch.setattr(flags, name, define)
    calibrate.define_flags()
  values(["calibrate", "--workdir=nowhere", *given.split()])
  with pytest.raises(ValueError, match=message):
    calibrate.main(values)


def test_the_file_is_plain_json(images):
  run(images, reference_paths="normal", **product())
  values = json.loads((images / "calibrations/line3.json").read_text())
  assert values["threshold"]["pixel"] > 0 and len(values["references"]) == 4
  assert values["references"][0]["name"] == str(images / "normal/0.png")
  assert values["date"].endswith("+00:00") and len(values["run_digest"]) == 64
