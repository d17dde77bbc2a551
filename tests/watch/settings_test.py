"""Settings of a folder of watched results."""

import pytest

from zsad_jax.runs import opening
from zsad_jax.watch import settings


def test_other_settings_are_refused_by_name(tmp_path):
  settings.check(tmp_path, {"--threshold": 0.5, "--save": ["maps"]})
  settings.check(tmp_path, {"--threshold": 0.5, "--save": ["maps"]})
  with pytest.raises(ValueError, match="the threshold was 0.5, and is 0.6 now"):
    settings.check(tmp_path, {"--threshold": 0.6, "--save": ["maps"]})
  with pytest.raises(ValueError, match="--save was .*, and is not given"):
    settings.check(tmp_path, {"--threshold": 0.5})
  with pytest.raises(ValueError, match="results of --watch"):
    settings.refuse(tmp_path)
  other = tmp_path / "other"
  other.mkdir()
  (other / "scores.csv").write_text("image,score\n")
  with pytest.raises(ValueError, match="without --watch"):
    settings.check(other, {})


def calibrated(date, threshold, **other):
  return {
    "--calibration": "line3",
    "--workdir": "run",
    opening.CALIBRATED: date,
    "--threshold": threshold,
    **other,
  }


def test_a_calibration_that_was_made_again_is_named(tmp_path):
  old, new = "2026-11-26T10:00:00+00:00", "2026-11-27T08:00:00+00:00"
  first = calibrated(old, 0.024177880957722664)
  settings.check(tmp_path, first)
  settings.check(tmp_path, first)
  with pytest.raises(ValueError) as caught:
    settings.check(tmp_path, calibrated(new, 0.019182445481419563))
  text = str(caught.value)
  assert f"--calibration=line3 of {old}, which was made again on {new}" in text
  assert "the threshold was 0.02418, and is 0.01918 now" in text
  assert "another --output" in text and "--threshold" not in text
  with pytest.raises(ValueError, match=r"made again on [^ ]*00\. Choose"):
    settings.check(tmp_path, first | {opening.CALIBRATED: new})
  # Not the same calibration: that is the difference.
  for name in ("--workdir", "--calibration"):
    with pytest.raises(ValueError, match=f"{name} was .*, and is .x. now"):
      settings.check(tmp_path, calibrated(new, 0.5, **{name: "x"}))
  # Numbers are told apart.
  with pytest.raises(ValueError, match="0.024177881, and is 0.024177891 now"):
    settings.check(tmp_path, calibrated(old, 0.024177891))


def test_a_folder_without_the_date_of_its_calibration_goes_on(tmp_path):
  now = calibrated("2026-11-27T08:00:00+00:00", 0.5)
  former = {k: v for k, v in now.items() if k != opening.CALIBRATED}
  settings.check(tmp_path, former)
  settings.check(tmp_path, now)
  with pytest.raises(ValueError, match="the threshold was 0.5, and is 0.6 now"):
    settings.check(tmp_path, now | {"--threshold": 0.6})
