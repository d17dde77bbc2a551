"""The data sets known by name, and how a name or a folder is opened.

No data is shipped or downloaded, apart from `embedded`, which is drawn: the
licences are between the user and the sources.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

from zsad_jax.datasets import index, industrial, layouts, medical
from zsad_jax.datasets.entry import Entry
from zsad_jax.runtime import environment

TFDS = "tfds:"  # Before the name of a set that was built as records.
# Size and seed of the drawn sets: numbers quoted for them depend on both.
_EMBEDDED_SIZE, _EMBEDDED_SEED = 112, 0
MASKS = ("compat", "robust")  # Ways to read masks.

_DRAWN = dict(
  title="embedded benchmark",
  folders=(),
  source="drawn by this package",
  licence="that of this package",
  citation="none",
  used_by="trying everything without a download",
)
ENTRIES: Mapping[str, Entry] = {
  **industrial.ENTRIES,
  **medical.ENTRIES,
  "embedded": Entry(**_DRAWN),
  "embedded_auxiliary": Entry(**_DRAWN),
}


def open_dataset(
  spec: str,
  *,
  data_root: str | os.PathLike[str] | None = None,
  cache_dir: str | os.PathLike[str] | None = None,
  masks: str = "compat",
) -> index.Dataset:
  """Opens a data set by its registered name or by its folder.

  Args:
    spec: a key of `ENTRIES`, which wins; "tfds:" and such a key for what was
      built as records (tfds_builders.py); or a folder ("./mvtec" for a folder
      that is called like a key).
    data_root: the folder that holds the registered data sets.
    cache_dir: folder of the embedded sets; None for
      `environment.default_cache_dir()`.
    masks: "compat", as the papers' code reads them: whatever is not 0 is
      anomalous; or "robust": in masks of several values that stand for one
      kind of anomaly (JPEG files), only what is above one half is.

  Returns:
    The data set; its `notes` tell what differs from the published one.

  Raises:
    FileNotFoundError: the data set is not there.
    ValueError: its files are not as expected, or an argument is unknown.
  """
  if masks not in MASKS:
    raise ValueError(
      f"config.masks is one of {', '.join(MASKS)}, got {masks!r}."
    )
  dataset = _open(spec, data_root, cache_dir)
  entry = ENTRIES.get(dataset.name)
  if masks == "compat" or (entry and not entry.lossy_masks):
    return dataset
  if spec.startswith(TFDS):
    raise ValueError(
      f"{spec}: records hold masks as they are read with config.masks = "
      '"compat"; read the files themselves for others.'
    )
  lossy = lambda sample: dataclasses.replace(sample, lossy_mask=True)
  return dataclasses.replace(
    dataset,
    train=tuple(map(lossy, dataset.train)),
    test=tuple(map(lossy, dataset.test)),
  )


def _open(spec, data_root, cache_dir):
  """The data set as it is read by default."""
  if spec in ("embedded", "embedded_auxiliary"):
    return _read_embedded(spec, cache_dir or environment.default_cache_dir())
  if spec.removeprefix(TFDS) in ENTRIES and spec.startswith(TFDS):
    # Not at the top: this imports TensorFlow.
    from zsad_jax.datasets import tfds_records

    name = spec.removeprefix(TFDS)
    return _check(tfds_records.open_built(name, data_root), ENTRIES[name])
  if spec in ENTRIES:
    return _check(_read_registered(spec, data_root), ENTRIES[spec])
  if not os.path.isdir(spec):
    raise FileNotFoundError(
      f"{spec!r} is neither a folder nor a known data set; known are "
      f"{', '.join(ENTRIES)}."
    )
  return read_folder(spec)


def read_folder(
  root: str | os.PathLike[str], *, name: str | None = None
) -> index.Dataset:
  """Reads a folder by `meta.json`, else MVTec's layout, else `normal/`.

  Raises:
    ValueError: it is empty or has no layout that is understood.
  """
  if (Path(root) / index.META).is_file():
    return index.read_meta(root, name=name)
  if layouts.is_mvtec(root):
    return layouts.read_mvtec(root, name=name)
  if layouts.is_plain(root):
    return layouts.read_plain(root, name=name)
  found = sorted(path.name for path in Path(root).iterdir())
  if not found:
    raise ValueError(f"{root} is empty; expected a data set.")
  raise ValueError(
    f"{root}: unknown layout; found {', '.join(found[:8])}"
    f"{', ...' if len(found) > 8 else ''}. Understood are, in this order: "
    "meta.json; <class>/test/<defect>/ with <class>/train/good/ and "
    "<class>/ground_truth/<defect>/ (MVTec); <class>/normal/ with, "
    "optionally, <class>/anomalous/ and <class>/masks/. The folder itself "
    "may be the class."
  )


def prompt_names(dataset: index.Dataset) -> tuple[str, ...]:
  """Returns the name of each class for use in a sentence."""
  entry = ENTRIES.get(dataset.name)
  names = dict(entry.prompt_names) if entry else {}
  if names and entry.aliases:  # They are all of one category.
    names = dict.fromkeys(entry.aliases, next(iter(names.values()))) | names
  return tuple(
    names.get(class_name, re.sub("[_/]", " ", class_name))
    for class_name in dataset.class_names
  )


def _read_embedded(
  name: str, cache_dir: str | os.PathLike[str]
) -> index.Dataset:
  # Not at the top: drawing needs modules that reading does not.
  from zsad_jax.datasets.synthetic import benchmark

  root = benchmark.ensure(cache_dir, size=_EMBEDDED_SIZE, seed=_EMBEDDED_SEED)
  part = "auxiliary" if name == "embedded_auxiliary" else "benchmark"
  dataset = index.read_meta(os.path.join(root, part), name=name)
  note = benchmark.departure(dataset.root, part)
  return dataclasses.replace(dataset, notes=(note,) if note else ())


def find(name: str, data_root: str | os.PathLike[str] | None) -> Path | None:
  """The folder of a registered data set, or None."""
  for folder in ENTRIES[name].folders if data_root is not None else ():
    root = Path(data_root) / folder
    if root.is_dir():
      return root.absolute()
  package = ENTRIES[name].find_package
  return package() if package else None


def _read_registered(
  name: str, data_root: str | os.PathLike[str] | None
) -> index.Dataset:
  root = find(name, data_root)
  if root is None:
    raise FileNotFoundError(_how_to_get(name, data_root))
  return read_entry(name, root)


def read_entry(name: str, root: str | os.PathLike[str]) -> index.Dataset:
  """Reads a registered data set from its folder, in any of its layouts.

  Args:
    name: a key of `ENTRIES`.
    root: `meta.json` comes first, then what is downloaded, then MVTec's.

  Raises:
    ValueError: the folder has none of these layouts, or misses files.
  """
  root, entry = Path(root).absolute(), ENTRIES[name]
  if (root / index.META).is_file():
    return index.read_meta(root, name=name)
  for raw in entry.raw:
    if raw.fits(root):
      train, test = raw.read(root)
      return index.make_dataset(name, root, train=train, test=test)
  if layouts.is_mvtec(root):
    return layouts.read_mvtec(root, name=name)
  expected = "; ".join(
    [
      "meta.json",
      *(raw.shows for raw in entry.raw),
      "<class>/{train,test}/ as in MVTec AD",
    ]
  )
  found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
  raise ValueError(
    f"{root}: expected a layout of {entry.title}: {expected}; found {found}."
  )


def _how_to_get(name: str, data_root: str | os.PathLike[str] | None) -> str:
  entry = ENTRIES[name]
  where = (
    f"none of the folders {', '.join(entry.folders)} exists in "
    f"{os.path.abspath(data_root)}"
    if data_root is not None
    else "no data root was given"
  )
  return (
    f"Data set {name!r} not found: {where}. Put it into "
    f"<data root>/{entry.folders[0]}. Source: {entry.source}. Licence: "
    f"{entry.licence}. Please cite {entry.citation}."
  )


def _check(dataset: index.Dataset, entry: Entry) -> index.Dataset:
  """Adds the entry's settings, and notes on what differs from it."""
  notes = list(dataset.notes)
  if difference := count_note(dataset, entry):
    notes.append(difference)
  if entry.has_masks and not dataset.has_masks:
    notes.append(
      f"{dataset.name}: no masks found, although the set has them; "
      "pixel metrics are not available."
    )
  return dataclasses.replace(
    dataset, mosaic_prob=entry.mosaic_prob, notes=tuple(notes)
  )


def count_note(dataset: index.Dataset, entry: Entry) -> str:
  """How the number of images differs from the published one; "" if not."""
  agree = lambda counts: all(
    b is None or a == b for a, b in zip(dataset.counts, counts)
  )
  if entry.counts is None or agree(entry.counts):
    return ""
  show = lambda counts: "/".join("?" if c is None else str(c) for c in counts)
  # Of other preparations the training part is not always known.
  same = [
    name
    for name, counts in entry.other_counts.items()
    if dataset.counts[1:] == counts[1:]
  ]
  which = (
    f"these are the counts of {same[0]}"
    if same
    else ("some are missing, or there are more")
  )
  return (
    f"{dataset.name}: {show(dataset.counts)} images (train / normal test "
    f"/ anomalous test), published are {show(entry.counts)}: {which}; "
    "results are not comparable."
  )
