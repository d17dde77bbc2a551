import dataclasses
import io

import numpy as np
import PIL.Image
import pytest

from tests.helpers import fake_detector
from zsad_jax.demo import display, scoring
from zsad_jax.reporting import overlays

LIMITS = scoring.Limits(max_bytes=20_000, max_pixels=10_000, max_images=3)
STORED = fake_detector.LIMITS


class Detector(fake_detector.FakeDetector):
  """A fake detector that counts and names its references."""

  def __init__(self):
    super().__init__()
    self.encoded = []

  def with_references(self, images):
    new = Detector()
    new.limits = dataclasses.replace(STORED, image_score=0.9)
    self.encoded.append([image.filename for image in images])
    new.sizes = self.sizes
    return new


@pytest.fixture
def scorer():
  return scoring.Scorer(Detector(), LIMITS, side=16)


@pytest.fixture
def photo(tmp_path):
  def write(name="photo.png", value=50, size=(24, 16)):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    fake_detector.write_image(path, value, size)
    return str(path)

  return write


def test_results_are_those_of_the_detector(scorer, photo):
  paths = [photo("a/x.png"), photo("b/x.png", 200), photo("y.jpg", 90)]
  done = []
  batch = scorer.score(paths, progress=lambda *at: done.append(at))
  assert done == [(1, 3), (2, 3), (3, 3)]
  assert [item.name for item in batch.scored] == ["x.png", "x.png (2)", "y.jpg"]
  assert batch.messages == () and batch.limits == STORED
  for path, item in zip(paths, batch.scored):
    expected = fake_detector.FakeDetector()(path)
    assert item.detection.score == expected.score
    np.testing.assert_array_equal(item.detection.raw_map, expected.raw_map)
    assert item.image.size == (16, 11)  # The longest side is 16.


def test_images_that_cannot_be_scored_have_a_message(scorer, photo, tmp_path):
  text = tmp_path / "notes.png"
  text.write_text("hello")
  cut = tmp_path / "cut.png"
  with open(photo(), "rb") as file:
    cut.write_bytes(file.read()[:-30])
  batch = scorer.score([str(text), photo(), str(cut)])
  assert [item.name for item in batch.scored] == ["photo.png"]
  assert len(batch.messages) == 2
  for message, name in zip(batch.messages, ("notes.png", "cut.png")):
    assert message.startswith(name) and str(tmp_path) not in message


def test_large_uploads_are_refused_by_their_header(scorer, photo, tmp_path):
  noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3))
  data = io.BytesIO()
  PIL.Image.fromarray(noise.astype(np.uint8)).save(data, "PNG")
  large = tmp_path / "large.png"
  large.write_bytes(data.getvalue())
  wide = photo("wide.png", size=(200, 51))
  batch = scorer.score([str(large), wide])
  assert batch.scored == ()
  size = large.stat().st_size
  assert (
    f"large.png: the file has {size} bytes; at most 20000"
    in (batch.messages[0])
  )
  assert (
    "wide.png: the image has 200 x 51 pixels; at most 10000"
    in (batch.messages[1])
  )


def test_calls_without_a_result_are_refused(scorer, photo):
  for paths, references, reason in (
    ([], [], "no image"),
    ([photo()] * 4, [], "4 images; at most 3"),
    ([photo()], [photo()] * 4, "4 references; at most 3"),
  ):
    with pytest.raises(scoring.Refused, match=reason):
      scorer.score(paths, references)


def test_references_are_encoded_once(scorer, photo, tmp_path):
  few = [photo("a.png", 10), photo("b.png", 20)]
  for _ in range(2):
    batch = scorer.score([photo()], few)
    assert (batch.num_references, batch.limits.image_score) == (2, 0.9)
  assert scorer._detector.encoded == [["a.png", "b.png"]]
  scorer.score([photo()], few[:1])
  assert len(scorer._detector.encoded) == 2
  assert scorer.score([photo()]).limits == STORED
  text = tmp_path / "text.png"
  text.write_text("hello")
  with pytest.raises(scoring.Refused, match="Reference: text.png"):
    scorer.score([photo()], [str(text)])


def test_references_of_a_calibration_are_not_replaced(photo):
  scorer = scoring.Scorer(
    Detector(), LIMITS, num_references=5, accepts_references=False
  )
  assert scorer.score([photo()]).num_references == 5
  with pytest.raises(scoring.Refused, match="calibration"):
    scorer.score([photo()], [photo()])


def test_errors_of_the_detector_are_messages(scorer, photo):
  scorer._detector.error = ValueError("photo.png is one of the references.")
  batch = scorer.score([photo()])
  assert batch.messages == ("photo.png is one of the references.",)
  scorer._detector.error = RuntimeError("secret")
  (message,) = scorer.score([photo()]).messages
  assert "internal error" in message and "secret" not in message


def test_a_threshold_changes_what_is_shown_but_not_the_model(scorer, photo):
  batch = scorer.score([photo(), photo("b.png", 200)])
  item = batch.scored[0]
  calls = list(scorer._detector.sizes)
  score = item.detection.score
  values = stored(batch)
  assert values == display.Chosen(0.5, 0.75)
  view = display.view(item, values)
  assert view.verdict.startswith("**normal**") and "<" in view.verdict
  assert len(view.regions) == len(item.detection.regions) == 1
  first = dict(zip(display.REGION_COLUMNS, view.regions[0]))
  assert (first["left"], first["top"]) == item.detection.regions[0].box[:2]
  expected = overlays.draw(item.image, item.detection)
  assert view.overlay.tobytes() == expected.tobytes()

  lower = display.chosen(batch, score, 0.0)
  view = display.view(item, lower)
  assert view.verdict.startswith("**anomalous**") and "slider" in view.verdict
  assert view.regions[0][5] == 24 * 16  # Every pixel.
  rows = display.result_rows(batch.scored, lower)
  assert [row[1] for row in rows] == ["anomalous", "anomalous"]
  assert "2 images, 2 anomalous." in display.summary(batch, lower)
  assert scorer._detector.sizes == calls
  assert item.detection.limits == STORED


def stored(batch):
  """The thresholds at the first positions of the sliders."""
  positions = [scale.start for scale in display.scales(batch)]
  return display.chosen(batch, *positions)


def with_limits(batch, **values):
  limits = dataclasses.replace(STORED, **values)
  return dataclasses.replace(batch, limits=limits)


def test_the_position_of_a_stored_threshold_is_its_exact_value(scorer, photo):
  batch = scorer.score([photo()])
  batch = with_limits(batch, image_score=0.123456789, pixel=0.7654321)
  step = display.scales(batch)[1].step
  for shift in (0.0, 0.499):  # A browser rounds to steps.
    values = display.chosen(
      batch, 0.123456789 + shift * display.STEP, 0.7654321 - shift * step
    )
    assert values == display.Chosen(0.123456789, 0.7654321)
  moved = display.chosen(batch, 0.1237, 0.767)
  assert moved == display.Chosen(0.1237, 0.767)


def test_the_slider_of_pixels_ends_at_the_largest_value_of_maps(scorer, photo):
  batch = scorer.score([photo(value=20), photo("b.png", 30)])
  largest = max(item.detection.raw_map.max() for item in batch.scored)
  small = with_limits(batch, pixel=1e-5)
  scale = display.scales(small)[1]
  assert (scale.low, scale.stored, scale.start) == (0.0, 1e-5, 0.0)
  assert largest <= scale.high < largest + scale.step
  assert 200 <= scale.high / scale.step <= 2001
  beyond = with_limits(batch, image_score=1.2, pixel=1.5)
  score, pixel = display.scales(beyond)
  assert (score.high, pixel.high) == (1.2, 1.5)
  assert stored(beyond) == display.Chosen(1.2, 1.5)


def test_a_run_without_a_pixel_threshold_has_no_regions(scorer, photo):
  batch = with_limits(scorer.score([photo()]), pixel=None)
  item = batch.scored[0]
  view = display.view(item, stored(batch))
  assert (view.regions, view.note) == ([], display.NO_REGIONS)
  moved = display.chosen(batch, 0.5, 0.75)
  assert len(display.view(item, moved).regions) == 1


def test_names_of_files_are_no_markup():
  assert display.plain("a_b*<x>.png") == "a\\_b\\*\\<x\\>.png"
