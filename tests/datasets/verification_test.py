"""Verification: problems of files, counts and masks."""

from tests.datasets.entries_test import image, mask, mvtec_layout
from zsad_jax.datasets import index, registry, verification


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
