r"""Scores images: no masks, class names, fitting or network needed.

python -m zsad_jax.predict --workdir=runs/adaclip PATH [PATH ...]

A PATH is an image, a folder (searched with its subfolders) or a glob pattern.
With --references=PATH[,PATH] (images, folders, patterns, or a .txt list of
normal images of the same kind) the images are compared with these; nothing is
trained, so references come and go from call to call. The score without them
is shown beside.

For each image prints score and label, and writes under --output:

  scores.csv           image, score, label, threshold; with references also
                       zero_shot_score
  references.json      the references that were used
  <name>_overlay.png   the image with the anomaly map over it, in its own size
  <name>_map.npy       the map as float32 (s, s), unsmoothed, in [0, 1]
"""

import csv
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags
from PIL import Image
from scipy import ndimage

from zsad_jax import backbones
from zsad_jax.datasets import image_files, preprocess
from zsad_jax.inference import predictor, scoring
from zsad_jax.reporting import figures
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import cli, files


def output_names(images: Sequence[str]) -> list[str]:
  """Names for results: the path below the common folder, "/" as "_"."""
  if len(images) == 1:
    return [pathlib.Path(images[0]).stem]
  common = os.path.commonpath(
    [os.path.dirname(os.path.abspath(i)) for i in images]
  )
  relative = [os.path.relpath(os.path.abspath(i), common) for i in images]
  stems = [os.path.splitext(r)[0].replace(os.sep, "_") for r in relative]
  # a.png and a.jpg side by side keep their endings.
  twice = {s for s in stems if stems.count(s) > 1}
  whole = [r.replace(os.sep, "_") for r in relative]
  return [w if s in twice else s for s, w in zip(stems, whole)]


def overlay(
  path: str, anomaly_map: np.ndarray, limits: threshold_lib.Threshold
) -> Image.Image:
  """The image in its own size with the map over it."""
  image = np.asarray(preprocess.open_image(path))
  as_image = Image.fromarray(np.asarray(anomaly_map, np.float32))
  size = image.shape[1], image.shape[0]
  values = np.asarray(as_image.resize(size, Image.Resampling.BILINEAR))
  picture = figures.overlay(
    image, values, low=limits.map_low, high=limits.map_high
  )
  return Image.fromarray(picture)


def predict(
  run: run_lib.Run,
  paths: Sequence[str],
  output: pathlib.Path,
  *,
  class_name: str = "object",
  reference_paths: Sequence[str] = (),
  limit: float | None = None,
  batch_size: int = 8,
  skip_corrupt: bool = False,
) -> None:
  """Predicts all images, prints a line for each and writes the results.

  Args:
    run: a trained run.
    paths: images, folders and glob patterns.
    output: folder for the results.
    class_name: what the images show, for methods whose sentences say it.
    reference_paths: normal images of the same kind to compare with.
    limit: threshold instead of the one stored with the run.
    batch_size: images per call.
    skip_corrupt: count files that cannot be read instead of stopping.

  Raises:
    ValueError, FileNotFoundError: a path, or a file, is not as it has to be.
  """
  images = image_files.find(paths)
  normal = image_files.find(reference_paths) if reference_paths else ()
  if not normal and run.method.needs_references:
    raise ValueError(f"{run.config.name} needs --references.")
  stored = _threshold(run, bool(normal), limit)
  batch_size = predictor.round_up(min(batch_size, len(images)))
  score = scoring.Scorer(run, class_name, normal, batch_size)
  names, rows, skipped = output_names(images), [], []
  for positions, pixels, bad in scoring.batches(
    images,
    image_size=run.config.image_size,
    batch_size=batch_size,
    skip=skip_corrupt,
  ):
    skipped += bad
    result, alone = score(pixels)
    for row, i in enumerate(positions):
      raw = result["anomaly_map"][row]
      smooth = ndimage.gaussian_filter(raw, run.config.smooth_sigma)
      picture = overlay(images[i], smooth, stored)
      figures.save_png(output / f"{names[i]}_overlay.png", picture)
      _save_array(output / f"{names[i]}_map.npy", raw)
      value = float(result["pred_score"][row])
      label = "anomalous" if value >= stored.image_score else "normal"
      beside = [] if alone is None else [f"{float(alone[row]):.6g}"]
      limit_text = f"{stored.image_score:.6g}"
      rows.append([images[i], f"{value:.6g}", label, limit_text, *beside])
      note = f"  (zero-shot {float(alone[row]):.4g})" if beside else ""
      print(f"{value:.4g}  {label:9}  {images[i]}{note}", flush=True)
  columns = ["image", "score", "label", "threshold", "zero_shot_score"]
  _save_csv(output / "scores.csv", columns, rows)
  if normal:
    listed = json.dumps({class_name: normal}, indent=1) + "\n"
    files.write_text(output / "references.json", listed)
  anomalous = sum(row[2] == "anomalous" for row in rows)
  print(
    f"{len(rows)} images, {anomalous} anomalous (threshold "
    f"{stored.image_score:.4g}: {stored.source}"
    f"{f'; {len(normal)} references' if normal else ''}). Results: {output}"
  )
  if skipped:
    print(f"Skipped {len(skipped)} images that could not be read:")
    print("\n".join(f"  {message}" for message in skipped))


def _threshold(run, few_shot, limit):
  """The run's threshold, or its map range with a given one."""
  try:
    stored = threshold_lib.read(run.workdir, few_shot=few_shot)
  except FileNotFoundError:
    if limit is None:
      raise
    stored = threshold_lib.read(run.workdir)
  if limit is None:
    return stored
  return dataclasses.replace(stored, image_score=limit, source="given")


def _save_array(path, array):
  data = io.BytesIO()
  np.save(data, np.asarray(array, np.float32))
  files.write_bytes(path, data.getvalue())


def _save_csv(path, columns, rows):
  text = io.StringIO(newline="")
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(columns[: len(rows[0]) if rows else None])
  writer.writerows(rows)
  files.write_text(path, text.getvalue())


def define_flags():
  """The command's flags; defined only when it is run."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_string("output", "predictions", "Where results go.")
  flags.DEFINE_string("class_name", "object", "What the images show.")
  flags.DEFINE_list("references", [], "Normal images to compare with.")
  flags.DEFINE_float("threshold", None, "Instead of the run's own.")
  flags.DEFINE_integer("batch_size", 8, "Images per call.", 1)
  flags.DEFINE_bool("skip_corrupt", False, "Leave out what can't be read.")


def main(options):
  if not options.arguments:
    raise ValueError("No image given: name images, folders or patterns.")
  run = run_lib.load(options.workdir)
  if note := backbones.note(run.config.backbone.name):
    print(note)
  predict(
    run,
    options.arguments,
    pathlib.Path(options.output),
    class_name=options.class_name,
    reference_paths=options.references,
    limit=options.threshold,
    batch_size=options.batch_size,
    skip_corrupt=options.skip_corrupt,
  )


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True)
