"""The papers' data sets: miniature trees of every layout, whole and broken."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image

from zsad_jax.datasets import index, meta_json, preprocess, registry

RNG = np.random.default_rng(0)


def image(path, size=(12, 10), mode="RGB"):
  """Write a small image in the format of its suffix."""
  path.parent.mkdir(parents=True, exist_ok=True)
  shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
  pixels = RNG.integers(0, 255, shape).astype(np.uint8)
  Image.fromarray(pixels).save(path)


def mask(path, size=(12, 10), box=(2, 2, 6, 6), value=255):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.zeros((size[1], size[0]), np.uint8)
  left, top, right, bottom = box
  pixels[top:bottom, left:right] = value
  Image.fromarray(pixels).save(path)


def mvtec_layout(
  root,
  classes,
  *,
  good="good",
  suffix="_mask",
  ending="png",
  defect="broken",
  masks=True,
):
  """Two training, one normal and two anomalous images of each class."""
  for name in classes:
    for i in range(2):
      image(root / name / "train" / good / f"{i:03d}.{ending}")
      image(root / name / "test" / defect / f"{i:03d}.{ending}")
      if masks:
        mask(root / name / "ground_truth" / defect / f"{i:03d}{suffix}.png")
    image(root / name / "test" / good / f"000.{ending}")


def visa(root):
  rows = []
  for i in range(2):
    image(root / f"candle/Data/Images/Normal/{i:04d}.JPG")
    split = "train" if i else "test"
    rows.append(
      ("candle", split, "normal", f"candle/Data/Images/Normal/{i:04d}.JPG", "")
    )
  image(root / "candle/Data/Images/Anomaly/000.JPG")
  mask(root / "candle/Data/Masks/Anomaly/000.png", value=3)
  rows.append(
    (
      "candle",
      "test",
      "anomaly",
      "candle/Data/Images/Anomaly/000.JPG",
      "candle/Data/Masks/Anomaly/000.png",
    )
  )
  path = root / "split_csv/1cls.csv"
  path.parent.mkdir(parents=True)
  with path.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["object", "split", "label", "image", "mask"])
    writer.writerows(rows)


def kolektor(root):
  """Four images, of which one has a defect across a cut: ten normal strips."""
  for kos in (1, 2, 10, 11):
    image(root / f"kos{kos:02d}/Part0.jpg", (8, 31), "L")
    box = (1, 9, 4, 12) if kos == 10 else (0, 0, 0, 0)
    mask(root / f"kos{kos:02d}/Part0_label.bmp", (8, 31), box)


def dagm(root):
  for part, defect in (("Train", "0001"), ("Test", "0002")):
    for i in range(1, 4):
      image(root / f"Class1/{part}/{i:04d}.PNG", mode="L")
    mask(root / f"Class1/{part}/Label/{defect}_label.PNG")
    (root / f"Class1/{part}/Label/Labels.txt").write_text("1\n")


def aitex(root):
  size = (1024, 256)
  image(
    root / "NODefect_images/2306881-210020u/0001_000_05.png", (4096, 256), "L"
  )
  for stem in ("0044_019_04", "0003_002_00", "0100_025_08"):
    image(root / f"Defect_images/{stem}.png", size, "L")
  mask(root / "Mask_images/0003_002_00_mask.png", size, (300, 5, 310, 9))
  mask(root / "Mask_images/0044_019_04_mask1.png", size, (10, 5, 20, 9))
  mask(root / "Mask_images/0044_019_04_mask2.png", size, (1000, 5, 1010, 9))


def elpv(root):
  lines = []
  for i, probability in enumerate([0, 0, 0, 0, 1, 1 / 3], start=1):
    image(root / f"images/cell{i:04d}.png", mode="L")
    lines.append(f"images/cell{i:04d}.png  {probability:.16f}  mono")
  (root / "labels.csv").write_text("\n".join(lines) + "\n")


def mvtec_3d(root):
  for part, defect in (
    ("train", "good"),
    ("validation", "good"),
    ("test", "good"),
    ("test", "combined"),
  ):
    image(root / f"bagel/{part}/{defect}/rgb/000.png")
    (root / f"bagel/{part}/{defect}/xyz").mkdir()
    (root / f"bagel/{part}/{defect}/xyz/000.tiff").write_bytes(b"")
    if part == "test":
      mask(root / f"bagel/{part}/{defect}/gt/000.png")
  (root / "bagel/calibration").mkdir()


def real_iad(root):
  base, rows = root / "realiad_1024/usb", {"train": [], "test": []}
  for part, code, sample, view, masked in (
    ("train", "OK", "S0001", "C1", False),
    ("test", "OK", "S0002", "C1", False),
    ("test", "AK", "S0003", "C1", True),
    ("test", "OK", "S0003", "C2", False),  # The defect is not seen.
  ):
    folder = "OK" if sample != "S0003" else "NG/AK"
    stem = f"{folder}/{sample}/usb_{sample[1:]}_{folder[:2]}_{view}_2023"
    image(base / f"{stem}.jpg")
    if masked:
      mask(base / f"{stem}.png")
    rows[part].append(
      {
        "category": "usb",
        "anomaly_class": code,
        "image_path": f"{stem}.jpg",
        "mask_path": f"{stem}.png" if masked else None,
      }
    )
  path = root / "realiad_jsons/usb.json"
  path.parent.mkdir(parents=True)
  meta = {"prefix": "usb/", "normal_class": "OK", "pre_transform": None}
  path.write_text(json.dumps({"meta": meta, **rows}))


def head_ct(root):
  for i in range(3):
    image(root / f"head_ct/head_ct/{i:03d}.png")
  (root / "labels.csv").write_text("id, hemorrhage\n0, 1\n1, 0\n2, 0\n")


def states(normal, anomalous, *more, endings=("png", "JPG")):
  def write(root):
    for folder in (normal, anomalous, *more):
      for i, ending in enumerate(endings):
        image(root / folder / f"{i}.{ending}")

  return write


def pairs(images, masks, suffix="", image_ending="png", mask_ending="png"):
  def write(root):
    for i in range(2):
      image(root / images / f"a{i}.{image_ending}")
      mask(root / masks / f"a{i}{suffix}.{mask_ending}")

  return write


def mvtec(*classes, **options):
  return lambda root: mvtec_layout(root, classes, **options)


# Data set, how it is laid out, and what is found: categories and counts.
LAYOUTS = {
  "mvtec": (
    "mvtec",
    mvtec("carpet", "metal_nut"),
    ("carpet", "metal_nut"),
    (4, 2, 4),
  ),
  "visa": ("visa", visa, ("candle",), (1, 1, 1)),
  "visa 1cls": (
    "visa",
    mvtec("candle", ending="JPG", suffix="", defect="bad"),
    ("candle",),
    (2, 1, 2),
  ),
  "mpdd": ("mpdd", mvtec("tubes"), ("tubes",), (2, 1, 2)),
  "btad": (
    "btad",
    mvtec("01", good="ok", suffix="", ending="bmp", defect="ko"),
    ("01",),
    (2, 1, 2),
  ),
  "ksdd": ("ksdd", kolektor, ("ksdd",), (7, 3, 2)),
  "ksdd crops": ("ksdd", mvtec("SDD"), ("SDD",), (2, 1, 2)),
  "dagm": ("dagm", dagm, ("Class1",), (2, 2, 1)),
  "dagm balanced": (
    "dagm",
    mvtec("Class1", "Class2"),
    ("Class1", "Class2"),
    (4, 2, 4),
  ),
  "dtd": ("dtd", mvtec("Woven_001"), ("Woven_001",), (2, 1, 2)),
  "aitex": ("aitex", aitex, ("AITEX",), (12, 4, 3)),
  "aitex tiles": ("aitex", mvtec("AITEX"), ("AITEX",), (2, 1, 2)),
  "elpv": ("elpv", elpv, ("elpv",), (3, 1, 1)),
  "mvtec3d": ("mvtec3d", mvtec_3d, ("bagel",), (1, 1, 1)),
  "real_iad": ("real_iad", real_iad, ("usb",), (1, 2, 1)),
  "headct": ("headct", head_ct, ("headct",), (0, 2, 1)),
  "headct test": (
    "headct",
    mvtec("headct", defect="defect", masks=False),
    ("headct",),
    (2, 1, 2),
  ),
  "brainmri": (
    "brainmri",
    states("no", "yes", "brain_tumor_dataset/no"),
    ("brain_mri",),
    (0, 2, 2),
  ),
  "br35h": ("br35h", states("no", "yes", "pred"), ("br35h",), (0, 2, 2)),
  "covid": (
    "covid",
    states("NORMAL", "COVID-19", "Viral Pneumonia"),
    ("chest",),
    (0, 2, 2),
  ),
  "covid later": (
    "covid",
    states("Normal/images", "COVID/images", "COVID/masks"),
    ("chest",),
    (0, 2, 2),
  ),
  "lag": (
    "lag",
    states(
      "non_glaucoma/image",
      "suspicious_glaucoma/image",
      "non_glaucoma/attention_map",
      endings=("jpg",) * 1 + ("png", "bmp", "JPG"),
    ),
    ("LAG",),
    (3, 1, 4),
  ),
  "isic": (
    "isic",
    pairs(
      "ISBI2016_ISIC_Part1_Test_Data",
      "ISBI2016_ISIC_Part1_Test_GroundTruth",
      "_Segmentation",
      "jpg",
    ),
    ("isic",),
    (0, 0, 2),
  ),
  "clinicdb": (
    "clinicdb",
    pairs("images", "masks", image_ending="tif", mask_ending="tif"),
    ("ClinicDB",),
    (0, 0, 2),
  ),
  "colondb": ("colondb", pairs("images", "masks"), ("ColonDB",), (0, 0, 2)),
  "kvasir": (
    "kvasir",
    pairs("images", "masks", image_ending="jpg", mask_ending="jpg"),
    ("Kvasir",),
    (0, 0, 2),
  ),
  "endo": (
    "endo",
    pairs("images", "masks", image_ending="jpg", mask_ending="png"),
    ("endo",),
    (0, 0, 2),
  ),
  "tn3k": (
    "tn3k",
    pairs("test-image", "test-mask", image_ending="jpg", mask_ending="jpg"),
    ("tn3k",),
    (0, 0, 2),
  ),
}


def read(name, folder):
  return registry.read_entry(name, folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_indexed(layout, tmp_path):
  name, write, classes, counts = LAYOUTS[layout]
  write(tmp_path)
  found = read(name, tmp_path)
  assert (found.class_names, found.counts) == (classes, counts)
  assert {s.label for s in found.train} <= {0}
  entry = registry.ENTRIES[name]
  assert found.has_masks == entry.has_masks
  for sample in found.test:
    _, truth = preprocess.open_pair(sample)
    expected = bool(sample.label) and entry.has_masks
    assert bool(truth.getbbox()) == expected
  assert "published are" in registry.count_note(found, entry)


def test_every_entry_is_tried():
  tried = {name for name, *_ in LAYOUTS.values()}
  papers = {n for n, e in registry.ENTRIES.items() if e.folders}
  assert tried == papers and len(papers) == 22


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_index_is_read_back(layout, tmp_path):
  name, write, *_ = LAYOUTS[layout]
  write(tmp_path)
  found = read(name, tmp_path)
  if any("#xywh=" in s.image_path for s in found.test):
    with pytest.raises(ValueError, match="parts of files"):
      meta_json.dumps(found, str(tmp_path))
    return
  (tmp_path / "meta.json").write_text(meta_json.dumps(found, str(tmp_path)))
  again = meta_json.read(tmp_path)
  key = lambda s: (s.image_path, s.mask_path, s.class_name, s.label, s.view)
  assert [*map(key, again.test)] == [*map(key, found.test)]
  assert [*map(key, again.train)] == [*map(key, found.train)]


def test_strips_and_tiles_are_the_ones_of_the_preparation(tmp_path):
  kolektor(tmp_path)
  found = read("ksdd", tmp_path)
  box = lambda s: index.file_and_box(s.image_path)[1]
  damaged = [box(s) for s in found.test if s.label]
  assert damaged == [(0, 0, 8, 10), (0, 10, 8, 20)]
  aitex(tmp_path / "aitex")
  tiles = [s for s in read("aitex", tmp_path / "aitex").test if s.label]
  assert [(s.specie_name, box(s)[0]) for s in tiles] == [
    ("Broken_end", 256),
    ("Fuzzyball", 0),
    ("Fuzzyball", 768),
  ]
  picture, truth = preprocess.open_pair(tiles[-1])
  assert picture.size == truth.size == (256, 256)
  assert truth.getbbox() == (232, 5, 242, 9)


def test_views_of_a_sample_share_its_group(tmp_path):
  real_iad(tmp_path)
  found = read("real_iad", tmp_path).test
  assert [(s.view, s.label) for s in found] == [("C1", 0), ("C1", 1), ("C2", 0)]
  assert found[1].group == found[2].group != found[0].group
  text = meta_json.dumps(read("real_iad", tmp_path), str(tmp_path))
  for indexed in (text, re.sub(r',\s+"sample_id": "\w+"', "", text)):
    (tmp_path / meta_json.META).write_text(indexed)
    again = read("real_iad", tmp_path).test
    assert again == found


BREAKS = {
  "visa": (
    lambda r: (r / "candle/Data/Masks/Anomaly/000.png").unlink(),
    r"1cls\.csv, line 4: .*000\.png does not exist",
  ),
  "ksdd": (
    lambda r: (r / "kos02/Part0_label.bmp").unlink(),
    r"Part0\.jpg: its label Part0_label\.bmp does not exist",
  ),
  "mvtec3d": (
    lambda r: (r / "bagel/test/combined/gt/000.png").unlink(),
    r"000\.png: anomalous, but .*gt/000\.png does not exist",
  ),
  "real_iad": (
    lambda r: next(r.rglob("usb_0002*.jpg")).unlink(),
    r"usb\.json: test\[0\]: .* does not exist",
  ),
  "headct": (
    lambda r: (r / "head_ct/head_ct/001.png").unlink(),
    r"labels\.csv, line 3: expected the number of an image",
  ),
  "elpv": (
    lambda r: (r / "images/cell0002.png").unlink(),
    r"labels\.csv: line 2: .*cell0002\.png does not exist",
  ),
  "br35h": (
    lambda r: [p.unlink() for p in (r / "yes").iterdir()],
    r"no images in a folder yes",
  ),
  "kvasir": (
    lambda r: (r / "masks/a1.jpg").unlink(),
    r"a1\.jpg: anomalous, but no mask has its name",
  ),
  "mvtec": (
    lambda r: next(r.rglob("001_mask.png")).unlink(),
    r"001\.png: anomalous, but no mask has its name",
  ),
}


@pytest.mark.parametrize("layout", BREAKS)
def test_a_broken_layout_names_the_file(layout, tmp_path):
  name, write, *_ = LAYOUTS[layout]
  spoil, message = BREAKS[layout]
  write(tmp_path)
  spoil(tmp_path)
  with pytest.raises(ValueError, match=message):
    read(name, tmp_path)


def test_another_folder_is_named_with_what_was_expected(tmp_path):
  (tmp_path / "stuff").mkdir()
  with pytest.raises(ValueError, match="KolektorSDD: meta.json; kosNN.*stuff"):
    read("ksdd", tmp_path)


def test_known_other_counts_are_named():
  entry = registry.ENTRIES["clinicdb"]
  samples = [index.Sample("x", "y", "ClinicDB", "", 1)] * 62
  found = index.make_dataset("clinicdb", "/x", test=samples)
  assert "PraNet's test part" in registry.count_note(found, entry)


@pytest.mark.parametrize(
  "name, spelling, wanted",
  [
    ("ksdd", "electrical_commutators", "electrical commutator"),
    ("ksdd", "SDD", "electrical commutator"),
    ("headct", "headct2", "brain"),
    ("clinicdb", "colon", "colon"),
    ("mvtec", "metal_nut", "metal nut"),
    ("btad", "02", "textured surface"),
  ],
)
def test_sentences_know_all_spellings(name, spelling, wanted):
  samples = [index.Sample("x", "", spelling, "", 0)]
  found = index.make_dataset(name, "/x", test=samples)
  assert registry.prompt_names(found) == (wanted,)


def change(path, old, new, encoding="utf-8"):
  text = path.read_text().replace(old, new)
  path.write_bytes(text.encode(encoding))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
  ("layout", "table"),
  [
    ("visa", "split_csv/1cls.csv"),
    ("real_iad", "realiad_jsons/usb.json"),
    ("headct", "labels.csv"),
    ("elpv", "labels.csv"),
  ],
)
def test_tables_of_windows(layout, table, encoding, tmp_path):
  name, write, *_ = LAYOUTS[layout]
  write(tmp_path)
  expected = read(name, tmp_path)
  change(tmp_path / table, "\n", "\r\n", encoding)
  if layout in ("visa", "real_iad"):
    text = (tmp_path / table).read_text(encoding)
    slash = "\\" if layout == "visa" else "\\\\"
    text = text.replace("/", slash)
    (tmp_path / table).write_text(text, encoding=encoding)
  found = read(name, tmp_path)
  assert (found.train, found.test) == (expected.train, expected.test)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ('"meta"', '"mete"', 'expected the key "meta" with an object, found noth'),
    ('"prefix"', '"fix"', 'meta: expected the key "prefix" with text'),
    ('"normal_class"', '"ok"', 'meta: expected the key "normal_class"'),
    ('"test"', '"val"', 'expected the key "test" with a list, found nothing'),
    ('"image_path"', '"image"', r'train\[0\]: expected the key "image_path"'),
    ('"anomaly_class": "AK"', '"x": 1', r'test\[1\]: .*"anomaly_class"'),
    ('"usb/"', "7", 'meta: expected the key "prefix" with text, found int'),
    ("{", "", "not valid JSON"),
  ],
)
def test_an_incomplete_json_file_is_named(old, new, message, tmp_path):
  real_iad(tmp_path)
  change(tmp_path / "realiad_jsons/usb.json", old, new)
  with pytest.raises(ValueError, match=rf"usb\.json: {message}"):
    read("real_iad", tmp_path)


def test_incomplete_tables_are_named(tmp_path):
  visa(tmp_path / "visa")
  change(tmp_path / "visa/split_csv/1cls.csv", "object", "class")
  with pytest.raises(ValueError, match=r"1cls\.csv: expected one column 'obje"):
    read("visa", tmp_path / "visa")
  head_ct(tmp_path / "ct")
  change(tmp_path / "ct/labels.csv", "0, 1", "0, 2")
  with pytest.raises(ValueError, match=r"labels\.csv, line 2: .*0 or 1"):
    read("headct", tmp_path / "ct")
