"""What a data set is to this package, and the reader of `meta.json`.

A data set is two lists of `Sample`; no image is opened here. `meta.json` is
the index shared by AdaCLIP, AnomalyCLIP, FAPrompt, AdaptCLIP and APRIL-GAN:

  {"train": {class: [record, ...]}, "test": {class: [record, ...]}}
  record = {"img_path", "mask_path", "cls_name", "specie_name", "anomaly"}

Files in circulation differ from it: see `read_meta` for what is accepted.
"""

import contextlib
import dataclasses
import gc
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from zsad_jax.types import ANOMALOUS, NORMAL

META = "meta.json"
BUILT = "tfds://"  # Begins the path of a record; see tfds_builders.py.
_PART = re.compile(r"(.*)#xywh=(\d+),(\d+),(\d+),(\d+)", re.DOTALL)
_UNUSUAL = re.compile(r"\\|//|/$|(^|/)\.")  # What normpath may change.
_SAMPLE = re.compile(r"S\d+")  # A folder of views in Real-IAD.
_SHOWN = 5  # Missing files listed in an error message.


Box = tuple[int, int, int, int]  # Left, upper, right, lower border in pixels.


def part(path: str | os.PathLike[str], box: Box) -> str:
  """The path of a part of an image: a media fragment, as W3C defines it."""
  left, upper, right, lower = box
  return f"{path}#xywh={left},{upper},{right - left},{lower - upper}"


def file_and_box(path: str | os.PathLike[str]) -> tuple[str, Box | None]:
  """The file of a path, and the part of it that is meant; None: all."""
  found = _PART.fullmatch(str(path))
  if not found:
    return str(path), None
  x, y, width, height = map(int, found.groups()[1:])
  return found[1], (x, y, x + width, y + height)


@dataclasses.dataclass(frozen=True)
class Sample:
  """One image and what is known of it.

  Attributes:
    image_path: absolute path, of a part of a file with `part`'s ending.
    mask_path: absolute path, "" where there is no mask.
    class_name: the object or texture, as the data set spells it.
    specie_name: the type of anomaly, "" where unknown.
    label: NORMAL or ANOMALOUS.
    view: of a physical sample that several images show, such as "C1".
    group: the physical sample; "" where every image is one.
    more_masks: further masks, to be joined with the first.
    lossy_mask: read its mask at one half where it has more than two values,
      see `preprocess.load_mask`.
  """

  image_path: str
  mask_path: str
  class_name: str
  specie_name: str
  label: int
  view: str = ""
  group: str = ""
  more_masks: tuple[str, ...] = ()
  lossy_mask: bool = False

  @property
  def compared_with(self) -> str:
    """Images of this name are its references: of its class, seen alike."""
    return f"{self.class_name}/{self.view}" if self.view else self.class_name

  @property
  def has_mask(self) -> bool:
    """Whether every pixel's state is known; a normal image needs no file."""
    return self.label == NORMAL or bool(self.mask_path)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set on disk.

  Attributes:
    name: for logs and tables.
    root: absolute path of its folder.
    class_names: every class once; its position is the class index.
    train: normal images, from which few-shot references are drawn.
    test: normal and anomalous images; zero-shot methods train on this part
      of an auxiliary data set.
    has_masks: False if no anomalous test image has a mask, so that no pixel
      metric exists.
    mosaic_prob: share of training samples replaced by a mosaic.
    notes: what the user should be told, one sentence each.
  """

  name: str
  root: str
  class_names: tuple[str, ...]
  train: tuple[Sample, ...]
  test: tuple[Sample, ...]
  has_masks: bool
  mosaic_prob: float = 0.0
  notes: tuple[str, ...] = ()

  @property
  def counts(self) -> tuple[int, int, int]:
    """Training images, normal test images, anomalous test images."""
    anomalous = sum(sample.label == ANOMALOUS for sample in self.test)
    return len(self.train), len(self.test) - anomalous, anomalous


def make_dataset(
  name: str,
  root: str | os.PathLike[str],
  *,
  train: Sequence[Sample] = (),
  test: Sequence[Sample],
  notes: Sequence[str] = (),
) -> Dataset:
  """Returns a `Dataset`, its classes in the order of their first image.

  Raises:
    ValueError: `test` is empty.
  """
  if not test:
    raise ValueError(f"{root}: no test image found; expected at least one.")
  names = dict.fromkeys(sample.class_name for sample in (*test, *train))
  return Dataset(
    name=name,
    root=os.path.abspath(root),
    class_names=tuple(names),
    train=tuple(train),
    test=tuple(test),
    has_masks=any(sample.mask_path for sample in test),
    notes=tuple(notes),
  )


def read_meta(
  root: str | os.PathLike[str], *, name: str | None = None
) -> Dataset:
  """Reads `root/meta.json`, keeping the order of the file.

  Accepted beyond the convention: "Train" and "Test" in any case; no "train";
  a mask that is "", null, absent or a directory (no mask); absolute paths of
  another machine, which are replaced by their longest ending that exists
  below `root` and counted in `notes`; further keys, which are ignored. The
  category key names the class. A mask listed for a normal image is ignored.

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
    phases = {key.lower(): value for key, value in _load(meta).items()}
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
  notes = (
    [f"{meta}: {reader.num_rerooted} absolute paths were re-rooted to {root}."]
    if reader.num_rerooted
    else []
  )
  return make_dataset(
    name or os.path.basename(root), root, train=train, test=test, notes=notes
  )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
  """No search for garbage where none is made: a third of the time."""
  enabled = gc.isenabled()
  gc.disable()
  try:
    yield
  finally:
    if enabled:
      gc.enable()


def _load(meta: str) -> dict[str, Any]:
  try:
    with open(meta, encoding="utf-8-sig") as file:  # Some start with a BOM.
      content = json.load(file)
  except ValueError as error:  # Also what bad UTF-8 raises.
    raise ValueError(f"{meta}: not valid JSON ({error}).") from error
  if not isinstance(content, dict):
    raise ValueError(
      f'{meta}: expected an object with the keys "train" and '
      f'"test", found {type(content).__name__}.'
    )
  return content


class _Reader:
  """Turns records into samples; remembers what to report at the end."""

  def __init__(self, root: str):
    self.root = root
    self.num_rerooted = 0
    self.missing: list[str] = []
    self._listings: dict[str, frozenset[str]] = {}  # Of folders, as asked for.

  def phase(self, phase: str, classes: Any) -> list[Sample]:
    """Returns the samples of "train" or "test", in file order."""
    if not isinstance(classes, dict):
      raise ValueError(
        f'{self.root}/{META}: "{phase}" must map each class to '
        f"a list of records, found {type(classes).__name__}."
      )
    samples = []
    for class_name, records in classes.items():
      where = f'{phase}["{class_name}"]'
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
    label = int(record["anomaly"])
    return Sample(
      image_path=self._file(f"{where}.img_path", record["img_path"]),
      mask_path=self._mask(where, mask) if label == ANOMALOUS else "",
      class_name=class_name,
      specie_name=record.get("specie_name") or "",
      label=label,
      view=record.get("view_id") or "",
      group=_group(class_name, record) if record.get("view_id") else "",
    )

  def _mask(self, where: str, listed: str) -> str:
    # Generators that join "" to their root leave a directory behind.
    if not listed or listed.endswith("/"):
      return ""
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
    """As os.path.isfile; one listing answers for all files of a folder."""
    folder, _, name = path.rpartition("/")
    if folder not in self._listings:
      try:
        with os.scandir(folder) as entries:
          found = frozenset(e.name for e in entries if e.is_file())
      except OSError:
        found = frozenset()
      self._listings[folder] = found
    return name in self._listings[folder]


def _group(class_name: str, record: dict[str, Any]) -> str:
  """The physical sample that a view shows; "" where it is not known.

  Real-IAD's folders tell: <class>/NG/AK/S0007/<image> shows AKS0007.
  """
  sample = record.get("sample_id")
  folders = record["img_path"].replace("\\", "/").split("/")[-3:-1]
  if not sample and len(folders) == 2 and _SAMPLE.fullmatch(folders[1]):
    sample = "".join(folders)
  return f"{class_name}/{sample}" if sample else ""


def _locate(root: str, listed: str, where: str) -> tuple[str, bool]:
  """Returns the path meant, which may not exist, and if it was re-rooted.

  The check is of the text alone: a symbolic link that the user put below the
  root may point elsewhere.
  """
  if _UNUSUAL.search(listed):
    listed = os.path.normpath(listed.replace("\\", "/"))  # Of Windows.
  absolute = listed.startswith("/") or listed[1:2] == ":"
  if not (absolute or listed.startswith("..")):
    return f"{root}/{listed}", False  # Most are like that, and may be many.
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


def class_ids(datasets: Sequence[Dataset]) -> list[int]:
  """Returns the class of each test image, counted over all data sets."""
  found, first = [], 0
  for data in datasets:
    ids = {name: first + i for i, name in enumerate(data.class_names)}
    found += [ids[sample.class_name] for sample in data.test]
    first += len(ids)
  return found


def normal_images(
  datasets: Sequence[Dataset],
) -> list[list[Sample]]:
  """Returns the images of each class that may be references in training."""
  return [
    [sample for sample in data.train if sample.class_name == name]
    for data in datasets
    for name in data.class_names
  ]
