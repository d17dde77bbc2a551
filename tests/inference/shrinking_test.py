"""The warning about images that are shrunk by a large factor."""

import logging

import pytest
from PIL import Image

from zsad_jax.inference import shrinking
from zsad_jax.inference.tiling import Tiling


def check(warning, size, tiling=None, name="a.png"):
  warning.check(name, size, side=100, patch_size=14, tiling=tiling)


@pytest.fixture
def messages(caplog, monkeypatch):
  """Return a function to the messages so far."""
  monkeypatch.setattr(logging.getLogger("zsad_jax"), "propagate", True)
  caplog.set_level(logging.WARNING, "zsad_jax")
  return lambda: [record.getMessage() for record in caplog.records]


def test_the_first_image_that_is_shrunk_too_much_is_named_once(messages):
  warning = shrinking.ShrinkWarning()
  for size in ((400, 400), (10, 399), (400, 1)):
    check(warning, size)
  assert not messages()
  check(warning, (300, 1000))
  check(warning, (5000, 1000), name="b.png")
  (message,) = messages()
  # A patch of 14 pixels is 140 pixels of the image.
  for part in (
    "a.png",
    "1000 x 300",
    "factor of 10.0",
    "about 140 ",
    "--tile=",
  ):
    assert part in message


def test_tiles_are_shrunk_as_well(messages):
  check(shrinking.ShrinkWarning(), (3000, 4000), Tiling(400))
  assert not messages()
  check(shrinking.ShrinkWarning(), (3000, 4000), Tiling(1000))
  assert "tiles of 1000 pixels" in messages()[0]


def test_the_first_image_with_a_single_tile_is_named_once(messages):
  warning = shrinking.ShrinkWarning()
  check(warning, (300, 401), Tiling(400))
  assert not messages()
  check(warning, (300, 400), Tiling(400))
  check(warning, (30, 40), Tiling(400), name="b.png")
  (message,) = messages()
  for part in ("a.png", "400 x 300", "--tile=400", "as a whole"):
    assert part in message


def test_messages_are_collected_for_each_image(messages):
  warning = shrinking.ShrinkWarning()
  for name, tiling, expected in (
    ("a.png", None, ["the image of 1000 x 300 pixels is shrunk by a factor"]),
    ("b.png", None, ["the image of 1000 x 300 pixels is shrunk by a factor"]),
    ("c.png", Tiling(1000), ["is not larger than a tile", "tiles of 1000 "]),
  ):
    with shrinking.collected() as found:
      check(warning, (300, 1000), tiling, name=name)
      check(warning, (300, 1000), tiling, name=name)  # Of another member.
      check(warning, (300, 300), name=name)
    assert len(found) == len(expected)
    for message, part in zip(found, expected):
      assert part in message and name not in message
  check(warning, (300, 2000))
  assert len(found) == 2
  assert [m.split(":")[1] for m in messages()] == [" a.png", " c.png"]


def test_files_are_not_decoded(messages, tmp_path, monkeypatch):
  paths = [str(tmp_path / f"{i}.jpg") for i in range(3)]
  for path, size in zip(paths, ((10, 10), (900, 500), (2000, 900))):
    Image.new("RGB", size).save(path)
  (tmp_path / "bad.jpg").write_bytes(b"no image")
  monkeypatch.setattr(Image.Image, "convert", None)
  shrinking.ShrinkWarning().check_files(
    [str(tmp_path / "bad.jpg"), *paths], side=100, patch_size=14
  )
  (message,) = messages()
  assert "1.jpg" in message and "900 x 500" in message
