"""Tests of the embedded benchmark: what is drawn, and how it is stored."""

import hashlib
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from zsad_jax.datasets.synthetic import benchmark, defects
from zsad_jax.datasets.synthetic.canvas import Flaw

CASES = [
  (name, defect)
  for name, family in benchmark.FAMILIES.items()
  for defect in family.defects
]
SMALL = {
  "auxiliary": dict(categories=("gear",), references=0, normal=1, anomalous=4),
  "benchmark": dict(categories=("wood",), references=1, normal=1, anomalous=4),
}


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(benchmark, "DATASETS", SMALL)


def difference(first, second):
  return np.abs(first.astype(int) - second).max(axis=-1)


# ---- The lists.


def test_lists_are_disjoint_and_mix_textures_and_objects():
  train, test = benchmark.TRAIN_CATEGORIES, benchmark.TEST_CATEGORIES
  assert not set(train) & set(test)
  assert set(train) | set(test) == set(benchmark.FAMILIES)
  assert len(test) >= 15 and len(train) >= 8
  for names in (train, test):
    kinds = [benchmark.FAMILIES[name].kind for name in names]
    assert 0.4 <= kinds.count("texture") / len(kinds) <= 0.5


def test_every_family_has_defects_that_share_its_pictures_equally():
  for counts in benchmark.DATASETS.values():
    for name in counts["categories"]:
      family = benchmark.FAMILIES[name]
      assert set(family.overlays) <= set(defects.OVERLAYS)
      assert len(set(family.defects)) == len(family.defects) >= 3
      assert counts["anomalous"] % len(family.defects) == 0
  assert len({defect for _, defect in CASES}) >= 12


@pytest.mark.parametrize(
  "dataset, normal, anomalous, references",
  [("auxiliary", 300, 400, 100), ("benchmark", 320, 320, 128)],
)
def test_plan_counts(dataset, normal, anomalous, references):
  plan = list(benchmark.plan(dataset))
  test = [row for row in plan if row[0] == "test"]
  assert sum(row[2] is None for row in test) == normal
  assert sum(row[2] is not None for row in test) == anomalous
  assert len(plan) - len(test) == references
  scenes = {(split, name, index) for split, name, _, _, index in plan}
  assert len(scenes) == len(plan)


# ---- Images.


@pytest.mark.parametrize("name, defect", CASES)
def test_mask_is_where_the_twins_differ(name, defect):
  image, mask = benchmark.draw(name, defect, index=3)
  twin, empty = benchmark.draw(name, index=3)
  assert image.shape == twin.shape == (112, 112, 3)
  assert image.dtype == mask.dtype == np.uint8
  assert not empty.any() and set(np.unique(mask)) == {0, 1}
  assert 12 <= mask.sum() <= 0.35 * mask.size
  differs = difference(image, twin)
  assert not differs[mask == 0].any()
  # Closed gaps count as defect too, but half of a mask is real change.
  assert (differs[mask == 1] >= 0.8 * 255 * defects.VISIBLE).mean() > 0.5


@pytest.mark.parametrize("name", benchmark.FAMILIES)
def test_family_draws_any_size(name):
  rngs = np.random.default_rng(0), np.random.default_rng(1)
  scene = benchmark.FAMILIES[name].draw(rngs[0], 99, Flaw(None, rngs[1]))
  assert scene.image.shape == (99, 99, 3) and scene.region.shape == (99, 99)
  assert scene.image.dtype == scene.region.dtype == np.float32
  assert 0 <= scene.region.min() and 0.05 < scene.region.mean() <= 1


@pytest.mark.parametrize(
  "name, size", list(zip(benchmark.FAMILIES, itertools.cycle((96, 160))))
)
def test_other_sizes_show_the_same_scene(name, size):
  image, mask = benchmark.draw(name, index=5, size=size)
  assert image.shape == (size, size, 3) and mask.shape == (size, size)
  thumbs = [
    np.asarray(Image.fromarray(picture).resize((16, 16)), float)
    for picture in (image, benchmark.draw(name, index=5)[0])
  ]
  assert np.abs(thumbs[0] - thumbs[1]).mean() < 6


@pytest.mark.parametrize("size", [96, 224])
@pytest.mark.parametrize("kind", ["texture", "object"])
def test_defects_at_other_sizes_have_about_the_same_share(kind, size):
  for name, defect in CASES[::9]:
    if benchmark.FAMILIES[name].kind == kind:
      _, mask = benchmark.draw(name, defect, index=2, size=size)
      _, usual = benchmark.draw(name, defect, index=2)
      assert 0.4 < mask.mean() / usual.mean() < 2.5, (name, defect)


@pytest.mark.parametrize(
  "name, defect, digest",
  [
    ("carpet", "cut", "50cac185f846d9c2"),
    ("solar_cell", "missing_part", "3eb9a0f662b2f45e"),
  ],
)
def test_pictures_of_version_1(name, defect, digest):
  """Change VERSION and the digests of `benchmark.PIXELS` with these."""
  image, mask = benchmark.draw(name, defect, index=1)
  data = image.tobytes() + mask.tobytes()
  assert hashlib.sha256(data).hexdigest()[:16] == digest


def test_same_bytes_whatever_was_drawn_before():
  first = benchmark.draw("cable", "hole", index=1)
  benchmark.draw("wood", index=1)
  again = benchmark.draw("cable", "hole", index=1)
  assert all(np.array_equal(a, b) for a, b in zip(first, again))


def test_same_bytes_in_another_process():
  code = (
    "import hashlib; from zsad_jax.datasets.synthetic import benchmark as b;"
    "image, _ = b.draw('gear', 'scratch', index=2);"
    "print(hashlib.sha256(image.tobytes()).hexdigest())"
  )
  digests = {
    subprocess.run(
      [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    for _ in range(2)
  }
  assert len(digests) == 1


def test_index_split_and_seed_give_other_pictures():
  usual, _ = benchmark.draw("bolt", index=0)
  for other in (
    dict(index=1),
    dict(index=0, split="train"),
    dict(index=0, seed=1),
  ):
    assert difference(usual, benchmark.draw("bolt", **other)[0]).mean() > 3


@pytest.mark.parametrize(
  "name, defect, size, message",
  [
    ("teapot", None, 112, "Unknown category 'teapot'"),
    ("wood", "bent_part", 112, "wood has no defect 'bent_part'"),
    ("wood", None, 64, "got 64"),
  ],
)
def test_wrong_requests_are_refused(name, defect, size, message):
  with pytest.raises(ValueError, match=message):
    benchmark.draw(name, defect, index=0, size=size)


# ---- Overlays on any image.


@pytest.mark.parametrize("kind", defects.OVERLAYS)
def test_overlay_stays_in_its_region(kind):
  rng = np.random.default_rng(0)
  image = rng.uniform(0.3, 0.8, (120, 150, 3)).astype(np.float32)
  region = np.zeros((120, 150), np.float32)
  region[30:90, 40:120] = 1
  before = image.copy()
  damaged, mask = defects.apply(kind, image, region, np.random.default_rng(1))
  assert np.array_equal(image, before)
  assert damaged.dtype == np.float32 and mask.any()
  assert np.array_equal(damaged[mask == 0], image[mask == 0])
  assert not mask[:28].any() and not mask[:, :38].any()


def test_overlay_needs_a_region():
  with pytest.raises(ValueError, match="empty"):
    defects.apply(
      "hole",
      np.zeros((99, 99, 3), np.float32),
      np.zeros((99, 99), np.float32),
      np.random.default_rng(0),
    )


# ---- On disk.


def test_written_tree_is_complete(small, tmp_path):
  root = benchmark.ensure(tmp_path, size=96)
  assert root.name == f"drawn-{benchmark.fingerprint(96, 0)}"
  for dataset in ("auxiliary", "benchmark"):
    meta = json.loads((root / dataset / "meta.json").read_text())
    assert set(meta) == {"train", "test"}
    assert benchmark.departure(root / dataset, dataset)  # Not version 1.
    records = [
      r for split in meta.values() for rows in split.values() for r in rows
    ]
    listed = [r[k] for r in records for k in ("img_path", "mask_path") if r[k]]
    stored = {
      p.relative_to(root / dataset).as_posix()
      for p in (root / dataset).rglob("*.png")
    }
    assert len(listed) == len(stored) and set(listed) == stored
    assert sum(r["anomaly"] for r in records) == 4
    for r in records:
      assert Image.open(root / dataset / r["img_path"]).size == (96, 96)
      assert bool(r["mask_path"]) == bool(r["anomaly"])
      if r["mask_path"]:
        mask = np.asarray(Image.open(root / dataset / r["mask_path"]))
        assert mask.shape == (96, 96) and set(np.unique(mask)) == {0, 255}


def test_second_call_does_not_draw(small, tmp_path, monkeypatch):
  root = benchmark.ensure(tmp_path)
  monkeypatch.setattr(benchmark, "draw", None)
  assert benchmark.ensure(tmp_path) == root


def test_failure_leaves_nothing(small, tmp_path, monkeypatch):
  draw, calls = benchmark.draw, []

  def failing(*args, **options):
    calls.append(args)
    if len(calls) == 4:
      raise OSError("No space left on device")
    return draw(*args, **options)

  monkeypatch.setattr(benchmark, "draw", failing)
  with pytest.raises(OSError, match="No space"):
    benchmark.write(tmp_path / "set")
  assert not list(tmp_path.iterdir())


def test_two_processes_may_write_at_once(small, tmp_path, monkeypatch):
  root, draw = tmp_path / "set", benchmark.draw

  def overtaken(*args, **options):
    monkeypatch.setattr(benchmark, "draw", draw)
    benchmark.write(root)  # The other process finishes first.
    return draw(*args, **options)

  monkeypatch.setattr(benchmark, "draw", overtaken)
  assert benchmark.write(root) == root
  assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_fingerprint_follows_what_defines_the_set(monkeypatch):
  usual = benchmark.fingerprint()
  assert usual == benchmark.fingerprint(112, 0) and len(usual) == 12
  assert (
    len({usual, benchmark.fingerprint(128), benchmark.fingerprint(112, 1)}) == 3
  )
  monkeypatch.setattr(benchmark, "VERSION", benchmark.VERSION + 1)
  assert benchmark.fingerprint() != usual
