r"""Score images with a trained run, without masks, training or network access.

python -m zsad_jax.predict --workdir=runs/adaclip PATH [PATH ...]

A PATH is an image, a folder (searched with its subfolders) or a glob pattern.
With --references=PATH[,PATH] (images, folders, patterns, or a .txt list of
normal images of the same class) the images are compared with these references.
Nothing is trained, so references may differ from call to call; the score
without them is printed as well. With --ensemble=RUN,RUN --workdir is the new
folder of an ensemble of runs, whose scores and maps are averaged. With
--tile=SIZE large images are scored in overlapping tiles. With --watch=FOLDER
and no PATH, images are scored as they appear there, until Ctrl-C.

Prints the score, the score on a scale on which the threshold is 0.5, and the
label of each image. --save chooses what is written under --output:

  scores    scores.csv: a row for each image with scores, label, threshold and
            the written files, and a status: "scored", or why there is no score,
            such as a signal that stopped the command. It is always written;
            until the end it is called scores.partial.csv.
  overlays  <name>_overlay.png: the anomaly map over the image, with a caption
  maps      <name>_map.npy: the anomaly map as float32 (s, s), unsmoothed, in
            [0, 1]
  masks     <name>_mask.png: anomalous pixels 255, others 0, at the image's size
  regions   regions.csv and regions.json: connected regions of the masks

Masks and regions need a pixel threshold. With references there is also
references.json. All paths in these files are absolute.
"""

import contextlib
import functools
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from absl import flags

from zsad_jax.datasets import duplicates, image_files
from zsad_jax.inference import tiling as tiling_lib
from zsad_jax.reporting import (
  overlays,
  predictions,
  region_files,
  result_files,
  score_table,
)
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import ensemble, opening, peers, set_scores
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import cli, copies, file_names, progress, stopping
from zsad_jax.watch import command, settings

_HEADING = f"{'score':9}  normalized  {'label':9}  image"


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
  save: Sequence[str] | None = None,
  overlay_side: int = overlays.SIDE,
  tiling: tiling_lib.Tiling | None = None,
  calibration: str | None = None,
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
    save: outputs to write, see `result_files.choose`.
    overlay_side: longest side of an overlay's image in pixels; 0: the image's.
    tiling: tiles of large images; None for whole images.
    calibration: name of a calibration of the run, which has thresholds,
      references, class name and tiles of its own.

  Raises:
    ValueError, FileNotFoundError: a path or file is missing or invalid; the
      scores before it are kept.
  """
  choose_files = functools.partial(
    result_files.choose, save, image_only=run.method.image_only
  )
  searched = image_files.search(paths)
  images = searched.images
  choice = opening.choose(
    run,
    calibration,
    class_name=class_name,
    references=reference_paths,
    tiling=tiling,
  )
  normal = choice.references
  problem = "is scored and a reference: leave it out of one of them."
  duplicates.refuse(images, normal, problem)
  peers.check_images("the images to score", images)
  peers.check_images("the references", normal)
  detector = opening.make(
    run, choice, limit=limit, batch_size=batch_size, check=choose_files
  )
  predictions.check_replaces_no_image(output, images)
  found = score(detector, images, skip_corrupt=True)
  limits = detector.limits
  chosen = choose_files(limits)
  if save is None and limits.pixel is None and not run.method.image_only:
    print(result_files.NOTE)
  result_files.remove_earlier(output, chosen, has_references=bool(normal))
  if normal:
    predictions.save_references(output, choice.class_name, normal)
  writer = result_files.ResultWriter(
    output,
    chosen,
    limits,
    has_references=bool(normal),
    overlay_side=overlay_side,
  )
  labels, skipped = write_results(
    found, images, writer, skip_corrupt=skip_corrupt
  )
  if limits.is_of_training:
    print(f"note: {set_scores.training_note(run)}")
  _print_left_out(skipped, searched.note)
  print(summary(labels, limits, len(normal)), f"Results: {output}")


def _print_left_out(skipped, left_out):
  """Print which files have no score."""
  if skipped:
    print(f"Skipped because they cannot be read ({len(skipped)}):")
    print("\n".join(f"  {message}" for message in skipped))
  if left_out:  # Printed before the first image as well.
    print(left_out)


def write_results(
  found: Iterable[predictions.ImageResult | str],
  images: Sequence[str],
  writer: result_files.ResultWriter,
  *,
  skip_corrupt: bool,
) -> tuple[list[str], list[str]]:
  """Write the files and table rows of all images and print a line for each.

  Args:
    found: the result of each image, or a message if it is unreadable.
    images: their paths.
    writer: writes the files of an image.
    skip_corrupt: go on after an image that is unreadable.

  Returns:
    The labels of the scored images and the messages of the others.

  Raises:
    ValueError: an image is unreadable.
    OSError: a file cannot be written.
  """
  reported = progress.Progress("Predictions", len(images))
  labels, skipped = [], []
  with contextlib.ExitStack() as stack:
    table = stack.enter_context(
      score_table.ScoreTable(writer.output, images, writer.columns)
    )
    regions = None
    if "regions" in writer.save:
      regions = stack.enter_context(region_files.RegionTables(writer.output))
    for number, result in enumerate(found, 1):
      if isinstance(result, str):
        if not skip_corrupt:
          raise ValueError(result)
        table.skip(f"not read: {result}")
        skipped.append(result)
        continue
      row = writer.write(result)
      with stopping.postponed():
        if regions and row.found:
          size = result.detection.image_size
          regions.add(str(row.values["image"]), size, row.found)
        table.add(row)
      if not labels:
        print(_HEADING)
      print(line(result), flush=True)
      labels.append(result.detection.label)
      reported.update(number)
  return labels, skipped


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
  scores = f"{found.score:<9.4g}  {found.normalized_score:<10.4f}"
  text = f"{scores}  {found.label:9}  {path}"
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
  note = f"with {num_references} references" if num_references else ""
  note = "" if note in threshold.source else f", {note}"
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
  flags.DEFINE_string(
    "watch", None, "Score the images that appear in this folder, until Ctrl-C."
  )
  flags.DEFINE_string("output", "predictions", "Folder for the results.")
  opening.define_flags()
  flags.DEFINE_list(
    "save",
    None,
    "Outputs to write: some of scores, overlays, maps, masks and regions. By "
    "default all, masks and regions where there is a pixel threshold.",
  )
  flags.DEFINE_integer(
    "overlay_side",
    overlays.SIDE,
    "Longest side of the image in an overlay, in pixels; 0: as the image.",
    0,
  )
  flags.DEFINE_bool("skip_corrupt", False, "Skip images that cannot be read.")


def main(options: flags.FlagValues) -> None:
  """Run the command."""
  tiling = opening.check_flags(options)
  if options.save is not None:
    result_files.check_names(options.save)
  if options.watch is None:
    settings.refuse(pathlib.Path(options.output))
  if bool(options.arguments) == (options.watch is not None):
    raise ValueError(
      "--watch names the folder of the images; leave out other paths."
      if options.arguments
      else "No image given: name images, folders or patterns."
    )
  if options.ensemble:
    ensemble.write(options.workdir, options.ensemble)
  if options.watch is not None:
    command.run(options, line)
    return
  if tiling and options.threshold is None:
    print(opening.TILE_NOTE)
  run = opening.load(options.workdir)
  predict(
    run,
    options.arguments,
    pathlib.Path(options.output),
    class_name=options.class_name,
    reference_paths=options.references,
    limit=options.threshold,
    batch_size=options.batch_size,
    skip_corrupt=options.skip_corrupt,
    save=options.save,
    overlay_side=options.overlay_side,
    tiling=tiling,
    calibration=options.calibration,
  )


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True, hub_runs=True)
