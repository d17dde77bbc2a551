"""Tests of what the loaders find, in which order, and what they refuse."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from tests.helpers.index_files import names, record, touch, write_meta
from zsad_jax.datasets import elpv, image_files, layouts, readers, registry
from zsad_jax.datasets.synthetic import benchmark
from zsad_jax.runtime import environment
from zsad_jax.types import NORMAL

# Of the 377 sorted paths "images/cellNNNN.png", joined by newlines.
ELPV_SHA256 = "f5100c8625db1ce585c6402ba0d1658aecd578e5f84df61ce8f6b383178d8280"


def mvtec(root, *, good="good"):
  touch(
    root / "nut" / "train" / good / "000.png",
    root / "nut" / "test" / good / "001.png",
    root / "nut" / "test" / good / "000.BMP",
    root / "nut" / "test" / good / "._000.png",
    root / "nut" / "test" / "cut" / "9.png",
    root / "nut" / "test" / "cut" / "10.png",
    root / "nut" / "ground_truth" / good / "000.png",
    root / "nut" / "ground_truth" / "cut" / "9_mask.png",
    root / "nut" / "ground_truth" / "cut" / "10_mask.bmp",
  )


@pytest.mark.parametrize("good", ["good", "ok"])
def test_mvtec_layout(tmp_path, good):
  mvtec(tmp_path, good=good)
  data = registry.open_dataset(str(tmp_path))
  assert names(data.test) == ["10.png", "9.png", "000.BMP", "001.png"]
  assert [os.path.basename(s.mask_path) for s in data.test] == [
    "10_mask.bmp",
    "9_mask.png",
    "",
    "",
  ]
  assert [s.specie_name for s in data.test] == ["cut", "cut", good, good]
  assert [s.label for s in data.test] == [1, 1, 0, 0]
  assert data.class_names == ("nut",) and data.counts == (1, 2, 2)
  alone = registry.open_dataset(str(tmp_path / "nut"))
  assert (alone.train, alone.test) == (data.train, data.test)


def test_listings_are_sorted(tmp_path):
  order = [f"{i:02d}.png" for i in np.random.default_rng(0).permutation(20)]
  touch(*(tmp_path / "normal" / name for name in order))
  assert names(layouts.read_plain(tmp_path).test) == sorted(order)
  assert [
    os.path.basename(path) for path in image_files.below(tmp_path)
  ] == sorted(order)


@pytest.mark.parametrize(
  "ending", ["", "_mask", "_label", "_Segmentation", "_GT"]
)
def test_masks_are_paired_by_name(tmp_path, ending):
  touch(
    tmp_path / "normal" / "a.png",
    tmp_path / "anomalous" / "b_1.JPG",
    tmp_path / "masks" / f"b_1{ending}.png",
  )
  data = registry.open_dataset(str(tmp_path))
  assert data.counts == (0, 1, 1) and data.class_names == (tmp_path.name,)
  assert data.test[1].mask_path == str(tmp_path / "masks" / f"b_1{ending}.png")


def test_an_unpaired_anomaly_is_refused(tmp_path):
  mvtec(tmp_path)
  touch(tmp_path / "nut" / "test" / "dent" / "11.png")
  with pytest.raises(ValueError, match=r"dent/11\.png: anomalous, but no mask"):
    registry.open_dataset(str(tmp_path))


def test_two_masks_of_an_image_are_refused(tmp_path):
  mvtec(tmp_path)
  touch(tmp_path / "nut" / "ground_truth" / "cut" / "9.png")
  with pytest.raises(ValueError, match=r"9_mask\.png and .*9\.png are masks"):
    registry.open_dataset(str(tmp_path))


def test_plain_folder_without_masks(tmp_path):
  touch(tmp_path / "normal" / "a.png", tmp_path / "anomalous" / "b.png")
  data = layouts.read_plain(tmp_path, class_name="metal nut")
  assert data.class_names == ("metal nut",)
  assert not data.has_masks
  assert [sample.has_mask for sample in data.test] == [True, False]


def test_unknown_layouts(tmp_path):
  with pytest.raises(ValueError, match="is empty"):
    registry.open_dataset(str(tmp_path))
  touch(tmp_path / "a.png", tmp_path / "b" / "c.txt")
  with pytest.raises(ValueError, match="found a.png, b. Supported are"):
    registry.open_dataset(str(tmp_path))
  with pytest.raises(FileNotFoundError, match="neither a folder nor a known"):
    registry.open_dataset("mvtek")
  (tmp_path / "normal").mkdir()
  with pytest.raises(ValueError, match="no test image"):
    registry.open_dataset(str(tmp_path))


def test_registered_sets(tmp_path):
  mvtec(tmp_path / "mvtec_anomaly_detection")
  data = registry.open_dataset("mvtec", data_root=tmp_path)
  assert data.name == "mvtec" and data.mosaic_prob == 0.2
  assert any("1/2/2" in n and "3629/467/1258" in n for n in data.notes)
  touch(
    *(
      tmp_path / "CVC-ColonDB" / folder / "1.png"
      for folder in ("images", "masks")
    )
  )
  data = registry.open_dataset("colondb", data_root=tmp_path)
  assert data.counts == (0, 0, 1) and data.mosaic_prob == 0
  assert registry.prompt_names(data) == ("colon",)
  touch(tmp_path / "CVC-ColonDB" / "images" / "2.png")
  with pytest.raises(ValueError, match=r"2\.png: anomalous, but no mask"):
    registry.open_dataset("colondb", data_root=tmp_path)


@pytest.mark.parametrize("name", ["mvtec", "visa", "colondb", "clinicdb"])
def test_a_missing_set_says_what_to_put_where(tmp_path, name):
  entry = registry.ENTRIES[name]
  with pytest.raises(FileNotFoundError) as info:
    registry.open_dataset(name, data_root=tmp_path)
  for text in (str(tmp_path), entry.folders[0], entry.source, entry.licence):
    assert text in str(info.value)
  with pytest.raises(FileNotFoundError, match="no data root was given"):
    registry.open_dataset(name)


def test_default_cache_dir(monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", "/x")
  monkeypatch.delenv("ZSAD_JAX_CACHE", raising=False)
  assert environment.default_cache_dir() == "/x/zsad_jax"
  monkeypatch.setenv("ZSAD_JAX_CACHE", "/y")
  assert environment.default_cache_dir() == "/y"


def test_held_out_rows_are_those_of_scikit_learn():
  for count in (8, 9, 1508):
    _, test = train_test_split(
      np.arange(count), test_size=0.25, random_state=42
    )
    assert set(readers.held_out(range(count))[1]) == set(test.tolist())


def test_elpv_from_a_checkout(tmp_path):
  root = tmp_path / "elpv"
  touch(*(root / "images" / f"{i}.png" for i in range(6)))
  lines = [
    f"images/{i}.png  {p}  {kind}"
    for i, (p, kind) in enumerate(
      [
        ("0.0", "mono"),
        ("1.0", "poly"),
        ("0.3333333333333333", "mono"),
        ("0.0", "poly"),
        ("0.0", "mono"),
        ("0.0", "mono"),
      ]
    )
  ]
  (root / "labels.csv").write_text("\n".join(lines) + "\n")
  data = registry.open_dataset("elpv", data_root=tmp_path)
  assert data.counts == (3, 1, 1) and not data.has_masks
  assert data.test[1].specie_name == "poly"
  (root / "labels.csv").write_text("images/9.png 0.0 mono\n")
  with pytest.raises(ValueError, match=r"line 1: .*9\.png does not exist"):
    registry.read_entry("elpv", root)
  (root / "labels.csv").write_text("path,probability,type\n")
  with pytest.raises(ValueError, match="line 1: expected"):
    registry.read_entry("elpv", root)


def test_elpv_without_the_package(monkeypatch, tmp_path):
  monkeypatch.setattr(elpv, "PACKAGE", "elpv_dataset_not_installed")
  with pytest.raises(FileNotFoundError, match="pip install elpv-dataset"):
    registry.open_dataset("elpv", data_root=tmp_path)


@pytest.mark.skipif(elpv.find_package() is None, reason="needs elpv-dataset")
def test_elpv_has_the_published_split():
  data = registry.open_dataset("elpv")
  assert data.counts == (1131, 377, 715) and not data.notes
  paths = sorted(
    f"images/{os.path.basename(sample.image_path)}"
    for sample in data.test
    if sample.label == NORMAL
  )
  digest = hashlib.sha256("\n".join(paths).encode()).hexdigest()
  assert digest == ELPV_SHA256


@pytest.mark.parametrize(
  "name, part", [("embedded", "benchmark"), ("embedded_auxiliary", "auxiliary")]
)
def test_embedded_sets_open(tmp_path, monkeypatch, name, part):
  def ensure(cache_dir, *, size, seed):  # Drawing takes a minute.
    assert (cache_dir, size, seed) == (tmp_path, 112, 0)
    touch(tmp_path / part / "a.png")
    write_meta(tmp_path / part, {"test": {"nut": [record("a.png")]}})
    (tmp_path / part / benchmark.DIGEST).write_text(digest)
    return tmp_path

  monkeypatch.setattr(benchmark, "ensure", ensure)
  digest = benchmark.PIXELS[part]
  data = registry.open_dataset(name, cache_dir=tmp_path)
  assert data.name == name and data.root == str(tmp_path / part)
  assert not data.notes
  digest = "of other pictures"
  data = registry.open_dataset(name, cache_dir=tmp_path)
  assert "differ from the embedded benchmark's version 1" in data.notes[0]


def test_reading_needs_no_tensorflow():
  code = (
    "import sys; from zsad_jax.datasets import registry, preprocess; "
    "sys.exit('tensorflow' in sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_no_file_is_left_out(tmp_path):
  touch(tmp_path / "normal" / "a.png")
  os.mkfifo(tmp_path / "normal" / "b.png")
  os.symlink("/dev/zero", tmp_path / "normal" / "c.png")
  os.symlink(tmp_path / "normal" / "a.png", tmp_path / "normal" / "d.png")
  found = registry.read_folder(tmp_path)
  assert names(found.test) == ["a.png"]  # "d.png" is the same image.
  assert "2 files left out: 1 broken links, 1 devices" in found.notes[0]
