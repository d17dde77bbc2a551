"""Opens data sets by a registered name or by their folder.

No data is shipped or downloaded, apart from `embedded`, which is drawn: the
licences are agreements between the user and the sources.
"""

import dataclasses
import importlib
import os
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path

from zsad_jax.datasets import (
  class_folders,
  entries,
  exports,
  index,
  layouts,
  meta_json,
)
from zsad_jax.datasets import masks as masks_lib
from zsad_jax.datasets.entries import Entry
from zsad_jax.runtime import copies, environment, urls

TFDS = "tfds:"  # Prefix of the name of a data set that was built as records.
# Size and seed of the embedded sets; their published numbers depend on both.
_EMBEDDED_SIZE, _EMBEDDED_SEED = 112, 0

PathLike = str | os.PathLike[str]


def _collect() -> dict[str, Entry]:
  """Return the entries of every module in `entries/`.

  Raises:
    ValueError: two modules define the same name.
  """
  embedded = Entry(
    title="embedded benchmark",
    folders=(),
    source="drawn by this package",
    licence="that of this package",
    citation="none",
    used_by="trying everything without a download",
  )
  found: dict[str, Entry] = {}
  for module in pkgutil.iter_modules(entries.__path__):
    name = f"{entries.__name__}.{module.name}"
    new = importlib.import_module(name).ENTRIES
    if twice := sorted(new.keys() & found.keys()):
      raise ValueError(f"{name}: data set {twice[0]!r} is already registered.")
    found |= new
  return found | {"embedded": embedded, "embedded_auxiliary": embedded}


ENTRIES: Mapping[str, Entry] = _collect()


def open_dataset(
  spec: str,
  *,
  data_root: PathLike | None = None,
  cache_dir: PathLike | None = None,
  masks: str = "compat",
) -> index.Dataset:
  """Open a data set by its registered name or by its folder.

  Args:
    spec: a key of `ENTRIES`, which takes precedence; "tfds:" and such a key for
      a data set built as records (tfds_builders.py); or a folder ("./mvtec" for
      a folder with the name of a key).
    data_root: the folder of the registered data sets.
    cache_dir: folder of the embedded sets; None for
      `environment.default_cache_dir()`.
    masks: see `masks.parse`: "compat" reads them as the papers' code does,
      where every value but 0 is anomalous; "robust" thresholds masks of graded
      values at one half, unless the data set is registered without such masks;
      "resize" accepts masks of another size than their image.

  Returns:
    The data set; its `notes` list differences from the published one.

  Raises:
    FileNotFoundError: the data set does not exist.
    ValueError: its files are not as expected, or an argument is unknown.
  """
  option = masks_lib.parse(masks)
  dataset = _open(spec, data_root, cache_dir)
  return read_masks_as(dataset, option, ENTRIES.get(dataset.name))


def read_masks_as(
  dataset: index.Dataset, option: masks_lib.Option, entry: Entry | None
) -> index.Dataset:
  """Return a data set whose masks are read in another way.

  Args:
    dataset: the data set.
    option: how its masks are read; see `open_dataset`.
    entry: its metadata, if it is registered.

  Raises:
    ValueError: records with another option than "compat".
  """
  robust = option.robust and (entry is None or entry.lossy_masks)
  if not (robust or option.resize):
    return dataset
  if any(s.mask_path.startswith(index.BUILT) for s in dataset.test):
    raise ValueError(
      f"{dataset.root}: records hold masks as they are read with "
      'config.masks = "compat"; read the files themselves for others.'
    )
  change = lambda sample: dataclasses.replace(
    sample, lossy_mask=robust, resize_mask=option.resize
  )
  return dataclasses.replace(
    dataset,
    train=tuple(map(change, dataset.train)),
    test=tuple(map(change, dataset.test)),
  )


def _open(
  spec: str, data_root: PathLike | None, cache_dir: PathLike | None
) -> index.Dataset:
  """Return the data set with the masks of "compat"."""
  if spec in ("embedded", "embedded_auxiliary"):
    return _read_embedded(spec, cache_dir or environment.default_cache_dir())
  name = spec.removeprefix(TFDS)
  if name in ENTRIES and spec.startswith(TFDS):
    # Not at the top: this imports TensorFlow.
    from zsad_jax.datasets import tfds_records

    return _check(tfds_records.open_built(name, data_root), ENTRIES[name])
  if spec in ENTRIES:
    return _check(_read_registered(spec, data_root), ENTRIES[spec])
  folder = copies.local(spec)
  if not os.path.isdir(folder):
    raise FileNotFoundError(
      f"{spec!r} is neither a folder nor a known data set; known are "
      f"{', '.join(ENTRIES)}."
    )
  return read_folder(folder)


def read_folder(root: PathLike, *, name: str | None = None) -> index.Dataset:
  """Read a folder: `meta.json`, else MVTec's layout, else the plain one.

  Args:
    root: the folder.
    name: of the data set; by default that of the folder.

  Raises:
    ValueError: it is empty or has none of these layouts.
  """
  root = Path(root)
  dataset = _read_common(root, name)
  if dataset is not None:
    return dataset
  found = sorted(path.name for path in root.iterdir())
  if not found:
    raise ValueError(f"{root} is empty; expected a data set.")
  raise ValueError(
    f"{root}: unknown layout; found {', '.join(found[:8])}"
    f"{', ...' if len(found) > 8 else ''}. Supported are, in this order: "
    "meta.json; <class>/test/<defect>/ with <class>/train/good/ and "
    "<class>/ground_truth/<defect>/ (MVTec); <class>/normal/ with, "
    "optionally, <class>/anomalous/ and <class>/masks/. The folder itself "
    "may be the class. Folders of normal images may be called "
    f"{', '.join(class_folders.NORMAL_FOLDERS)}, in any case."
  )


def _read_common(
  root: Path, name: str | None, class_name: str | None = None
) -> index.Dataset | None:
  """Read a layout that is not special to a data set; None: it has another.

  Raises:
    ValueError: the files are not as expected, or it is an export of an
      annotation tool.
  """
  if (root / meta_json.META).is_file():
    return meta_json.read(root, name=name)
  dataset = None
  try:
    if layouts.is_mvtec(root):
      dataset = layouts.read_mvtec(root, name=name)
    elif layouts.is_plain(root):
      dataset = layouts.read_plain(root, name=name, class_name=class_name)
  except ValueError:
    # Its folders may look like one of these layouts.
    if message := exports.refusal(root):
      raise ValueError(message) from None
    raise
  if dataset is None:
    if message := exports.refusal(root) or exports.labelme(root):
      raise ValueError(message)
    return None
  if not dataset.has_masks and (message := exports.labelme(root)):
    notes = (*dataset.notes, message)
    dataset = dataclasses.replace(dataset, notes=notes)
  return dataset


def prompt_names(dataset: index.Dataset) -> tuple[str, ...]:
  """Return the name of each class for text prompts."""
  entry = ENTRIES.get(dataset.name)
  names = dict(entry.prompt_names) if entry else {}
  if entry and names and entry.aliases:  # They all name one category.
    names = dict.fromkeys(entry.aliases, next(iter(names.values()))) | names
  return tuple(
    # Bytes that are not UTF-8 are no characters of a prompt.
    names.get(class_name, re.sub("[_/\ud800-\udfff]", " ", class_name))
    for class_name in dataset.class_names
  )


def _read_embedded(name: str, cache_dir: PathLike) -> index.Dataset:
  # Not at the top: drawing needs modules that reading does not.
  from zsad_jax.datasets.synthetic import benchmark

  root = benchmark.ensure(cache_dir, size=_EMBEDDED_SIZE, seed=_EMBEDDED_SEED)
  part = "auxiliary" if name == "embedded_auxiliary" else "benchmark"
  dataset = meta_json.read(os.path.join(root, part), name=name)
  note = benchmark.departure(dataset.root, part)
  return dataclasses.replace(dataset, notes=(note,) if note else ())


def find(
  name: str, data_root: PathLike | None, *, fetch: bool = False
) -> Path | None:
  """Return the folder of a registered data set, or None.

  Args:
    name: a key of `ENTRIES`.
    data_root: the folder of the data sets; None searches installed packages
      only.
    fetch: copy a remote data set; else the folder of the copy may not exist.
  """
  if data_root is not None:
    for folder in ENTRIES[name].folders:
      root = urls.join(data_root, folder)
      if urls.is_url(root):
        if urls.is_dir(root):
          return Path(copies.local(root) if fetch else copies.location(root))
      elif os.path.isdir(root):
        return Path(root).absolute()
  package = ENTRIES[name].find_package
  return package() if package else None


def _read_registered(name: str, data_root: PathLike | None) -> index.Dataset:
  root = find(name, data_root, fetch=True)
  if root is None:
    raise FileNotFoundError(_how_to_get(name, data_root))
  return read_entry(name, root)


def read_entry(name: str, root: PathLike) -> index.Dataset:
  """Read a registered data set from its folder, in any of its layouts.

  Args:
    name: a key of `ENTRIES`.
    root: the folder. Its layout is `meta.json`, else one of `Entry.raw`, else
      that of MVTec AD, else the plain one.

  Raises:
    ValueError: the folder has none of these layouts, or files are missing.
  """
  root, entry = Path(root).absolute(), ENTRIES[name]
  if not (root / meta_json.META).is_file():
    for raw in entry.raw:
      if raw.fits(root):
        train, test = raw.read(root)
        return index.make_dataset(name, root, train=train, test=test)
  # The folder of a single class may have any name.
  single = name if class_folders.is_plain_class(root) else None
  dataset = _read_common(root, name, class_name=single)
  if dataset is not None:
    return dataset
  expected = "; ".join(
    [
      "meta.json",
      *(raw.shows for raw in entry.raw),
      "<class>/{train,test}/ as in MVTec AD",
      "<class>/{normal,anomalous,masks}/",
    ]
  )
  found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
  raise ValueError(
    f"{root}: expected a layout of {entry.title}: {expected}; found {found}."
  )


def _how_to_get(name: str, data_root: PathLike | None) -> str:
  entry = ENTRIES[name]
  where = (
    f"none of the folders {', '.join(entry.folders)} exists in "
    f"{data_root if urls.is_url(data_root) else os.path.abspath(data_root)}"
    if data_root is not None
    else "no data root was given"
  )
  return (
    f"Data set {name!r} not found: {where}. Put it into "
    f"<data root>/{entry.folders[0]}. Source: {entry.source}. Licence: "
    f"{entry.licence}. Please cite {entry.citation}."
  )


def _check(dataset: index.Dataset, entry: Entry) -> index.Dataset:
  """Add the entry's settings, and notes on differences from it."""
  notes = list(dataset.notes)
  if difference := count_note(dataset, entry):
    notes.append(difference)
  if entry.has_masks and not dataset.has_masks:
    notes.append(
      f"{dataset.name}: no masks found, although the data set has masks; "
      "pixel metrics are not available."
    )
  return dataclasses.replace(
    dataset, mosaic_prob=entry.mosaic_prob, notes=tuple(notes)
  )


def count_note(dataset: index.Dataset, entry: Entry) -> str:
  """Describe how the number of images differs from the published one.

  Args:
    dataset: the data set.
    entry: its metadata.

  Returns:
    A sentence, or "" where the counts agree.
  """
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
