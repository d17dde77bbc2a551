"""Verification: problems of files, counts and masks."""

import json
import shutil

import pytest
from PIL import Image

from tests.datasets.entries_test import image, mask, mvtec_layout
from zsad_jax.datasets import index, preprocess, registry, verification


def test_counts_and_broken_files_are_problems(tmp_path):
  mvtec_layout(tmp_path / "mvtec", ["carpet"])
  found = registry.read_entry("mvtec", tmp_path / "mvtec")
  problems, _ = verification.verify(found, registry.ENTRIES["mvtec"])
  assert any("missing categories: bottle" in p for p in problems)
  assert not any(p.startswith("bottle:") for p in problems)
  assert any(
    "carpet: 2/1/2 images, published are 280/28/89" in p for p in problems
  )
  broken = tmp_path / "mvtec/carpet/test/broken/000.png"
  broken.write_bytes(broken.read_bytes()[:60])
  mask(tmp_path / "mvtec/carpet/ground_truth/broken/001_mask.png", box=(0,) * 4)
  problems, _ = verification.verify(found, None)
  assert any("000.png: cannot be read" in p for p in problems)
  assert any("001_mask.png: empty" in p for p in problems)
  assert len(problems) == 2


def test_masks_are_measured_and_duplicates_found(tmp_path):
  entry = registry.ENTRIES["kvasir"]
  for name in ("images/a.jpg", "images/b.jpg"):
    image(tmp_path / name, size=(1600, 1600))
  mask(tmp_path / "masks/a.jpg", (1600, 1600), (100, 103, 300, 297))
  mask(tmp_path / "masks/b.png", (1600, 1600), (0, 0, 1, 1))
  samples = [
    index.Sample(
      str(tmp_path / f"images/{x[0]}.jpg"),
      str(tmp_path / f"masks/{x}"),
      "Kvasir",
      "",
      1,
    )
    for x in ("a.jpg", "b.png")
  ]
  found = index.make_dataset("kvasir", tmp_path, test=samples)
  _, notes = verification.verify(found, entry)
  assert any("1 masks have values between" in note for note in notes)
  assert any("1 masks are empty at 518 pixels" in note for note in notes)
  twice = index.make_dataset("x", tmp_path, train=samples[:1], test=samples)
  problems, notes = verification.verify(twice, None)
  assert any("both a training and a test image" in p for p in problems)
  assert any("--masks=robust" in note for note in notes)  # Own data as well.


@pytest.mark.parametrize("layout", ["mvtec", "plain", "meta.json"])
@pytest.mark.parametrize("marked", [False, True])
def test_masks_of_normal_images_are_empty(layout, marked, tmp_path):
  box = (2, 2, 6, 6) if marked else (0, 0, 0, 0)
  if layout == "plain":
    image(tmp_path / "normal/000.png", size=(8, 8))
    image(tmp_path / "anomalous/100.png", size=(8, 8))
    mask(tmp_path / "masks/100.png", (8, 8), (2, 2, 6, 6))
    wrong = mask_path = tmp_path / "masks/000.png"
  else:
    mvtec_layout(tmp_path, ["nut"])
    wrong = mask_path = tmp_path / "nut/ground_truth/good/000_mask.png"
  size = (8, 8) if layout == "plain" else None
  mask(mask_path, *([size] if size else []), box=box)
  if layout == "meta.json":
    record = dict(
      img_path="nut/test/good/000.png",
      mask_path=str(wrong.relative_to(tmp_path)),
      cls_name="nut",
      anomaly=0,
    )
    shutil.rmtree(tmp_path / "nut/test/broken")
    text = json.dumps({"test": {"nut": [record]}})
    (tmp_path / "meta.json").write_text(text)
  found = registry.open_dataset(str(tmp_path))
  problems, _ = verification.verify(found, None)
  named = [p for p in problems if p.startswith(f"{wrong}: marks anomalous")]
  assert len(named) == marked and len(problems) == marked
  findings = [(s, preprocess.load_inspected(s, 8).findings) for s in found.test]
  notes = verification.mask_notes(findings, None, size=8)
  assert sum("masks of normal images" in n for n in notes) == marked
  normal = next(s for s in found.test if s.label == index.NORMAL)
  assert not preprocess.load_inspected(normal, 8).mask.any()


@pytest.mark.parametrize(
  ("first", "second", "problem"),
  [
    ("train/good", "test/good", "is a normal test image, not a training image"),
    ("train/good", "test/broken", "is anomalous, not a training image"),
    ("test/good", "test/broken", "is a normal test image, not anomalous"),
  ],
)
@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_images_of_equal_pixels_have_one_role(
  first, second, problem, suffix, tmp_path
):
  mvtec_layout(tmp_path, ["nut"], masks=False)
  copy = tmp_path / f"nut/{second}/copy{suffix}"
  Image.open(tmp_path / f"nut/{first}/000.png").save(copy)
  found = registry.open_dataset(str(tmp_path))
  problems, notes = verification.verify(found, None)
  assert len(problems) == 1 and not notes
  assert problem in problems[0] and str(copy) in problems[0]
  problems, notes = verification.verify(found, registry.ENTRIES["mvtec"])
  assert any(problem in note for note in notes)
