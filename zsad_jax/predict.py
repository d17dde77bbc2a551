r"""Scores images: no masks, class names, fitting or network needed.

python -m zsad_jax.predict --workdir=runs/adaclip PATH [PATH ...]

A PATH is an image, a folder (searched with its subfolders) or a glob pattern.
For each image prints score and label, and writes under --output:

  scores.csv           image, score, label, threshold
  <name>_overlay.png   the image with the anomaly map over it, in its own size
  <name>_map.npy       the map as float32 (s, s), unsmoothed, in [0, 1]
"""

import concurrent.futures
import csv
import glob
import io
import itertools
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags
from PIL import Image
from scipy import ndimage

from zsad_jax import cli, files, predictor, runs, threshold
from zsad_jax.datasets import layouts, preprocess
from zsad_jax.evaluation import figures


def find_images(paths: Sequence[str]) -> list[str]:
  """Returns the images that files, folders and globs stand for, each once.

  Raises:
    FileNotFoundError: a path matches nothing.
    ValueError: a folder holds no image.
  """
  found = {}
  for path in paths:
    if os.path.isdir(path):
      images = layouts.image_files(path)
    elif os.path.isfile(path):
      images = [path]
    else:
      images = sorted(p for p in glob.glob(path, recursive=True)
                      if os.path.isfile(p))  # fmt: skip
      if not images:
        raise FileNotFoundError(f"{path} is no image, folder or pattern.")
    found |= dict.fromkeys(map(str, images))
  return list(found)


def output_names(images: Sequence[str]) -> list[str]:
  """Names for results: the path below the common folder, "/" as "_"."""
  if len(images) == 1:
    return [pathlib.Path(images[0]).stem]
  common = os.path.commonpath([os.path.dirname(os.path.abspath(i))
                               for i in images])  # fmt: skip
  relative = [os.path.relpath(os.path.abspath(i), common) for i in images]
  stems = [os.path.splitext(r)[0].replace(os.sep, "_") for r in relative]
  # a.png and a.jpg side by side keep their endings.
  twice = {s for s in stems if stems.count(s) > 1}
  whole = [r.replace(os.sep, "_") for r in relative]
  return [w if s in twice else s for s, w in zip(stems, whole)]


def batches(
    images: Sequence[str], *, image_size: int, batch_size: int, skip: bool
) -> Iterator[tuple[list[int], np.ndarray, list[str]]]:
  """Yields positions, uint8 images (b, s, s, 3) and messages of bad files.

  Images are decoded in parallel, one batch ahead of what is asked for.
  """

  def load(path):
    try:
      return preprocess.load_image(path, image_size)
    except ValueError as error:
      if not skip:
        raise
      return str(error)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    ranges = [
      range(i, min(i + batch_size, len(images)))
      for i in range(0, len(images), batch_size)
    ]
    submit = lambda rows: [pool.submit(load, images[i]) for i in rows]
    ahead = [submit(rows) for rows in ranges[:1]]
    for rows, following in itertools.zip_longest(ranges, ranges[1:]):
      loaded = [future.result() for future in ahead.pop()]
      if following is not None:
        ahead.append(submit(following))
      good = [(i, x) for i, x in zip(rows, loaded) if not isinstance(x, str)]
      bad = [x for x in loaded if isinstance(x, str)]
      pixels = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
      for row, (_, x) in enumerate(good):
        pixels[row] = x
      yield [i for i, _ in good], pixels, bad


def overlay(
    path: str, anomaly_map: np.ndarray, limits: threshold.Threshold
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
    run: runs.Run,
    paths: Sequence[str],
    output: pathlib.Path,
    *,
    class_name: str = "object",
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
    limit: threshold instead of the one stored with the run.
    batch_size: images per call.
    skip_corrupt: count files that cannot be read instead of stopping.

  Raises:
    ValueError, FileNotFoundError: a path, or a file, is not as it has to be.
  """
  images = find_images(paths)
  names, stored = output_names(images), threshold.read(run.workdir)
  source = stored.source if limit is None else "given"
  limit = stored.image_score if limit is None else limit
  model = predictor.Predictor(
      run.method, run.backbone, [class_name], predictor.make_mesh()
  )
  rows, skipped = [], []
  for positions, pixels, bad in batches(
      images,
      image_size=run.config.image_size,
      batch_size=predictor.round_up(min(batch_size, len(images))),
      skip=skip_corrupt,
  ):
    skipped += bad
    batch = {"image": pixels, "class_id": np.zeros(len(pixels), np.int32)}
    result = model(run.params, run.stats, batch)
    for row, i in enumerate(positions):
      score = float(result["pred_score"][row])
      label = "anomalous" if score >= limit else "normal"
      raw = result["anomaly_map"][row]
      smooth = ndimage.gaussian_filter(raw, run.config.smooth_sigma)
      picture = overlay(images[i], smooth, stored)
      figures.save_png(output / f"{names[i]}_overlay.png", picture)
      _save_array(output / f"{names[i]}_map.npy", raw)
      rows.append([images[i], f"{score:.6g}", label, f"{limit:.6g}"])
      print(f"{score:.4g}  {label:9}  {images[i]}", flush=True)
  _save_csv(output / "scores.csv", rows)
  anomalous = sum(row[2] == "anomalous" for row in rows)
  print(
      f"{len(rows)} images, {anomalous} anomalous (threshold {limit:.4g}: "
      f"{source}). Results: {output}"
  )
  if skipped:
    print(f"Skipped {len(skipped)} images that could not be read:")
    print("\n".join(f"  {message}" for message in skipped))


def _save_array(path, array):
  data = io.BytesIO()
  np.save(data, np.asarray(array, np.float32))
  files.write_bytes(path, data.getvalue())


def _save_csv(path, rows):
  text = io.StringIO(newline="")
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["image", "score", "label", "threshold"])
  writer.writerows(rows)
  files.write_text(path, text.getvalue())


def define_flags():
  """The command's flags; defined only when it is run."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_string("output", "predictions", "Where results go.")
  flags.DEFINE_string("class_name", "object", "What the images show.")
  flags.DEFINE_float("threshold", None, "Instead of the run's own.")
  flags.DEFINE_integer("batch_size", 8, "Images per call.", 1)
  flags.DEFINE_bool("skip_corrupt", False, "Leave out what can't be read.")


def main(options):
  if not options.arguments:
    raise ValueError("No image given: name images, folders or patterns.")
  run = runs.load(options.workdir)
  if run.config.backbone.name == runs.EMBEDDED:
    print(runs.EMBEDDED_NOTE)
  predict(
      run,
      options.arguments,
      pathlib.Path(options.output),
      class_name=options.class_name,
      limit=options.threshold,
      batch_size=options.batch_size,
      skip_corrupt=options.skip_corrupt,
  )


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True)
