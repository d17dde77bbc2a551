r"""Data sets on disk: what is there, whether it is whole, and its index.

python -m zsad_jax.data list   [--data_root=DIR]
python -m zsad_jax.data verify --dataset=mvtec [--root=DIR]
python -m zsad_jax.data index  --dataset=mvtec --root=DIR
python -m zsad_jax.data index  --root=DIR
python -m zsad_jax.data synthesize --images=good/ --output=made/

  list     every data set, with where it was found or looked for
  verify   opens every file; compares the numbers of images with the published
  index    writes DIR/meta.json, the index that the papers' codes share, from
           any layout; --output=FILE puts it elsewhere
  synthesize  makes an auxiliary data set for training from normal images:
           defects with masks, drawn at random, and preview.png to look at.
           --kinds=scratch,hole (default: all), --number=1,2 defects a picture,
           --size=0.4,1 and --strength=0.6,1 their ranges, --per_image=3,
           --seed=0, --class_name=NAME

A data set is looked for in --root, or below --data_root (default: data, or
ZSAD_JAX_DATA).
"""

import collections
import concurrent.futures
import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags
from PIL import Image, ImageDraw, ImageFont

from zsad_jax.datasets import index, preprocess, registry
from zsad_jax.datasets.synthetic import synthesis
from zsad_jax.inference import scoring
from zsad_jax.reporting import figures
from zsad_jax.runtime import cli, files
from zsad_jax.types import ANOMALOUS, NORMAL

_SHOWN = 10  # Bad files that are named.
_PAPERS_SIZE = 518  # Pixels.
_PREVIEWS, _TILE, _LINE = 3, 160, 24  # Pictures of a kind, sizes in pixels.


def list_datasets(data_root: str) -> str:
  """A table of all data sets: counts, licence, folder."""
  lines = []
  for name, entry in registry.ENTRIES.items():
    if not entry.folders:
      continue
    root = registry.find(name, data_root)
    where = (
      str(root) if root else f"not in {data_root}/" + "|".join(entry.folders)
    )
    counts = "/".join("?" if c is None else str(c) for c in entry.counts)
    lines.append((name, entry.title, counts, entry.licence, where))
  widths = [max(map(len, column)) for column in zip(*lines)]
  return "\n".join(
    "  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
    for line in lines
  )


def verify(
  dataset: index.Dataset, entry: registry.Entry | None
) -> tuple[list[str], list[str]]:
  """Opens every file; returns what is wrong and what to know, a line each."""
  problems = list(dataset.notes)
  if entry is not None:
    problems += filter(None, [registry.count_note(dataset, entry)])
    problems += _category_notes(dataset, entry)
  samples = [*dataset.train, *dataset.test]
  paths = collections.Counter(s.image_path for s in samples)
  problems += [f"{p}: listed {n} times." for p, n in paths.items() if n > 1]
  trained = {s.image_path for s in dataset.train}
  problems += [
    f"{s.image_path}: both to train on and to test on."
    for s in dataset.test
    if s.image_path in trained
  ]
  with concurrent.futures.ThreadPoolExecutor() as pool:
    looked = list(pool.map(_look, samples))
  problems += [look.problem for look in looked if look.problem]
  lossy = bool(entry and entry.lossy_masks)
  return problems, list(_mask_notes(looked, lossy))


class _Look(NamedTuple):
  """What was seen of a sample's files.

  Attributes:
    problem: what is wrong with them, or "".
    between: share of the mask's pixels that are neither black nor white.
    vanishes: whether the mask is empty at the papers' size.
  """

  problem: str = ""
  between: float = 0.0
  vanishes: bool = False


def _look(sample):
  try:
    _, mask = preprocess.open_pair(sample)
    if not sample.mask_path:
      return _Look()
    between = preprocess.share_between(sample.mask_path)
  except ValueError as error:
    return _Look(str(error))
  if not mask.getbbox():
    return _Look(f"{sample.mask_path}: empty, but its image is anomalous.")
  vanishes = not preprocess.resize_mask(mask, _PAPERS_SIZE).any()
  return _Look("", between, vanishes)


def _mask_notes(looked, lossy):
  """What to know of masks that are right as files, a line each."""
  between = [look.between for look in looked if look.between]
  if lossy and between:
    yield (
      f"{len(between)} masks have values between black and white "
      f"({100 * sum(between) / len(between):.2g} % of their pixels on "
      "average): they are JPEG files. Whatever is not 0 counts as "
      "anomalous, as in the papers' code; --config.masks=robust counts "
      "what is above one half."
    )
  if vanishing := sum(look.vanishes for look in looked):
    yield (
      f"{vanishing} masks are empty at {_PAPERS_SIZE} pixels: their defects "
      "are too small to be left; the images stay anomalous."
    )


def _category_notes(dataset, entry):
  """How categories differ from the published ones, a line each."""
  count = collections.Counter()
  for sample in dataset.train:
    count[sample.class_name, "train"] += 1
  for sample in dataset.test:
    count[sample.class_name, sample.label] += 1
  known = {name for name, _ in count}
  if missing := [name for name in entry.categories if name not in known]:
    yield f"categories that are not there: {', '.join(missing)}."
  for name, published in entry.category_counts.items():
    if name in missing:
      continue
    found = tuple(count[name, k] for k in ("train", NORMAL, ANOMALOUS))
    if found != published:
      show = lambda counts: "/".join(map(str, counts))
      yield f"{name}: {show(found)} images, published are {show(published)}."


def to_meta(dataset: index.Dataset, folder: str) -> str:
  """The text of `meta.json`, with paths relative to its folder.

  Raises:
    ValueError: a sample is a part of a file, which the index cannot say.
  """
  parts = {"train": dataset.train, "test": dataset.test}
  meta = {part: {} for part in parts}
  for part, samples in parts.items():
    for sample in samples:
      if index.file_and_box(sample.image_path)[1] or sample.more_masks:
        raise ValueError(
          f"{sample.image_path}: meta.json cannot name parts of files, as "
          f"which {dataset.name} is used."
        )
      relative = lambda path: (
        os.path.relpath(path, folder).replace(os.sep, "/") if path else ""
      )
      record = {
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
      meta[part].setdefault(sample.class_name, []).append(record)
  return json.dumps(meta, indent=1, ensure_ascii=False) + "\n"


def _open(options):
  """The data set that the flags name, and its entry."""
  name, root = options.dataset, options.root
  if not (name or root):
    raise ValueError("Give --dataset=NAME, --root=DIR or both.")
  if name and name not in registry.ENTRIES:
    raise ValueError(
      f"There is no data set {name!r}; there are {', '.join(registry.ENTRIES)}."
    )
  if not root:
    return (
      registry.open_dataset(name, data_root=options.data_root),
      registry.ENTRIES[name],
    )
  if not os.path.isdir(root):
    raise FileNotFoundError(f"--root: {root} is no folder.")
  if name:
    return registry.read_entry(name, root), registry.ENTRIES[name]
  return registry.read_folder(root), None


def _verify(options):
  dataset, entry = _open(options)
  counts = "/".join(map(str, dataset.counts))
  print(
    f"{dataset.name}: {counts} images (train / normal test / anomalous "
    f"test) of {len(dataset.class_names)} categories in {dataset.root}"
  )
  problems, notes = verify(dataset, entry)
  for note in notes:
    print(f"  note: {note}")
  for problem in problems[:_SHOWN]:
    print(f"  {problem}")
  if len(problems) > _SHOWN:
    print(f"  ... and {len(problems) - _SHOWN} more")
  print("Complete." if not problems else f"{len(problems)} problems.")
  return 1 if problems else 0


def _index(options):
  dataset, _ = _open(options)
  path = pathlib.Path(options.output or os.path.join(dataset.root, index.META))
  folder = os.path.abspath(path.parent)
  files.write_text(path, to_meta(dataset, folder))
  print(
    f"{path}: {'/'.join(map(str, dataset.counts))} images (train / normal "
    "test / anomalous test)."
  )
  return 0


def _synthesize(options):
  images = scoring.find_images(options.images)
  if not images:
    raise ValueError("--images: name images, folders or patterns.")
  if not options.output:
    raise ValueError("--output: name a new folder.")
  numbers = lambda name, kind: tuple(kind(v) for v in options[name].value)
  ranges = synthesis.Ranges(
    kinds=tuple(options.kinds) or tuple(synthesis.KINDS),
    number=numbers("number", int),
    size=numbers("size", float),
    strength=numbers("strength", float),
  )
  output = pathlib.Path(options.output)
  written = synthesis.synthesize(
    images,
    output,
    class_name=options.class_name,
    per_image=options.per_image,
    ranges=ranges,
    seed=options.seed,
  )
  figures.save_png(output / "preview.png", preview(written))
  print(
    f"{output}: {len(images)} normal and {len(written)} damaged images of "
    f"{len(ranges.kinds)} kinds; look at {output / 'preview.png'}. Train "
    f"on it with --config.train_data='(\"{output}\",)'."
  )
  return 0


def preview(written: Sequence[tuple[str, str, str]]) -> Image.Image:
  """Some pictures of each kind, each beside its mask."""
  chosen = collections.defaultdict(list)
  for kind, *paths in written:
    if len(chosen[kind]) < _PREVIEWS:
      chosen[kind].append(paths)
  canvas = Image.new(
    "RGB", (2 * _PREVIEWS * _TILE, len(chosen) * (_TILE + _LINE)), "white"
  )
  draw = ImageDraw.Draw(canvas)
  for row, (kind, pairs) in enumerate(chosen.items()):
    top = row * (_TILE + _LINE)
    draw.text((4, top + 2), kind, "black", ImageFont.load_default(_LINE - 6))
    for column, path in enumerate(sum(pairs, [])):
      tile = Image.open(path).convert("RGB").resize((_TILE, _TILE))
      canvas.paste(tile, (column * _TILE, top + _LINE))
  return canvas


def define_flags():
  """The command's flags; defined only when it is run."""
  root = os.environ.get("ZSAD_JAX_DATA", "data")
  flags.DEFINE_string("data_root", root, "Folder of the data sets.")
  flags.DEFINE_string("dataset", None, "Name of a data set.")
  flags.DEFINE_string("root", None, "Its folder.")
  flags.DEFINE_string("output", None, "File, or folder, to write.")
  flags.DEFINE_list("images", [], "Normal images.")
  flags.DEFINE_list("kinds", [], "Of defects.")
  flags.DEFINE_list("number", ["1", "2"], "Of defects in a picture.")
  flags.DEFINE_list("size", ["0.4", "1"], "Of the part they are drawn on.")
  flags.DEFINE_list("strength", ["0.6", "1"], "Of defects.")
  flags.DEFINE_integer("per_image", 3, "Damaged copies of each image.", 1)
  flags.DEFINE_integer("seed", 0, "Of what is drawn.", 0)
  flags.DEFINE_string("class_name", "object", "What the images show.")


def main(options):
  actions = {
    "list": lambda o: print(list_datasets(o.data_root)),
    "verify": _verify,
    "index": _index,
    "synthesize": _synthesize,
  }
  if len(options.arguments) != 1 or options.arguments[0] not in actions:
    raise ValueError(f"Say what to do: {', '.join(actions)}.")
  return actions[options.arguments[0]](options)


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True)
