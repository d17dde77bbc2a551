"""Readers of the layouts in which single data sets are downloaded.

A reader takes the folder of the data set and returns the samples of its train
and test parts. Data that the community cuts into files first, such as
KolektorSDD's strips, are read as boxes of the original images.
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zsad_jax.datasets import image_files, layouts, preprocess, walker
from zsad_jax.datasets.index import Sample, part
from zsad_jax.datasets.walker import folders_in
from zsad_jax.runtime import text_files
from zsad_jax.types import ANOMALOUS, NORMAL

Parts = tuple[list[Sample], list[Sample]]  # Train, test.
Reader = Callable[[Path], Parts]

_HELD_OUT, _SPLIT_SEED = 0.25, 42  # DRA's convention for data without a split.


def held_out(samples: Sequence) -> tuple[list, list]:
  """Split normal samples 75 : 25, as scikit-learn's `train_test_split`.

  Seed 42, in the order given: the convention of DRA's preparations.
  """
  order = np.random.RandomState(_SPLIT_SEED).permutation(len(samples))
  test = frozenset(order[: math.ceil(_HELD_OUT * len(samples))].tolist())
  return (
    [s for i, s in enumerate(samples) if i not in test],
    [s for i, s in enumerate(samples) if i in test],
  )


def visa(root: Path) -> Parts:
  """Read VisA's `split_csv/1cls.csv`: object, split, label, image, mask.

  Raises:
    ValueError: a row has another form, or names a file that does not exist.
  """
  path = root / "split_csv" / "1cls.csv"
  parts = {"train": [], "test": []}
  columns = ("object", "split", "label", "image", "mask")
  for line, row in text_files.csv_records(path, columns):
    try:
      label = {"normal": NORMAL, "anomaly": ANOMALOUS}[row["label"]]
      phase = parts[row["split"]]
    except KeyError as error:
      raise ValueError(
        f"{path}, line {line}: expected the columns object, split (train "
        "or test), label (normal or anomaly), image and mask; found "
        f"{row}."
      ) from error
    where = f"{path}, line {line}"
    mask = row["mask"] if label == ANOMALOUS else ""
    phase.append(
      Sample(
        str(_listed(root, row["image"], where)),
        str(_listed(root, mask, where)) if mask else "",
        row["object"],
        "",
        label,
      )
    )
  return parts["train"], parts["test"]


def kolektor(root: Path) -> Parts:
  """Read KolektorSDD: `kosNN/PartK.jpg`, each cut into three strips (DRA).

  A strip is anomalous if its part of `PartK_label.bmp` is not empty. The
  normal ones are split in the order of (kos, part, strip). DRA's script used
  the order of the file system, so other strips are chosen, of the same number.
  """
  normal, anomalous = [], []
  for image in sorted(root.glob("kos*/Part*.jpg"), key=_numbers):
    mask = image.with_name(f"{image.stem}_label.bmp")
    if not mask.is_file():
      raise ValueError(f"{image}: its label {mask.name} does not exist.")
    labels = preprocess.read_mask(mask)
    height, width = labels.shape
    cuts = [i * height // 3 for i in range(4)]
    for top, bottom in zip(cuts, cuts[1:]):
      is_anomalous, box = labels[top:bottom].any(), (0, top, width, bottom)
      sample = Sample(
        part(image, box),
        part(mask, box) if is_anomalous else "",
        "ksdd",
        "defect" if is_anomalous else "good",
        ANOMALOUS if is_anomalous else NORMAL,
      )
      (anomalous if is_anomalous else normal).append(sample)
  train, test = held_out(normal)
  return train, test + anomalous


def dagm(root: Path) -> Parts:
  """Read DAGM 2007: `ClassN/{Train,Test}/NNNN.PNG`, the official split.

  An image is anomalous if `Label/NNNN_label.PNG` exists. Anomalous
  images of the train part are not used: references are normal.
  """
  train, test = [], []
  for folder in sorted(root.glob("Class*"), key=_numbers):
    for phase, found in (("Train", train), ("Test", test)):
      for image in image_files.in_folder(folder / phase):
        label = image.parent / "Label" / f"{image.stem}_label{image.suffix}"
        is_anomalous = label.is_file()
        if is_anomalous and phase == "Train":
          continue
        found.append(
          Sample(
            str(image),
            str(label) if is_anomalous else "",
            folder.name,
            "defect" if is_anomalous else "good",
            ANOMALOUS if is_anomalous else NORMAL,
          )
        )
  return train, test


AITEX_DEFECTS = {
  "002": "Broken_end",
  "006": "Broken_yarn",
  "010": "Broken_pick",
  "016": "Weft_curling",
  "019": "Fuzzyball",
  "022": "Cut_selvage",
  "023": "Crease",
  "025": "Warp_ball",
  "027": "Knots",
  "029": "Contamination",
  "030": "Nep",
  "036": "Weft_crack",
}
_TILE, _TILES = 256, 16


def aitex(root: Path) -> Parts:
  """Read AITEX: fabrics of 4096 x 256, cut into tiles of 256 (DRA, InCTRL).

  A tile of a defective fabric is used if its mask is not empty; two masks of
  one fabric are united. Defective fabrics without a mask are not used.
  """
  images = [p for p in walker.tree(root).images if p.suffix == ".png"]
  below = lambda name: [p for p in images if name in p.relative_to(root).parts]
  masks = {}
  for mask in below("Mask_images"):
    stem = re.sub(r"_mask\d*$", "", mask.stem)
    masks.setdefault(stem, []).append(str(mask))
  tiles = lambda count: [
    (i * _TILE, 0, (i + 1) * _TILE, _TILE) for i in range(count)
  ]
  normal = [
    Sample(part(image, box), "", "AITEX", "good", NORMAL)
    for image in below("NODefect_images")
    for box in tiles(_TILES)
  ]
  anomalous = []
  for image in below("Defect_images"):
    found = masks.get(image.stem, ())
    if not found:
      continue
    labels = np.any([preprocess.read_mask(mask) for mask in found], axis=0)
    kind = AITEX_DEFECTS.get(image.stem.split("_")[1], image.stem.split("_")[1])
    anomalous += [
      Sample(
        part(image, box),
        part(found[0], box),
        "AITEX",
        kind,
        ANOMALOUS,
        more_masks=tuple(part(mask, box) for mask in found[1:]),
      )
      for box in tiles(math.ceil(labels.shape[1] / _TILE))
      if labels[:, box[0] : box[2]].any()
    ]
  train, test = held_out(normal)
  return train, test + anomalous


def mvtec_3d(root: Path) -> Parts:
  """Read MVTec 3D-AD: `<class>/<part>/<defect>/{rgb,gt}`, without depth."""
  train, test = [], []
  for folder in folders_in(root):
    for phase, found in (("train", train), ("test", test)):
      for defect in folders_in(folder / phase):
        label = NORMAL if defect.name == "good" else ANOMALOUS
        for image in image_files.in_folder(defect / "rgb"):
          mask = defect / "gt" / f"{image.stem}.png"
          if label == ANOMALOUS and not mask.is_file():
            raise ValueError(f"{image}: anomalous, but {mask} does not exist.")
          found.append(
            Sample(
              str(image),
              str(mask) if label == ANOMALOUS else "",
              folder.name,
              defect.name,
              label,
            )
          )
  return train, test


def real_iad(root: Path) -> Parts:
  """Read Real-IAD: `realiad_jsons/<class>.json`, images of one resolution.

  The label of a view is that of the JSON file, not of the folder.
  """
  train, test = [], []
  folder = next(iter(sorted(root.glob("realiad_[0-9r]*"))), root)
  for path in sorted((root / "realiad_jsons").glob("*.json")):
    content = text_files.load_json(path)
    meta = _field(content, "meta", dict, f"{path}")
    normal = _field(meta, "normal_class", str, f"{path}: meta")
    prefix = _field(meta, "prefix", str, f"{path}: meta")
    base = folder / prefix.replace("\\", "/")
    for phase, found in (("train", train), ("test", test)):
      for number, row in enumerate(_field(content, phase, list, f"{path}")):
        where = f"{path}: {phase}[{number}]"
        image = _listed(base, _field(row, "image_path", str, where), where)
        kind = _field(row, "anomaly_class", str, where)
        label = NORMAL if kind == normal else ANOMALOUS
        mask = label == ANOMALOUS and row.get("mask_path")
        if mask:
          mask = _listed(base, _field(row, "mask_path", str, where), where)
        view = re.search(r"_(C\d+)_", image.name)
        found.append(
          Sample(
            str(image),
            str(mask or ""),
            path.stem,
            kind,
            label,
            view=view[1] if view else "",
            group=f"{path.stem}/{image.parts[-3]}{image.parts[-2]}",
          )
        )
  return train, test


def states(
  class_name: str, normal: str, anomalous: str, *, split: bool = False
) -> Reader:
  """Return a reader of folders of normal and anomalous images, without masks.

  Args:
    class_name: the only class.
    normal: folder of normal images, as a pattern below the root.
    anomalous: folder of anomalous images, likewise.
    split: use 25 % of the normal images for testing and the others for
      training, instead of all for testing.
  """

  def read(root: Path) -> Parts:
    found = []
    for pattern, label, specie in (
      (normal, NORMAL, "good"),
      (anomalous, ANOMALOUS, "defect"),
    ):
      folders = [p for p in sorted(root.glob(pattern)) if p.is_dir()]
      images = [
        i for folder in folders[:1] for i in image_files.in_folder(folder)
      ]
      if not images:
        raise ValueError(f"{root}: no images in a folder {pattern}.")
      found.append(
        [Sample(str(i), "", class_name, specie, label) for i in images]
      )
    train, test = held_out(found[0]) if split else ([], found[0])
    return train, test + found[1]

  return read


def head_ct(root: Path) -> Parts:
  """Read HeadCT: `labels.csv` with id and hemorrhage, `head_ct/**/NNN.png`."""
  path = root / "labels.csv"
  images = {
    int(p.stem): p
    for p in walker.tree(root).images
    if p.suffix == ".png" and p.stem.isdecimal()
  }
  test = []
  for line, row in text_files.csv_rows(path, skipinitialspace=True):
    if line == 1:
      continue
    try:
      image, label = images[int(row[0])], int(row[1])
      if label not in (NORMAL, ANOMALOUS):
        raise ValueError(f"{label} is no label.")
    except (IndexError, KeyError, ValueError) as error:
      raise ValueError(
        f"{path}, line {line}: expected the number of an image and 0 or "
        f"1, found {row}."
      ) from error
    kind = "defect" if label else "good"
    test.append(Sample(str(image), "", "headct", kind, label))
  return [], test


def masked(class_name: str, images: str, masks: str) -> Reader:
  """Return a reader of a folder of images, all anomalous, and one of masks.

  Args:
    class_name: the only class.
    images: folder of images, as a pattern below the root.
    masks: folder of masks, likewise.
  """

  def read(root: Path) -> Parts:
    folders = []
    for pattern in (images, masks):
      found = [p for p in sorted(root.glob(pattern)) if p.is_dir()]
      if not found:
        raise ValueError(f"{root}: there is no folder {pattern}.")
      folders.append(found[0])
    return [], layouts.pair(folders[0], folders[1], class_name)

  return read


def _field(content: Any, name: str, kind: type, where: str) -> Any:
  """Return a field of an object in a JSON file.

  Raises:
    ValueError: it is missing, or of another kind.
  """
  words = {dict: "an object", list: "a list", str: "text"}
  found = content.get(name) if isinstance(content, dict) else None
  if not isinstance(found, kind):
    shown = "nothing" if found is None else type(found).__name__
    raise ValueError(
      f'{where}: expected the key "{name}" with {words[kind]}, found {shown}.'
    )
  return found


def _listed(folder: Path, name: str, where: str) -> Path:
  r"""Return the path of a file that a table lists; also as good\000.png.

  Raises:
    ValueError: it does not exist.
  """
  for spelled in (name, name.replace("\\", "/")):
    if "\0" not in name and (folder / spelled).is_file():
      return folder / spelled
  raise ValueError(f"{where}: {folder / name} does not exist.")


def _numbers(path: Path) -> list:
  """Return a key that sorts kos2 before kos10."""
  return [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", str(path))]
