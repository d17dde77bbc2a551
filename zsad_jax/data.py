r"""List, verify, index and synthesize data sets.

python -m zsad_jax.data list   [--data_root=DIR] [--markdown]
python -m zsad_jax.data verify --dataset=mvtec [--root=DIR]
python -m zsad_jax.data index  --dataset=mvtec --root=DIR
python -m zsad_jax.data index  --root=DIR
python -m zsad_jax.data synthesize --images=good/ --output=synthetic/

  list        prints every registered data set and its folder; with --markdown
              the table of data/README.md
  verify      opens every file and compares the counts with the published ones;
              --masks=compat|robust|resize as in config.masks
  index       writes DIR/meta.json, the index that the papers' codes share, from
              any layout; --output=FILE names another file
  synthesize  makes an auxiliary data set for training from normal images:
              random anomalies with masks, and preview.png.
              --kinds=scratch,hole (default: all), --number=1,2 anomalies per
              image, --size=0.4,1 and --strength=0.6,1 their ranges,
              --per_image=3, --seed=0, --class_name=NAME; --references=4 of the
              images are kept as references, in train/good

A data set is searched in --root, or below --data_root (default: data, or
ZSAD_JAX_DATA). See docs/data.md for layouts and formats.
"""

import os
import pathlib

from absl import flags

from zsad_jax.datasets import (
  image_files,
  index,
  listing,
  masks,
  meta_json,
  registry,
  verification,
)
from zsad_jax.datasets.entries import Entry
from zsad_jax.datasets.synthetic import preview, synthesis
from zsad_jax.reporting import figures
from zsad_jax.runtime import cli, copies, environment, files, urls

_SHOWN = 10  # Problems that are printed.
_REFERENCES = 4  # Of a synthesized data set.


def _open(options: flags.FlagValues) -> tuple[index.Dataset, Entry | None]:
  """Return the data set that the flags name, and its entry."""
  name, root = options.dataset, options.root
  if not (name or root):
    raise ValueError("Give --dataset=NAME, --root=DIR or both.")
  if name and name not in registry.ENTRIES:
    raise ValueError(
      f"There is no data set {name!r}; there are {', '.join(registry.ENTRIES)}."
    )
  option = masks.parse(options.masks)
  if not root:
    dataset = registry.open_dataset(
      name, data_root=options.data_root, masks=options.masks
    )
    return dataset, registry.ENTRIES[name]
  root = copies.local(root)
  if not os.path.isdir(root):
    raise FileNotFoundError(f"--root: {root} is no folder.")
  entry = registry.ENTRIES[name] if name else None
  dataset = (
    registry.read_entry(name, root) if name else registry.read_folder(root)
  )
  return registry.read_masks_as(dataset, option, entry), entry


def _list(options: flags.FlagValues) -> int:
  if options.markdown:
    print(listing.markdown())
  else:
    print(listing.text(options.data_root))
  return 0


def _verify(options: flags.FlagValues) -> int:
  dataset, entry = _open(options)
  counts = "/".join(map(str, dataset.counts))
  print(
    f"{dataset.name}: {counts} images (train / normal test / anomalous "
    f"test) of {len(dataset.class_names)} categories in {dataset.root}"
  )
  problems, notes = verification.verify(dataset, entry)
  for note in notes:
    print(f"  note: {note}")
  for problem in problems[:_SHOWN]:
    print(f"  {problem}")
  if len(problems) > _SHOWN:
    print(f"  ... and {len(problems) - _SHOWN} more")
  complete = "Complete, with notes." if notes else "Complete."
  print(f"{len(problems)} problems." if problems else complete)
  return 1 if problems else 0


def _index(options: flags.FlagValues) -> int:
  if urls.is_url(options.root or options.data_root) and not options.output:
    raise ValueError("--output: name a file for the index of a remote folder.")
  dataset, _ = _open(options)
  path = pathlib.Path(options.output or f"{dataset.root}/{meta_json.META}")
  files.write_text(path, meta_json.dumps(dataset, os.path.abspath(path.parent)))
  print(
    f"{path}: {'/'.join(map(str, dataset.counts))} images (train / normal "
    "test / anomalous test)."
  )
  return 0


def _synthesize(options: flags.FlagValues) -> int:
  if not options.images:
    raise ValueError("--images: name images, folders or patterns.")
  if not options.output:
    raise ValueError("--output: name a new folder.")
  image_files.check_normal(options.images)
  images = image_files.find(options.images)
  ranges = synthesis.Ranges(
    kinds=tuple(options.kinds) or tuple(synthesis.KINDS),
    number=_interval(options, "number", int),
    size=_interval(options, "size", float),
    strength=_interval(options, "strength", float),
  )
  output = pathlib.Path(options.output)
  kept = options.references
  if kept is None:
    kept = min(_REFERENCES, len(images) // 4)
  written = synthesis.synthesize(
    images,
    output,
    class_name=options.class_name,
    per_image=options.per_image,
    num_references=kept,
    ranges=ranges,
    seed=options.seed,
  )
  figures.save_png(output / "preview.png", preview.draw(written))
  print(
    f"{output}: {len(images) - kept} normal and {len(written)} anomalous "
    f"images of {len(ranges.kinds)} kinds, shown in {output / 'preview.png'}, "
    f"and {kept} normal references. Train "
    f"with --config.train_data='(\"{copies.origin(output)}\",)'."
  )
  return 0


def _interval(options, name, kind):
  """Return the two numbers of a flag."""
  values = options[name].value
  try:
    low, high = map(kind, values)
  except ValueError as error:
    raise ValueError(
      f"--{name} is two numbers, the smaller one first; got {','.join(values)}."
    ) from error
  return low, high


def define_flags() -> None:
  """Define the flags of the command."""
  root = environment.data_root()
  flags.DEFINE_string("data_root", root, "Folder of the data sets.")
  flags.DEFINE_string("dataset", None, "Name of a registered data set.")
  flags.DEFINE_string("root", None, "Folder of the data set.")
  flags.DEFINE_string("masks", "compat", masks.HELP)
  flags.DEFINE_bool("markdown", False, "Print the list as a Markdown table.")
  flags.DEFINE_string("output", None, "File, or folder, to write.")
  flags.DEFINE_list("images", [], "Normal images.")
  flags.DEFINE_list("kinds", [], "Kinds of anomalies; default: all.")
  flags.DEFINE_list("number", ["1", "2"], "Anomalies per image, a range.")
  flags.DEFINE_list(
    "size",
    ["0.4", "1"],
    "Side of the square that an anomaly is drawn on, as a fraction of the "
    "image's shorter side; a range.",
  )
  flags.DEFINE_list(
    "strength", ["0.6", "1"], "Opacity of anomalies in (0, 1]; a range."
  )
  flags.DEFINE_integer("per_image", 3, "Anomalous copies of each image.", 1)
  flags.DEFINE_integer(
    "references",
    None,
    "Normal images to keep as references, without anomalous copies; default: "
    f"{_REFERENCES}, at most a quarter of the images.",
    0,
  )
  flags.DEFINE_integer("seed", 0, "Seed of the synthetic anomalies.", 0)
  flags.DEFINE_string("class_name", "object", "Name of the object or texture.")


def main(options: flags.FlagValues) -> int:
  """Run the action that the command line names."""
  actions = {
    "list": _list,
    "verify": _verify,
    "index": _index,
    "synthesize": _synthesize,
  }
  if len(options.arguments) != 1 or options.arguments[0] not in actions:
    raise ValueError(f"Name an action: {', '.join(actions)}.")
  return actions[options.arguments[0]](options)


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True, alone=True)
