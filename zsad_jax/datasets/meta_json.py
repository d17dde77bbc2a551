"""Reads and writes `meta.json`.

It is the index shared by AdaCLIP, AnomalyCLIP, FAPrompt, AdaptCLIP and
APRIL-GAN:

  {"train": {class: [record, ...]}, "test": {class: [record, ...]}}
  record = {"img_path", "mask_path", "cls_name", "specie_name", "anomaly"}

`view_id` (the view of a physical object) and `sample_id` (the object) are
optional. Files in circulation differ from this convention: `read` documents
what is accepted.
"""

import collections
import contextlib
import gc
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from zsad_jax.datasets import index
from zsad_jax.datasets.index import Dataset, Sample
from zsad_jax.runtime import text_files
from zsad_jax.types import ANOMALOUS, NORMAL

META = "meta.json"
_UNUSUAL = re.compile(r"\\|//|/$|(^|/)\.")  # Paths that normpath may change.
_SAMPLE = re.compile(r"S\d+")  # Folder of the views of an object in Real-IAD.
_SHOWN = 5  # Missing files listed in an error message.


def read(root: str | os.PathLike[str], *, name: str | None = None) -> Dataset:
  """Read `root/meta.json` in the order of the file.

  Accepted in addition to the convention: "Train" and "Test" in any case; no
  "train"; a mask that is "", null, absent or a directory (no mask); absolute
  paths of another machine, which are replaced by their longest ending that
  exists below `root` and counted in `notes`; further keys, which are ignored.
  The category key names the class. A mask listed for a normal image is not
  used; one that is not empty is reported.

  Args:
    root: the folder of `meta.json`.
    name: of the data set; by default that of the folder.

  Raises:
    ValueError: the file is not JSON or lacks a field, a listed file does not
      exist, or a path leads out of `root`.
  """
  root = os.path.abspath(root)
  meta = os.path.join(root, META)
  reader = _Reader(root)
  with _no_collection():
    content = _load(meta)
    phases = {key.lower(): value for key, value in content.items()}
    if len(phases) < len(content):
      raise ValueError(
        f"{meta}: two keys differ in case only, of {sorted(content)}; merge "
        "their entries."
      )
    if "test" not in phases:
      raise ValueError(
        f'{meta}: expected an object with the keys "train" and '
        f'"test", found {sorted(phases)}.'
      )
    train = reader.phase("train", phases.get("train") or {})
    test = reader.phase("test", phases["test"])
  if reader.missing:
    raise ValueError(
      f"{meta}: {len(reader.missing)} listed files do not exist. Complete "
      "the data set or remove the records:\n  "
      + "\n  ".join(reader.missing[:_SHOWN])
    )
  notes = []
  if reader.num_rerooted:
    notes.append(
      f"{meta}: {reader.num_rerooted} absolute paths were re-rooted to {root}."
    )
  for phase, samples in (("train", train), ("test", test)):
    paths = collections.Counter(sample.image_path for sample in samples)
    if (count := paths.total() - len(paths)) > 0:
      twice, _ = paths.most_common(1)[0]
      notes.append(
        f'{meta}: "{phase}" has {count} records too many, as images are listed '
        f"several times, such as {twice}; each record counts."
      )
  return index.make_dataset(
    name or os.path.basename(root), root, train=train, test=test, notes=notes
  )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
  """Suspend garbage collection, which takes a third of the time here."""
  enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if enabled:
      gc.enable()


def _load(meta: str) -> dict[str, Any]:
  """Return the object in the file."""
  content = text_files.load_json(meta)
  if not isinstance(content, dict):
    raise ValueError(
      f'{meta}: expected an object with the keys "train" and '
      f'"test", found {type(content).__name__}.'
    )
  return content


class _Reader:
  """Converts records to samples; collects missing files and re-rooted paths."""

  def __init__(self, root: str):
    self.root = root
    self.num_rerooted = 0
    self.missing: list[str] = []
    self._listings: dict[str, frozenset[str]] = {}  # By folder, read on demand.

  def phase(self, phase: str, classes: Any) -> list[Sample]:
    """Return the samples of "train" or "test", in file order."""
    if not isinstance(classes, dict):
      raise ValueError(
        f'{self.root}/{META}: "{phase}" must map each class to '
        f"a list of records, found {type(classes).__name__}."
      )
    samples = []
    for class_name, records in classes.items():
      where = f'{phase}["{class_name}"]'
      if not class_name.strip():
        raise ValueError(
          f"{self.root}/{META}: {where}: a class has no name; name it."
        )
      if not isinstance(records, list):
        raise ValueError(
          f"{self.root}/{META}: {where} must be a list of "
          f"records, found {type(records).__name__}."
        )
      samples += [
        self._sample(f"{where}[{i}]", class_name, record)
        for i, record in enumerate(records)
      ]
    return samples

  def _sample(self, where: str, class_name: str, record: Any) -> Sample:
    """Return the sample of a record, checked."""
    need = lambda field, text: ValueError(
      f'{self.root}/{META}: record {where}: "{field}" must be {text}, found '
      f"{record.get(field)!r}."
    )
    if not isinstance(record, dict):
      raise ValueError(
        f"{self.root}/{META}: record {where} must be an object, "
        f"found {record!r}."
      )
    if not record.get("img_path") or not isinstance(record["img_path"], str):
      raise need("img_path", "the path of an image")
    if record.get("anomaly") not in (NORMAL, ANOMALOUS):
      raise need("anomaly", "0 (normal) or 1 (anomalous)")
    mask = record.get("mask_path") or ""
    if not isinstance(mask, str):
      raise need("mask_path", 'a path, or "" for none')
    for field in ("specie_name", "view_id", "sample_id"):
      if not isinstance(record.get(field) or "", str):
        raise need(field, "text")
    label = int(record["anomaly"])
    known = self._mask(where, mask, required=label == ANOMALOUS)
    return Sample(
      image_path=self._file(f"{where}.img_path", record["img_path"]),
      mask_path=known if label == ANOMALOUS else "",
      unused_mask=known if label == NORMAL else "",
      class_name=class_name,
      specie_name=record.get("specie_name") or "",
      label=label,
      view=record.get("view_id") or "",
      group=_group(class_name, record) if record.get("view_id") else "",
    )

  def _mask(self, where: str, listed: str, *, required: bool) -> str:
    # Generators that join "" to their root leave a directory behind.
    if not listed or listed.endswith("/"):
      return ""
    if not required:
      path, _ = _locate(self.root, listed, f"{where}.mask_path")
      return path if self._is_file(path) else ""
    return self._file(f"{where}.mask_path", listed, directory_is_none=True)

  def _file(
    self, where: str, listed: str, *, directory_is_none: bool = False
  ) -> str:
    path, rerooted = _locate(self.root, listed, where)
    if directory_is_none and os.path.isdir(path):
      return ""
    self.num_rerooted += rerooted
    if not self._is_file(path):
      self.missing.append(f"{where}: {path}")
    return path

  def _is_file(self, path: str) -> bool:
    """Return `os.path.isfile(path)`, from one listing per folder."""
    folder, _, name = path.rpartition("/")
    if folder not in self._listings:
      try:
        with os.scandir(folder) as entries:
          found = frozenset(e.name for e in entries if e.is_file())
      except (OSError, ValueError):  # ValueError: a NUL character.
        found = frozenset()
      self._listings[folder] = found
    return name in self._listings[folder]


def _group(class_name: str, record: dict[str, Any]) -> str:
  """Return the physical object that a view shows; "" where it is not known.

  Real-IAD's folders name it: <class>/NG/AK/S0007/<image> shows AKS0007.
  """
  sample = record.get("sample_id")
  folders = record["img_path"].replace("\\", "/").split("/")[-3:-1]
  if not sample and len(folders) == 2 and _SAMPLE.fullmatch(folders[1]):
    sample = "".join(folders)
  return f"{class_name}/{sample}" if sample else ""


def _locate(root: str, listed: str, where: str) -> tuple[str, bool]:
  """Return the path of a listed file and whether it was re-rooted.

  The path may not exist. Only its text is checked: a symbolic link that the
  user put below the root may point elsewhere.
  """
  if _UNUSUAL.search(listed):
    listed = os.path.normpath(listed.replace("\\", "/"))  # Windows.
  absolute = listed.startswith("/") or listed[1:2] == ":"
  if not (absolute or listed.startswith("..")):
    return f"{root}/{listed}", False  # The usual case, kept fast.
  path = os.path.normpath(os.path.join(root, listed))
  inside = os.path.commonpath([root, path]) == root
  if absolute and not (inside and os.path.exists(path)):
    parts = listed.split("/")[1:]
    for i in range(len(parts)):
      candidate = os.path.join(root, *parts[i:])
      if os.path.isfile(candidate):
        return candidate, True
  if not inside:
    raise ValueError(
      f"{root}/{META}: {where}: {listed} leaves the data root {root}. Use a "
      "path relative to the folder of meta.json."
    )
  return path, False


def dumps(dataset: Dataset, folder: str) -> str:
  """Return the text of `meta.json`.

  Args:
    dataset: the data set.
    folder: folder of the file; paths are relative to it.

  Raises:
    ValueError: a sample is a part of a file or has several masks, which the
      index cannot express.
  """
  parts = {"train": dataset.train, "test": dataset.test}
  content: dict[str, dict[str, list]] = {part: {} for part in parts}
  for part, samples in parts.items():
    for sample in samples:
      if sample.more_masks:
        raise ValueError(
          f"{sample.image_path}: meta.json names one mask per image, but this "
          f"one has {1 + len(sample.more_masks)}; unite them in one file."
        )
      if index.file_and_box(sample.image_path)[1]:
        raise ValueError(
          f"{sample.image_path}: meta.json cannot name parts of files, as "
          f"which {dataset.name} is used."
        )
      rows = content[part].setdefault(sample.class_name, [])
      rows.append(_record(sample, folder))
  return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _record(sample: Sample, folder: str) -> dict[str, str | int]:
  """Return the record of a sample, with paths relative to `folder`."""

  def relative(path):
    if not path:
      return ""
    return os.path.relpath(path, folder).replace(os.sep, "/")

  record: dict[str, str | int] = {
    "img_path": relative(sample.image_path),
    "mask_path": relative(sample.mask_path),
    "cls_name": sample.class_name,
    "specie_name": sample.specie_name,
    "anomaly": sample.label,
  }
  if sample.view:
    record["view_id"] = sample.view
  if sample.group:
    record["sample_id"] = sample.group.rpartition("/")[2]
  return record
