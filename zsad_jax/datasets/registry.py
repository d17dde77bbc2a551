"""The data sets known by name, and how a name or a folder is opened.

No data is shipped or downloaded, apart from `embedded`, which is drawn: the
licences are between the user and the sources.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from zsad_jax.datasets import elpv, index, layouts

# Size and seed of the drawn sets: numbers quoted for them depend on both.
_EMBEDDED_SIZE, _EMBEDDED_SEED = 112, 0


@dataclasses.dataclass(frozen=True)
class Entry:
  """What is known of a data set before it is opened.

  Attributes:
    folders: where it may lie below the data root, the usual name first.
    source: where to get it.
    licence: of the data.
    citation: the publication to cite.
    has_masks: whether it comes with masks.
    counts: published number of training, normal test and anomalous test
      images; None where it varies.
    mosaic_prob: AdaCLIP's rate of mosaics in training.
    prompt_names: what to call a class in a sentence, where its name with
      spaces for underscores would not do.
  """

  folders: tuple[str, ...]
  source: str
  licence: str
  citation: str
  has_masks: bool = True
  counts: tuple[int, int, int] | None = None
  mosaic_prob: float = 0.0
  prompt_names: Mapping[str, str] = dataclasses.field(default_factory=dict)


_CVC = "not stated, research use (Computer Vision Center, UAB)"
_DRAWN = dict(folders=(), source="drawn by this package",
              licence="that of this package", citation="none")

# Counts: the sets' papers, as given by AdaCLIP and FAPrompt. Names in
# sentences: PromptAD for VisA, AnomalyCLIP for the colon.
ENTRIES: Mapping[str, Entry] = {
    "mvtec": Entry(
        folders=("mvtec", "mvtec_anomaly_detection"),
        source="https://www.mvtec.com/company/research/datasets/mvtec-ad",
        licence="CC BY-NC-SA 4.0",
        citation="Bergmann et al., CVPR 2019",
        counts=(3629, 467, 1258),
        mosaic_prob=0.2),  # AdaCLIP, authors' code; every other set has 0.
    "visa": Entry(
        folders=("visa", "VisA_pytorch/1cls", "VisA_20220922"),
        source="https://github.com/amazon-science/spot-diff, with meta.json "
               "or converted to VisA_pytorch/1cls",
        licence="CC BY 4.0",
        citation="Zou et al., ECCV 2022",
        counts=(8659, 962, 1200),
        prompt_names={
            "chewinggum": "chewing gum", "macaroni1": "macaroni",
            "macaroni2": "macaroni", **{
                f"pcb{i}": "printed circuit board" for i in range(1, 5)}}),
    "colondb": Entry(
        folders=("colondb", "ColonDB", "CVC-ColonDB"),
        source="CVC-ColonDB, folders images/ and masks/",
        licence=_CVC,
        citation="Tajbakhsh et al., IEEE TMI 2016",
        counts=(0, 0, 380),
        prompt_names={"ColonDB": "colon"}),
    "clinicdb": Entry(
        folders=("clinicdb", "ClinicDB", "CVC-ClinicDB"),
        source="CVC-ClinicDB, folders images/ and masks/",
        licence=_CVC,
        citation="Bernal et al., CMIG 2015",
        counts=(0, 0, 612),
        prompt_names={"ClinicDB": "colon"}),
    "elpv": Entry(
        folders=("elpv", "elpv-dataset"),
        source="pip install elpv-dataset, or "
               "https://github.com/zae-bayern/elpv-dataset with labels.csv",
        licence="CC BY-NC-SA 4.0",
        citation="Buerhop-Lutz et al., EU PVSEC 2018",
        has_masks=False,
        counts=(1131, 377, 715),
        prompt_names={"elpv": "solar cell"}),
    "embedded": Entry(**_DRAWN),
    "embedded_auxiliary": Entry(**_DRAWN),
}

_CLASS_OF_PAIRS = {"colondb": "ColonDB", "clinicdb": "ClinicDB"}  # AdaCLIP's.


def default_cache_dir() -> str:
  """Returns the folder for what the package makes itself; not created."""
  chosen = os.environ.get("ZSAD_JAX_CACHE")
  if chosen:
    return os.path.abspath(chosen)
  base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return os.path.join(os.path.abspath(base), "zsad_jax")


def open_dataset(
    spec: str,
    *,
    data_root: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> index.Dataset:
  """Opens a data set by its registered name or by its folder.

  Args:
    spec: a key of `ENTRIES`, which wins, or a folder ("./mvtec" for a folder
      that is called like a key).
    data_root: the folder that holds the registered data sets.
    cache_dir: where the embedded sets are drawn; `default_cache_dir()` if
      None.

  Returns:
    The data set; its `notes` tell what differs from the published one.

  Raises:
    FileNotFoundError: the data set is not there.
    ValueError: its files are not as expected.
  """
  if spec in ("embedded", "embedded_auxiliary"):
    return _read_embedded(spec, cache_dir or default_cache_dir())
  if spec in ENTRIES:
    return _check(_read_registered(spec, data_root), ENTRIES[spec])
  if not os.path.isdir(spec):
    raise FileNotFoundError(
        f"{spec!r} is neither a folder nor a known data set; known are "
        f"{', '.join(ENTRIES)}.")
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
      "<class>/ground_truth/<defect>/ (MVTec); normal/ with, optionally, "
      "anomalous/ and masks/.")


def prompt_names(dataset: index.Dataset) -> tuple[str, ...]:
  """Returns the name of each class for use in a sentence."""
  entry = ENTRIES.get(dataset.name)
  names = entry.prompt_names if entry else {}
  return tuple(names.get(class_name, class_name.replace("_", " "))
               for class_name in dataset.class_names)


def _read_embedded(
    name: str, cache_dir: str | os.PathLike[str]
) -> index.Dataset:
  # Not at the top: drawing needs modules that reading does not.
  from zsad_jax.datasets.drawn import benchmark
  root = benchmark.ensure(cache_dir, size=_EMBEDDED_SIZE, seed=_EMBEDDED_SEED)
  part = "auxiliary" if name == "embedded_auxiliary" else "benchmark"
  dataset = index.read_meta(os.path.join(root, part), name=name)
  note = benchmark.departure(dataset.root, part)
  return dataclasses.replace(dataset, notes=(note,) if note else ())


def _read_registered(
    name: str, data_root: str | os.PathLike[str] | None
) -> index.Dataset:
  for folder in ENTRIES[name].folders if data_root is not None else ():
    root = Path(data_root) / folder
    if root.is_dir():
      return _read_entry(name, root)
  package = elpv.find_package() if name == "elpv" else None
  if package:
    return elpv.read(package)
  raise FileNotFoundError(_how_to_get(name, data_root))


def _read_entry(name: str, root: Path) -> index.Dataset:
  if (root / index.META).is_file():
    return index.read_meta(root, name=name)
  if name == "elpv" and (root / elpv.LABELS).is_file():
    return elpv.read(root)
  if name in _CLASS_OF_PAIRS and layouts.is_pairs(root):
    return layouts.read_pairs(root, name=name,
                              class_name=_CLASS_OF_PAIRS[name])
  return read_folder(root, name=name)


def _how_to_get(
    name: str, data_root: str | os.PathLike[str] | None
) -> str:
  entry = ENTRIES[name]
  where = (f"none of the folders {', '.join(entry.folders)} exists in "
           f"{os.path.abspath(data_root)}" if data_root is not None
           else "no data root was given")
  return (f"Data set {name!r} not found: {where}. Put it into "
          f"<data root>/{entry.folders[0]}. Source: {entry.source}. Licence: "
          f"{entry.licence}. Please cite {entry.citation}.")


def _check(dataset: index.Dataset, entry: Entry) -> index.Dataset:
  """Adds the entry's settings, and notes on what differs from it."""
  notes = list(dataset.notes)
  if entry.counts and dataset.counts != entry.counts:
    show = lambda counts: "/".join(map(str, counts))
    notes.append(
        f"{dataset.name}: {show(dataset.counts)} images (train / normal test "
        f"/ anomalous test), published are {show(entry.counts)}; results are "
        "not comparable.")
  if entry.has_masks and not dataset.has_masks:
    notes.append(f"{dataset.name}: no masks found, although the set has them; "
                 "pixel metrics are not available.")
  return dataclasses.replace(
      dataset, mosaic_prob=entry.mosaic_prob, notes=tuple(notes))
