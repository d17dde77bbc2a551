r"""Score images with a trained run, without masks, training or network access.

python -m zsad_jax.predict --workdir=runs/adaclip PATH [PATH ...]

A PATH is an image, a folder (searched with its subfolders) or a glob pattern.
With --references=PATH[,PATH] (images, folders, patterns, or a .txt list of
normal images of the same class) the images are compared with these references.
Nothing is trained, so references may differ from call to call; the score
without them is printed as well. With --ensemble=RUN,RUN --workdir is the new
folder of an ensemble of runs, whose scores and maps are averaged.

Prints score and label of each image, and writes under --output:

  scores.csv           image, score, label, threshold; with references also
                       zero_shot_score; status: "scored", or why there is no
                       score, such as a signal that stopped the command.
                       Until the end it is called scores.partial.csv.
  references.json      the references, if there are any
  <name>_overlay.png   the anomaly map over the image, at the image's size
  <name>_map.npy       the anomaly map as float32 (s, s), unsmoothed, in [0, 1]
"""

import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from zsad_jax import backbones
from zsad_jax.datasets import duplicates, image_files
from zsad_jax.reporting import predictions
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import ensemble, ensemble_detector, peers
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import cli, copies, file_names, progress


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
  """Score all images, print a line for each and write the results.

  Args:
    run: a trained run.
    paths: images, folders and glob patterns.
    output: folder for the results.
    class_name: object class in the images, for methods whose text prompts
      contain it.
    reference_paths: normal images of the same class to compare with.
    limit: threshold that replaces the one stored with the run.
    batch_size: images per call.
    skip_corrupt: count files that cannot be read instead of stopping.

  Raises:
    ValueError, FileNotFoundError: a path or file is missing or invalid; the
      scores before it are kept.
  """
  searched = image_files.search(paths)
  images = searched.images
  normal = image_files.find(reference_paths) if reference_paths else ()
  problem = "is scored and a reference: leave it out of one of them."
  duplicates.refuse(images, normal, problem)
  peers.check_images("the images to score", images)
  peers.check_images("the references", normal)
  detector = ensemble_detector.make_detector(
    run, class_name=class_name, threshold=limit, batch_size=batch_size
  )
  if normal:
    detector = detector.with_references(normal)
  predictions.check_replaces_no_image(output, images)
  found = score(detector, images, skip_corrupt=True)
  threshold = threshold_lib.read_or_replace(
    run.workdir, few_shot=bool(normal), image_score=limit
  )
  if normal:
    predictions.save_references(output, class_name, normal)
  reported = progress.Progress("Predictions", len(images))
  labels, skipped = [], []
  table = predictions.ScoreTable(output, images, has_references=bool(normal))
  with table:
    for number, result in enumerate(found, 1):
      if isinstance(result, str):
        if not skip_corrupt:
          raise ValueError(result)
        table.skip(f"not read: {result}")
        skipped.append(result)
        continue
      predictions.save_overlay(output, result, threshold)
      predictions.save_map(output, result)
      table.add(result)
      print(line(result), flush=True)
      labels.append(result.detection.label)
      reported.update(number)
  print(summary(labels, threshold, len(normal)), f"Results: {output}")
  if skipped:
    print(f"Skipped {len(skipped)} images that could not be read:")
    print("\n".join(f"  {message}" for message in skipped))
  if searched.note:  # Printed before the first image as well.
    print(searched.note)


def score(
  detector: detector_lib.Detector,
  images: Sequence[str],
  *,
  skip_corrupt: bool = False,
) -> Iterator[predictions.ImageResult | str]:
  """Iterate over the result of each image, or a message if it is unreadable.

  Args:
    detector: the detector.
    images: paths.
    skip_corrupt: yield messages instead of raising them.
  """
  names = predictions.output_names(images)
  # A generator expression: `stream` checks its arguments right here.
  return (
    found
    if isinstance(found, str)
    else predictions.ImageResult(images[i], names[i], found)
    for i, found in detector.stream(images, skip_corrupt=skip_corrupt)
  )


def line(result: predictions.ImageResult) -> str:
  """Return the line to print for an image."""
  found = result.detection
  path = file_names.shown(copies.origin(result.path))
  text = f"{found.score:.4g}  {found.label:9}  {path}"
  if found.zero_shot_score is None:
    return text
  return f"{text}  (zero-shot {found.zero_shot_score:.4g})"


def summary(
  labels: Sequence[str],
  threshold: threshold_lib.Threshold,
  num_references: int,
) -> str:
  """Return the counts to print after all images."""
  anomalous = sum(label == "anomalous" for label in labels)
  note = f"; {num_references} references" if num_references else ""
  return (
    f"{len(labels)} images, {anomalous} anomalous (threshold "
    f"{threshold.image_score:.4g}: {threshold.source}{note})."
  )


def define_flags() -> None:
  """Define the command's flags, only when it is run."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_list(
    "ensemble", [], "Folders of runs that --workdir combines from now on."
  )
  flags.DEFINE_string("output", "predictions", "Folder for the results.")
  flags.DEFINE_string("class_name", "object", "Object class in the images.")
  flags.DEFINE_list(
    "references",
    [],
    "Normal images to compare with: images, folders, patterns or .txt lists.",
  )
  flags.DEFINE_float(
    "threshold", None, "Threshold that replaces the one stored with the run."
  )
  flags.DEFINE_integer("batch_size", 8, "Images per call.", 1)
  flags.DEFINE_bool("skip_corrupt", False, "Skip images that cannot be read.")


def main(options: flags.FlagValues) -> None:
  """Run the command."""
  if not options.arguments:
    raise ValueError("No image given: name images, folders or patterns.")
  if options.threshold is not None and not math.isfinite(options.threshold):
    raise ValueError(
      f"--threshold is {options.threshold}; expected a finite number."
    )
  image_files.check_normal(options.references)
  if options.ensemble:
    ensemble.write(options.workdir, options.ensemble)
  run = ensemble.load(options.workdir)
  config: Any = run.config
  if note := backbones.note(config.backbone.name):
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
