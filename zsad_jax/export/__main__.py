r"""Export a trained detector to StableHLO or ONNX.

python -m zsad_jax.export --workdir=runs/adaclip --format=onnx

The program takes a batch of images, uint8 (b, s, s, 3) in RGB order, and
returns their scores (b,) and smoothed anomaly maps (b, s, s), for any b. It
contains the weights, the text features of --class_name and, with --references
or a --calibration that has some, the references. The files in --output are

  detector.stablehlo or detector.onnx   the program
  detector.json   size and resize rule of images, thresholds, versions, hashes
  predict.py      with ONNX: scores images by onnxruntime, Pillow and NumPy

Before they get their names, the program runs on --images, or on synthetic
images of the package, and is compared with the run: scores and maps may differ
by 1e-4 at most. docs/export.md lists the methods. ONNX needs
pip install 'zsad_jax[onnx]'.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from zsad_jax.datasets import image_files
from zsad_jax.datasets.synthetic import benchmark
from zsad_jax.inference import export
from zsad_jax.runs import exporting, opening
from zsad_jax.runtime import cli, files, urls

NAME = "detector"
EXAMPLE = "predict.py"
# One normal image of each, and one with its first kind of defect.
_SAMPLES = ("bottle", "carpet")


def define_flags() -> None:
  """Define the flags of the command."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_enum(
    "format", None, export.FORMATS, "Format of the program.", required=True
  )
  opening.define_flags(no_tiles="Refused: a program scores whole images.")
  flags.DEFINE_string(
    "output", None, "Folder to write; default: export/FORMAT in the run's."
  )
  flags.DEFINE_list(
    "images",
    [],
    "Images to compare on: images, folders or patterns. Default: synthetic.",
  )
  flags.DEFINE_bool("overwrite", False, "Replace a former export.")


def sample_images(paths: Sequence[str]) -> list[Any]:
  """Return the images of paths, or synthetic ones where there are none."""
  if paths:
    return list(image_files.find(paths))
  found = []
  for name in _SAMPLES:
    defect = benchmark.FAMILIES[name].defects[0]
    for each in (None, defect):
      found.append(np.array(benchmark.draw(name, each, index=0)[0]))
  return found


def target_folder(options: Any) -> pathlib.Path:
  """Return the folder to write.

  Raises:
    ValueError: it exists and is not to be replaced, or it is a URL.
  """
  if options.output:
    urls.refuse(options.output, "--output")
    target = pathlib.Path(options.output)
  elif urls.is_url(options.workdir):
    raise ValueError("--workdir is a URL: give a folder by --output.")
  else:
    target = pathlib.Path(options.workdir, "export", options.format)
  if not target.exists() or (target.is_dir() and not any(target.iterdir())):
    return target
  if not (target / f"{NAME}.json").is_file():
    raise ValueError(
      f"{target} exists and is no former export: give another --output."
    )
  if not options.overwrite:
    raise ValueError(
      f"{target} holds an export: give another --output, or --overwrite to "
      "replace it."
    )
  return target


def write(
  opened: opening.Opened,
  name: str,
  samples: Sequence[Any],
  folder: pathlib.Path,
  target: pathlib.Path,
) -> dict[str, float]:
  """Write the files of an export to a folder and compare it with the run.

  Args:
    opened: the detector.
    name: of the format.
    samples: images to compare on.
    folder: an empty folder.
    target: its later name, for messages.

  Returns:
    The largest differences, see `export.differences`.

  Raises:
    ValueError: the format lacks something, or the program differs.
  """
  form = export.module(name)
  program = exporting.make_program(opened.detector)
  form.check(program)
  live = exporting.expected(opened.detector, samples)
  path = folder / f"{NAME}{form.SUFFIX}"
  written = form.write(program, path)
  found = export.differences(form.load(path), *live)
  export.check(name, found, target / path.name)
  side = {"format": name, "versions": form.versions()}
  side |= exporting.describe(opened, written, found)
  side["largest_difference"]["images"] = len(samples)
  files.write_text(folder / f"{NAME}.json", json.dumps(side, indent=1) + "\n")
  if name == "onnx":
    source = pathlib.Path(__file__).with_name("stand_alone.py")
    files.write_bytes(folder / EXAMPLE, source.read_bytes())
  return found


def publish(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Give a complete folder its name, and remove what had it."""
  with files.explained(target), files.draft(target) as old:
    if target.exists():
      os.rename(target, old / "old")
    os.rename(folder, target)


def main(options: Any) -> None:
  """Run the command."""
  opening.check_alone("zsad export")
  if options.tile is not None:
    raise ValueError(exporting.TILES)
  target = target_folder(options)
  opened = opening.from_flags(options)
  samples = sample_images(options.images)
  with files.draft(target) as folder:
    found = write(opened, options.format, samples, folder, target)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    publish(folder, target)
  for file, size in sorted(sizes.items()):
    print(f"{target / file}  {size:,} bytes")
  print(
    f"Largest difference from the run on {len(samples)} images: scores "
    f"{found['pred_score']:.1e}, maps {found['anomaly_map']:.1e}."
  )
  if note := export.module(options.format).NOTE:
    print(f"note: {note}")


if __name__ == "__main__":
  cli.run(main, define_flags, alone=True, hub_runs=True)
