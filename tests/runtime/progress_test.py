"""Progress lines: their interval and the time left."""

import pytest

from zsad_jax.runtime import progress


def test_the_time_left_leaves_out_the_first_report(capsys):
  now = 0.0
  reported = progress.Progress("parts", 1000, clock=lambda: now)
  now = 60.0  # Compilation and the first batch.
  reported.add(10)
  for _ in range(24):
    now += 1.0
    reported.add(10)
  assert capsys.readouterr().out.splitlines() == [
    "  parts: 10/1000 images",
    "  parts: 110/1000 images, 1:29 left",
    "  parts: 210/1000 images, 1:19 left",
  ]
  now += 60.0
  reported.update(1000)  # The results follow.
  assert not capsys.readouterr().out


@pytest.mark.parametrize(
  "seconds, text", [(0.4, "0:00"), (59.6, "1:00"), (3725.0, "1:02:05")]
)
def test_durations(seconds, text):
  assert progress.duration(seconds) == text
