"""The embedded benchmark: two small data sets, drawn on first use.

`auxiliary` is for training, `benchmark` for testing; no family is in both.
Both have the folders of MVTec AD and a `meta.json`. An image is a pure function of its category, defect, split, index, size and seed.

A new family is one function, one line in the `FAMILIES` of its file, and one
in the lists below.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from zsad_jax.datasets.synthetic import goods, hardware, textures, twins
from zsad_jax.runtime import files

VERSION = 1  # Raise it when a change to the drawing code changes images.
# Digests that `write` computes for version 1 at 112 px with seed 0.
PIXELS = {
  "auxiliary": "11bf590dde0bde26fb81d12e4763c97a7dbd032cb9202dbb6ecb07b60464dfd9",
  "benchmark": "171543f81a855424a626f4b29a9160a6a120a8baf91bcf66a31b32e469d09cd6",
}
DIGEST = "sha256.txt"  # Next to meta.json.

FAMILIES = textures.FAMILIES | hardware.FAMILIES | goods.FAMILIES

TRAIN_CATEGORIES = (
  "brushed_metal",
  "marble",
  "corrugated_cardboard",
  "concrete",
  "brick_wall",
  "gear",
  "bolt",
  "key",
  "cookie",
  "button",
)
TEST_CATEGORIES = (
  "carpet",
  "wood",
  "leather",
  "terrazzo",
  "wire_grid",
  "knitted_wool",
  "mosaic_tile",
  "hex_nut",
  "cable",
  "circuit_board",
  "zipper",
  "bottle",
  "capsule",
  "toothbrush",
  "solar_cell",
  "tablet",
)

# Per category: normal images of the train split (few-shot references) and
# of the test split, and anomalous ones, shared equally by its defects.
DATASETS = {
  "auxiliary": dict(
    categories=TRAIN_CATEGORIES, references=10, normal=30, anomalous=40
  ),
  "benchmark": dict(
    categories=TEST_CATEGORIES, references=8, normal=20, anomalous=20
  ),
}
SIZES = range(96, 257)


def draw(
  category: str,
  defect: str | None = None,
  *,
  index: int,
  split: str = "test",
  size: int = 112,
  seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Draw one image.

  The scene of an index is the same with and without an anomaly.

  Args:
    category: a key of `FAMILIES`.
    defect: one of `FAMILIES[category].defects`, or None for a
      normal image.
    index: number of the image, >= 0.
    split: "train" or "test".
    size: side in pixels, in `SIZES`.
    seed: seed of the benchmark, >= 0.

  Returns:
    Image uint8 (size, size, 3) and mask uint8 (size, size) in {0, 1}, 1 where
    the image differs from its normal twin; the two are equal elsewhere.

  Raises:
    ValueError: unknown category or defect, or a size outside `SIZES`.
  """
  _check(category, defect, size)
  key = (seed, twins.number(category), twins.number(split), index)
  pair = twins.draw(FAMILIES[category], defect, key=key, size=size)
  if pair is None:
    raise AssertionError(f"{category} cannot show {defect}: {key}, {size}.")
  return (pair.normal if defect is None else pair.anomalous), pair.mask


def _check(category: str, defect: str | None, size: int) -> None:
  if category not in FAMILIES:
    raise ValueError(
      f"Unknown category {category!r}; there are {', '.join(sorted(FAMILIES))}."
    )
  if defect is not None and defect not in FAMILIES[category].defects:
    raise ValueError(
      f"{category} has no defect {defect!r}, only "
      f"{', '.join(FAMILIES[category].defects)}."
    )
  if size not in SIZES:
    raise ValueError(
      f"The size must be in {SIZES.start}..{SIZES.stop - 1} pixels; got {size}."
    )


def plan(dataset: str) -> Iterator[tuple[str, str, str | None, int, int]]:
  """Yield the images of a data set of `DATASETS` in the order of `meta.json`.

  Yields:
    Split, category, defect or None, number within its folder, and the index
    for `draw`: every anomalous image has a scene of its own.
  """
  counts = DATASETS[dataset]
  for category in counts["categories"]:
    for number in range(counts["references"]):
      yield "train", category, None, number, number
    for number in range(counts["normal"]):
      yield "test", category, None, number, number
    kinds = sorted(FAMILIES[category].defects)
    each = counts["anomalous"] // len(kinds)
    for k, defect in enumerate(kinds):
      for number in range(each):
        yield (
          "test",
          category,
          defect,
          number,
          counts["normal"] + k * each + number,
        )


def fingerprint(size: int = 112, seed: int = 0) -> str:
  """Return 12 hex digits that identify everything that defines the data."""
  kinds = {
    name: FAMILIES[name].defects
    for counts in DATASETS.values()
    for name in counts["categories"]
  }
  facts = json.dumps([VERSION, DATASETS, kinds, size, seed], sort_keys=True)
  return hashlib.sha256(facts.encode()).hexdigest()[:12]


def ensure(
  cache_dir: str | os.PathLike[str], *, size: int = 112, seed: int = 0
) -> Path:
  """Return the benchmark's directory, drawing it first if it is missing.

  Args:
    cache_dir: parent of such directories; made if missing.
    size: side of the images in pixels, in `SIZES`.
    seed: seed of the benchmark, >= 0.

  Returns:
    Path of the directory that holds `auxiliary/` and `benchmark/`.
  """
  return write(
    Path(cache_dir) / f"drawn-{fingerprint(size, seed)}", size=size, seed=seed
  )


def write(
  root: str | os.PathLike[str], *, size: int = 112, seed: int = 0
) -> Path:
  """Draw both data sets into `root`, unless it exists.

  They are drawn next to `root` and moved there when complete, so `root` is
  complete if it exists, even after a crash or with two processes.

  Args:
    root: directory to make, for example of a run or a cache.
    size: side of the images in pixels, in `SIZES`.
    seed: seed of the benchmark, >= 0.

  Returns:
    `root` as a Path.
  """
  root = Path(root)
  if root.is_dir():
    return root
  with files.draft(root) as draft:
    for dataset in DATASETS:
      _write_dataset(draft / dataset, dataset, size=size, seed=seed)
    _publish(draft, root)
  return root


def _publish(draft: Path, root: Path) -> None:
  try:
    os.rename(draft, root)
  except OSError:  # A directory that is not empty cannot be replaced:
    if not root.is_dir():  # another process was first, with the same bytes.
      raise


def departure(root: str | Path, dataset: str) -> str:
  """Return why results on a data set are not comparable, or "".

  Args:
    root: directory of `dataset` that was drawn with the default size and seed.
    dataset: a key of `DATASETS`.
  """
  if (Path(root) / DIGEST).read_text() == PIXELS[dataset]:
    return ""
  return (
    f"The images differ from the embedded benchmark's version {VERSION} "
    "(other releases of NumPy, SciPy or Pillow draw slightly differently): "
    "results are not exactly comparable with published ones."
  )


def _write_dataset(root: Path, dataset: str, *, size: int, seed: int) -> None:
  meta = {
    split: {name: [] for name in DATASETS[dataset]["categories"]}
    for split in ("train", "test")
  }
  digest = hashlib.sha256()
  for split, category, defect, number, index in plan(dataset):
    image, mask = draw(
      category, defect, index=index, split=split, size=size, seed=seed
    )
    digest.update(image.tobytes() + mask.tobytes())
    folder = defect or "good"
    image_path = f"{category}/{split}/{folder}/{number:03d}.png"
    mask_path = f"{category}/ground_truth/{folder}/{number:03d}_mask.png"
    _save(root / image_path, image)
    if defect:
      _save(root / mask_path, 255 * mask)
    meta[split][category].append(
      {
        "img_path": image_path,
        "mask_path": mask_path if defect else "",
        "cls_name": category,
        "specie_name": folder,
        "anomaly": int(defect is not None),
      }
    )
  text = json.dumps(meta, indent=1) + "\n"
  (root / "meta.json").write_text(text, encoding="utf-8")
  (root / DIGEST).write_text(digest.hexdigest())


def _save(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, compress_level=4)
