"""Tests of decoding: Pillow, called directly, is the reference."""

import pickle
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers import small_run
from zsad_jax.datasets import index, preprocess, registry

RNG = np.random.default_rng(0)
RGB = Image.fromarray(RNG.integers(0, 256, (40, 30, 3), np.uint8))


def write(path, image, **options):
  image.save(path, **options)
  return str(path)


def reference(image, size):
  return np.asarray(
    image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
  )


@pytest.mark.parametrize("size", [17, 64])
@pytest.mark.parametrize(
  "mode, name",
  [
    ("RGB", "a.png"),
    ("RGB", "größe.PNG"),
    ("RGB", "a.JPG"),
    ("RGB", "a.bmp"),
    ("RGBA", "a.png"),
    ("P", "a.png"),
    ("L", "a.png"),
    ("LA", "a.png"),
    ("1", "a.png"),
    ("CMYK", "a.jpg"),
    ("CMYK", "a.TIFF"),
  ],
)
def test_image_is_what_pillow_says(tmp_path, mode, name, size):
  path = write(tmp_path / name, RGB.convert(mode))
  with Image.open(path) as file:
    expected = reference(file, size)
  image = preprocess.load_image(path, size)
  assert image.dtype == np.uint8 and image.shape == (size, size, 3)
  np.testing.assert_array_equal(image, expected)


@pytest.mark.filterwarnings("error")  # Pillow warns of dropped transparency.
def test_palettes_are_not_interpolated(tmp_path):
  stripes = np.tile(np.array([0, 1], np.uint8), (32, 16))
  image = Image.fromarray(stripes).convert("P")
  image.putpalette([255, 0, 0, 0, 0, 255])
  path = write(tmp_path / "p.png", image, transparency=b"\x80\x40")
  loaded = preprocess.load_image(path, 8)
  assert (np.abs(loaded[2:-2, 2:-2].astype(int) - [127, 0, 128]) < 3).all()


def test_camera_orientation_is_applied(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # Turn by 90 degrees clockwise.
  path = write(tmp_path / "a.jpg", RGB, exif=exif, quality=95)
  with Image.open(path) as file:
    expected = reference(file.transpose(Image.Transpose.ROTATE_270), 20)
  np.testing.assert_array_equal(preprocess.load_image(path, 20), expected)
  assert preprocess.open_image(path).size == (40, 30)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
@settings(max_examples=20, deadline=None)
@given(value=st.integers(4096, 65535) | st.just(0))
def test_16_bit_is_scaled(tmp_path_factory, name, value):
  path = tmp_path_factory.mktemp("deep") / name
  write(path, Image.fromarray(np.full((4, 4), value, np.uint16)))
  image = preprocess.load_image(path, 2)
  np.testing.assert_array_equal(image, round(value * 255 / 65535))


def deep_color_png(path, value):
  """Write a PNG file of 16 bits per channel, which Pillow cannot."""
  row = b"\0" + np.full((4, 3), value, ">u2").tobytes()
  chunks = [
    (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)),
    (b"IDAT", zlib.compress(4 * row)),
    (b"IEND", b""),
  ]
  path.write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + b"".join(
      struct.pack(">I", len(data))
      + kind
      + data
      + struct.pack(">I", zlib.crc32(kind + data))
      for kind, data in chunks
    )
  )
  return path


@pytest.mark.parametrize("value", [1, 255, 1023, 4095])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "color.png"])
def test_16_bit_of_fewer_bits_is_refused(tmp_path, name, value):
  path = tmp_path / name
  if name == "color.png":
    deep_color_png(path, max(value, 256))  # Below 256, Pillow's is all black.
  else:
    write(path, Image.fromarray(np.full((4, 4), value, np.uint16)))
  with pytest.raises(ValueError, match=f"{name}.*no value of 4096"):
    preprocess.load_image(path, 4)


@pytest.mark.parametrize("color", [False, True])
def test_open_images_of_fewer_bits_are_refused(tmp_path, color):
  path = deep_color_png(tmp_path / "a.png", 4095)
  if not color:
    write(path, Image.fromarray(np.full((4, 4), 4095, np.uint16)))
  with Image.open(path) as file, pytest.raises(ValueError, match="of 4096"):
    preprocess.convert_image(file, "the image")


def test_a_dark_part_of_a_16_bit_image_is_read(tmp_path):
  """A part may be dark: the whole image is what is checked."""
  values = np.zeros((8, 8), np.uint16)
  values[:4], values[4:] = 300, 65535
  path = write(tmp_path / "a.png", Image.fromarray(values))
  found = preprocess.load_image(index.part(path, (0, 0, 4, 4)), 4)
  np.testing.assert_array_equal(found, 1)


@pytest.mark.parametrize("value", [4096, 65535])
def test_16_bit_colors(tmp_path, value):
  image = preprocess.load_image(deep_color_png(tmp_path / "a.png", value), 4)
  np.testing.assert_array_equal(image, value >> 8)


@pytest.mark.parametrize(
  "array, message",
  [
    (np.full((4, 4), 70000, np.int32), "more than 16 bits"),
    (np.ones((4, 4), np.float32), "no known maximum"),
  ],
)
def test_32_bit_is_refused(tmp_path, array, message):
  path = write(tmp_path / "deep.tif", Image.fromarray(array))
  with pytest.raises(ValueError, match=rf"deep\.tif.*{message}"):
    preprocess.load_image(path, 4)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif"])
def test_damaged_files_are_named(tmp_path, name):
  path = tmp_path / name
  write(path, RGB)
  path.write_bytes(path.read_bytes()[:300])
  with pytest.raises(ValueError, match=rf"{name}: cannot be read"):
    preprocess.load_image(path, 8)
  path.write_bytes(b"not an image")
  with pytest.raises(ValueError, match=rf"{name}: cannot be read"):
    preprocess.load_image(path, 8)
  path.write_bytes(b"")
  with pytest.raises(
    preprocess.Unreadable, match=rf"{name}: .* \(the file is empty\)"
  ) as caught:
    preprocess.read_size(path)
  assert caught.value.reason == "the file is empty"
  assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
  path.unlink()
  with pytest.raises(ValueError, match=rf"{name}: the file does not exist"):
    preprocess.load_image(path, 8)


@pytest.mark.parametrize(
  "values, dtype",
  [
    ([0, 1], np.uint8),
    ([0, 7, 255], np.uint8),
    ([0, 1, 300], np.uint16),
    ([False, True], bool),
  ],
)
@pytest.mark.parametrize("size", [15, 33])
def test_mask_is_what_pillow_says(tmp_path, values, dtype, size):
  array = np.kron(RNG.choice(values, (8, 6)), np.ones((5, 5))).astype(dtype)
  path = write(tmp_path / "m.png", Image.fromarray(array))
  image = write(tmp_path / "a.png", RGB)
  binary = Image.fromarray(((array > 0) * 255).astype(np.uint8))
  expected = (
    np.asarray(binary.resize((size, size), Image.Resampling.BILINEAR)) / 255
    > 0.5
  )
  mask = preprocess.load_mask(path, image, size)
  assert mask.dtype == np.uint8
  np.testing.assert_array_equal(mask, expected)


def test_a_lossy_mask_is_read_at_one_half(tmp_path):
  drawn = np.zeros((64, 64), np.uint8)
  drawn[16:48, 20:40] = 255
  drawn[30, 5:60] = 255
  for name in ("mask.jpg", "image.png", "two.png"):
    Image.fromarray(drawn).save(tmp_path / name, quality=95)
  Image.fromarray(drawn // 255).save(tmp_path / "numbers.png")
  read = lambda name, lossy: preprocess.load_mask(
    tmp_path / name, tmp_path / "image.png", 64, lossy=lossy
  )
  assert read("mask.jpg", False).sum() > drawn.sum() / 255  # It rings.
  for name in ("mask.jpg", "two.png", "numbers.png"):
    np.testing.assert_array_equal(read(name, True), drawn // 255)


def test_which_masks_are_lossy_is_known_of_data_sets(tmp_path):
  for folder in ("images", "masks"):
    (tmp_path / "Kvasir-SEG" / folder).mkdir(parents=True)
    grey = Image.new("L", (8, 8), 255)
    grey.save(tmp_path / "Kvasir-SEG" / folder / "a.jpg")
  small_run.write_mvtec(tmp_path / "parts")
  known = {"kvasir": tmp_path, str(tmp_path / "parts"): None}
  for name, root in known.items():
    found = [
      registry.open_dataset(name, data_root=root, masks=masks).test
      for masks in ("compat", "robust")
    ]
    assert not any(s.lossy_mask for s in found[0])
    assert all(s.lossy_mask for s in found[1])
  small_run.write_mvtec(tmp_path / "mvtec")  # Its masks may be numbers.
  found = registry.open_dataset("mvtec", data_root=tmp_path, masks="robust")
  assert not any(s.lossy_mask for s in found.test)
  with pytest.raises(ValueError, match="config.masks is one of compat, rob"):
    registry.open_dataset("kvasir", data_root=tmp_path, masks="half")


def test_mask_of_another_size_is_refused(tmp_path):
  image = write(tmp_path / "a.png", RGB)
  mask = write(tmp_path / "m.png", Image.new("L", (30, 41)))
  message = r"m\.png: the mask is 30 x 41 .*a\.png is 30 x 40"
  with pytest.raises(ValueError, match=message):
    preprocess.load_mask(mask, image, 8)
  with pytest.raises(ValueError, match=message):
    preprocess.open_pair(index.Sample(image, mask, "nut", "", 1))


def test_a_sample_without_mask_has_an_empty_one(tmp_path):
  sample = index.Sample(write(tmp_path / "a.png", RGB), "", "nut", "", 0)
  image, mask = preprocess.open_pair(sample)
  assert mask.size == image.size == (30, 40) and mask.getbbox() is None


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
  path = tmp_path / "bomb.png"
  Image.new("1", (30_000, 20_000)).save(path)
  with pytest.raises(ValueError, match=r"bomb\.png: .*30000 x 20000 pixels"):
    preprocess.load_image(path, 16)
  monkeypatch.setattr(preprocess, "MAX_PIXELS", 10)
  Image.new("RGB", (4, 3)).save(tmp_path / "small.png")
  with pytest.raises(ValueError, match="4 x 3 pixels are more than 10"):
    preprocess.load_image(tmp_path / "small.png", 16)


MODES = ("RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "YCbCr")
ENDINGS = {
  "CMYK": ("jpg", "tif"),
  "YCbCr": ("jpg", "tif"),
  "RGBA": ("png", "tif"),
  "LA": ("png",),
  "P": ("png", "bmp"),
  "1": ("png", "tif"),
}


@pytest.mark.parametrize("number", range(100))
def test_a_hundred_mixed_images_are_those_of_the_papers(number, tmp_path):
  """To RGB, bicubic to 518 px; masks as > 0, bilinear, > 0.5: bit by bit."""
  rng = np.random.default_rng(number)
  mode = MODES[number % len(MODES)]
  ending = rng.choice(ENDINGS.get(mode, ("png", "jpg", "bmp", "tif")))
  width, height = map(int, rng.integers(20, 800, 2))
  small = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
  image = Image.fromarray(small).resize((width, height), Image.BICUBIC)
  path = tmp_path / f"{mode}.{ending}"
  image.convert(mode).save(path)
  mask_path = tmp_path / "mask.png"
  defect = rng.random((height, width)) < rng.uniform(0.2, 0.8)
  Image.fromarray(defect * np.uint8(rng.integers(1, 256))).convert("L").save(
    mask_path
  )

  with Image.open(path) as file:
    wanted = file.convert("RGB").resize((518, 518), Image.BICUBIC)
  found = preprocess.load_image(path, 518)
  np.testing.assert_array_equal(found, np.asarray(wanted))
  with Image.open(mask_path) as file:
    binary = Image.fromarray(255 * (np.array(file) > 0).astype(np.uint8))
  resized = np.asarray(binary.resize((518, 518), Image.BILINEAR)) / 255 > 0.5
  found = preprocess.load_mask(mask_path, path, 518)
  np.testing.assert_array_equal(found, resized)
