"""Masks: what was drawn is read, whatever the encoding, or refused by name."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from zsad_jax.datasets import (
  cache,
  index,
  masks,
  pipeline,
  preprocess,
  registry,
  verification,
)
from zsad_jax.datasets.masks import Finding


def codes(drawn, rng, dtype, low, high):
  """Return random values that are 0 exactly where nothing is drawn."""
  values = rng.integers(low, high, drawn.shape, endpoint=True)
  values[values == 0] = 1
  return np.where(drawn, values, 0).astype(dtype)


def grey(drawn, rng):
  return Image.fromarray(codes(drawn, rng, np.uint8, 1, 255))


def indexed(drawn, rng):
  image = Image.fromarray(codes(drawn, rng, np.uint8, 1, rng.integers(2, 255)))
  image = Image.frombytes("P", image.size, image.tobytes())
  image.putpalette(rng.integers(0, 256, 768).tolist())
  return image


def big_endian(drawn, rng):
  values = codes(drawn, rng, ">u2", 1, 65535)
  return Image.frombytes("I;16B", drawn.shape[::-1], values.tobytes())


def coloured(drawn, rng):
  values = rng.integers(0, 3, (*drawn.shape, 3))
  values[..., rng.integers(3)] += 1  # At least one channel is not 0.
  return Image.fromarray((values * drawn[..., None]).astype(np.uint8))


def floats(drawn, rng):
  values = rng.normal(size=drawn.shape) * 10.0 ** rng.integers(-9, 9)
  values[values == 0] = 1e-3
  return Image.fromarray(np.where(drawn, values, 0).astype(np.float32))


def with_alpha(drawn, rng, mode):
  """Return a mask in the colours, with constant, equal or unrelated alpha."""
  image = coloured(drawn, rng) if mode == "RGBA" else grey(drawn, rng)
  alpha = (
    np.full(drawn.shape, rng.integers(256)),
    drawn * 200,
    rng.integers(0, 256, drawn.shape),
    rng.integers(1, 256, drawn.shape),
  )[rng.integers(4)]
  image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
  return image


def in_alpha(drawn, rng, mode):
  """Return a mask in the alpha channel, on one colour or on many."""
  bands = len(mode) - 1
  values = rng.integers(0, 256, (*drawn.shape, bands))
  if rng.random() < 0.7:
    values[:] = values[0, 0]
  alpha = codes(drawn, rng, np.uint8, 1, 255)
  image = Image.fromarray(values.astype(np.uint8).squeeze())
  image.putalpha(Image.fromarray(alpha))
  return image


ENCODINGS = {
  "bits": (lambda d, r: Image.fromarray(d), ("png", "tif", "bmp")),
  "grey": (grey, ("png", "tif", "bmp", "pgm")),
  "indexed": (indexed, ("png", "tif", "bmp")),
  "colours": (coloured, ("png", "tif", "bmp", "webp")),
  "16 bits": (
    lambda d, r: Image.fromarray(codes(d, r, np.uint16, 1, 65535)),
    ("png", "tif", "pgm"),
  ),
  "12 bits": (
    lambda d, r: Image.fromarray(codes(d, r, np.uint16, 1, 4095)),
    ("png", "tif"),
  ),
  "big endian": (big_endian, ("tif",)),
  "signed": (
    lambda d, r: Image.fromarray(codes(d, r, np.int32, -(2**31), 2**31 - 1)),
    ("tif",),
  ),
  "floats": (floats, ("tif",)),
  "grey, alpha": (lambda d, r: with_alpha(d, r, "LA"), ("png",)),
  "colours, alpha": (lambda d, r: with_alpha(d, r, "RGBA"), ("png", "tif")),
  "in alpha of grey": (lambda d, r: in_alpha(d, r, "LA"), ("png",)),
  "in alpha": (lambda d, r: in_alpha(d, r, "RGBA"), ("png", "tif")),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=25, deadline=None)
@given(
  seed=st.integers(0, 2**32 - 1),
  height=st.integers(2, 9),
  width=st.integers(2, 9),
  share=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_what_was_drawn_is_read_or_refused(
  tmp_path_factory, encoding, seed, height, width, share
):
  rng = np.random.default_rng(seed)
  drawn = rng.random((height, width)) < share
  drawn[0, 0], drawn[-1, -1] = False, True
  draw, endings = ENCODINGS[encoding]
  folder = tmp_path_factory.mktemp("mask")
  path = folder / f"m.{rng.choice(endings)}"
  draw(drawn, rng).save(
    path,
    **({"lossless": True, "exact": True} if path.suffix == ".webp" else {}),
  )
  Image.new("RGB", (width, height)).save(folder / "image.png")
  sample = index.Sample(str(folder / "image.png"), str(path), "nut", "", 1)
  try:
    _, found = preprocess.open_pair(sample)
  except ValueError as error:
    assert str(error).startswith(f"{path}: ") and "alpha" in encoding
  else:
    np.testing.assert_array_equal(np.asarray(found), drawn * 255)


def test_transparent_indices_that_contradict_are_refused(tmp_path):
  image = Image.frombytes("P", (4, 1), bytes([0, 1, 1, 2]))
  image.putpalette([0] * 768)
  image.save(tmp_path / "agree.png", transparency=bytes([0, 255, 255]))
  image.save(tmp_path / "differ.png", transparency=bytes([255, 0, 255]))
  np.testing.assert_array_equal(
    preprocess.read_mask(tmp_path / "agree.png"), [[0, 1, 1, 1]]
  )
  with pytest.raises(ValueError, match=r"differ\.png: the transparency"):
    preprocess.read_mask(tmp_path / "differ.png")


def png_with_16_bits_in_colours(path):
  """Write a PNG file of colour type 2 and 16 bits, which Pillow does not."""
  rows = b"".join(b"\0" + bytes(24) for _ in range(4))
  chunk = lambda kind, data: (
    struct.pack(">I", len(data))
    + kind
    + data
    + struct.pack(">I", zlib.crc32(kind + data))
  )
  path.write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(rows))
    + chunk(b"IEND", b"")
  )


def test_files_that_pillow_reads_in_part_are_refused(tmp_path):
  page = Image.new("L", (4, 4))
  page.save(tmp_path / "pages.tif", save_all=True, append_images=[page] * 2)
  png_with_16_bits_in_colours(tmp_path / "deep.png")
  nan = np.full((4, 4), np.nan, np.float32)
  Image.fromarray(nan).save(tmp_path / "nan.tif")
  for name, message in (
    ("pages.tif", "a mask of 3 pages"),
    ("deep.png", "16 bits in each of several channels"),
    ("nan.tif", "NaN or infinite"),
  ):
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
      preprocess.read_mask(tmp_path / name)


def own_data(folder, mask, *, hw=(16, 24), exif=None, name="b.png"):
  """Write a plain data set with a mask; return its samples' data set."""
  for part in ("normal", "anomalous", "masks"):
    (folder / part).mkdir(parents=True, exist_ok=True)
  image = Image.new("RGB", hw[::-1], (90, 80, 70))
  Image.new("RGB", image.size, (20, 80, 70)).save(folder / "normal/a.png")
  image.save(folder / "anomalous/b.jpg", **({"exif": exif} if exif else {}))
  mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
  mask.save(folder / "masks" / name)
  return registry.open_dataset(str(folder))


def box(hw=(16, 24), value=255, background=0):
  values = np.full(hw, background, np.uint8)
  values[4:9, 5:12] = value
  return values


def void():
  values = box(value=1)
  values[3, 5:12] = 255
  return values


def smooth():
  return np.asarray(Image.fromarray(box()).filter(ImageFilter.BoxBlur(1)))


@pytest.mark.parametrize(
  "values, finding",
  [
    (box(), Finding.NONE),
    (box(value=1), Finding.NONE),
    (np.maximum(box(value=2), np.roll(box(value=1), 5)), Finding.NONE),
    (box(value=0), Finding.EMPTY),
    (box(value=0, background=255), Finding.INVERTED),
    (box(value=255, background=1), Finding.INVERTED | Finding.VOID),
    (np.full((16, 24), 255, np.uint8), Finding.INVERTED),
    (void(), Finding.VOID),
    (smooth(), Finding.GRADED),
    (np.pad(np.ones((10, 20), np.uint8), ((3, 3), (2, 2))), Finding.NONE),
  ],
)
def test_suspicious_masks_are_found(tmp_path, values, finding):
  dataset = own_data(tmp_path / "set", values)
  sample = dataset.test[1]
  assert preprocess.inspect_pair(sample).findings == finding
  problems, notes = verification.verify(dataset, None)
  assert bool(problems) == bool(finding & (Finding.EMPTY | Finding.INVERTED))
  assert bool(notes) == bool(finding & (Finding.VOID | Finding.GRADED))
  assert all("masks/b.png" in text for text in problems + notes)
  everything = verification.mask_notes([(sample, finding)], None)
  assert len(everything) == finding.bit_count()


def test_robust_counts_degrees_not_numbers(tmp_path):
  drawn = box() > 0
  Image.fromarray(box()).save(tmp_path / "a.jpg", quality=60)
  Image.fromarray(box(value=90)).save(tmp_path / "dark.jpg", quality=60)
  numbers = np.where(drawn, 2, 0).astype(np.uint8)
  numbers[4, 5] = 1
  Image.fromarray(numbers).save(tmp_path / "numbers.png")
  for name in ("a.jpg", "dark.jpg", "numbers.png"):
    with Image.open(tmp_path / name) as file:
      found = masks.read(file, robust=True)
    np.testing.assert_array_equal(masks.marked(found.image), drawn)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), quality=st.integers(30, 95))
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_compressed_masks_are_read_as_published(
  tmp_path_factory, mode, seed, quality
):
  """The papers' code converts masks to grey and compares with 0."""
  rng = np.random.default_rng(seed)
  path = tmp_path_factory.mktemp("lossy") / "m.jpg"
  values = np.kron(rng.integers(0, 2, (4, 4)), np.ones((7, 9))) * 255
  image = Image.fromarray(values.astype(np.uint8)).convert(mode)
  if seed % 2 and mode == "RGB":
    image = Image.merge(
      "RGB", [image.getchannel(0)] * 2 + [Image.new("L", image.size)]
    )
  image.save(path, quality=quality)
  with Image.open(path) as file:
    expected = np.asarray(file.convert("L")) > 0
  np.testing.assert_array_equal(preprocess.read_mask(path), expected)


@pytest.mark.parametrize("lossless", [False, True])
def test_compression_of_webp_is_told(tmp_path, lossless):
  image = Image.fromarray(box((64, 96))).convert("RGB")
  image.save(tmp_path / "m.webp", lossless=lossless, exact=True)
  with Image.open(tmp_path / "m.webp") as file:
    found = masks.read(file)
  assert found.findings == (Finding.NONE if lossless else Finding.GRADED)
  with Image.open(tmp_path / "m.webp") as file:
    found = masks.read(file, robust=True)
  np.testing.assert_array_equal(masks.marked(found.image), box((64, 96)) > 0)


def test_palettes_whose_first_colour_may_be_the_defect(tmp_path):
  image = Image.frombytes("P", (24, 16), (box() // 255).tobytes())
  for name, palette, finding in (
    ("red on white", [255, 255, 255, 255, 0, 0], Finding.NONE),
    ("black on white", [255, 255, 255, 0, 0, 0], Finding.PALETTE),
    ("white on black", [0, 0, 0, 255, 255, 255], Finding.NONE),
  ):
    image.putpalette(palette)
    pair = preprocess.inspect_pair(own_data(tmp_path / name, image).test[1])
    assert pair.findings == finding
    np.testing.assert_array_equal(np.asarray(pair.mask), box())


def test_ways_to_read_masks_can_be_combined(tmp_path):
  assert masks.parse("robust, resize") == (True, True)
  for wrong in ("compat,robust", "half", ""):
    with pytest.raises(ValueError, match="config.masks is one of compat"):
      masks.parse(wrong)
  small = Image.fromarray(box()).resize((12, 8), Image.Resampling.NEAREST)
  dataset = own_data(tmp_path / "set", small)
  problems, _ = verification.verify(dataset, None)
  assert "12 x 8" in problems[0] and "--masks=resize" in problems[0]
  dataset = registry.open_dataset(str(tmp_path / "set"), masks="resize")
  problems, notes = verification.verify(dataset, None)
  assert not problems and "1 masks were resized" in notes[0]
  pair = preprocess.inspect_pair(dataset.test[1])
  expected = small.resize((24, 16), Image.Resampling.NEAREST)
  np.testing.assert_array_equal(np.asarray(pair.mask), np.asarray(expected))


@pytest.mark.parametrize("hw", [(16, 24), (16, 16)])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_images_that_exif_turns_are_told(tmp_path, hw, orientation):
  exif = Image.Exif()
  exif[masks.ORIENTATION] = orientation
  dataset = own_data(tmp_path / "stored", box(hw), hw=hw, exif=exif)
  problems, notes = verification.verify(dataset, None)
  if orientation > 4 and hw == (16, 24):
    assert "stored as 24 x 16" in problems[0] and "EXIF" in problems[0]
    # Resizing a mask that lies across would be no remedy.
    dataset = registry.open_dataset(dataset.root, masks="resize")
    assert verification.verify(dataset, None)[0] == problems
    turned = Image.fromarray(box(hw)).transpose(Image.Transpose.ROTATE_270)
    dataset = own_data(tmp_path / "turned", turned, hw=hw, exif=exif)
    assert verification.verify(dataset, None) == ([], [])
  else:
    assert not problems and "EXIF orientation" in notes[0]


def test_findings_reach_the_reader_of_batches(tmp_path):
  """With a cache of decoded images, too, when they are read again."""
  dataset = own_data(tmp_path / "set", box(value=0))
  decoded = cache.DecodedCache(tmp_path / "cache")
  for _ in range(2):
    batches = pipeline.eval_batches(
      dataset.test,
      class_names=dataset.class_names,
      image_size=16,
      batch_size=2,
      cache=decoded,
    )
    assert "finding" not in next(batches)
    assert batches.findings == {1: Finding.EMPTY}
