r"""Set the thresholds of a run, or of a product, from images of the user.

python -m zsad_jax.calibrate --workdir=runs/adaclip --rate=0.01 good/
python -m zsad_jax.calibrate --workdir=runs/adaclip good/ --anomalous=bad/
python -m zsad_jax.calibrate --workdir=runs/adaclip --name=line3 good/

From normal images only: split-conformal thresholds. A new normal image has a
score that reaches the threshold with a probability of at most --rate, and a
pixel that reaches the pixel threshold as well. With anomalous images: the
threshold with the best F1; with their masks, the pixel threshold with the best
pixel F1. The thresholds are stored in the run, where `predict` and
`zsad_jax.load` read them. With --name they are stored as a calibration, with
references, class name and tiles, for `predict --calibration=NAME`.

  --rate=0.01             false-positive rate; default 0.05
  --anomalous=PATH,PATH   images, folders or patterns of anomalous images
  --anomalous_masks=PATH  folder of masks with the names of these images
  --masks=resize          reading of masks; default compat
  --references=PATH,PATH  set the thresholds of scores with these references
  --class_name="hex nut"  object class in the images
  --name=line3            store a calibration of this name
  --overwrite             replace the calibration of this name; commands that
                          use it have to be started again
  --tile=1024             score tiles of this size; only with --name
  --skip_corrupt          skip images that cannot be read
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from absl import flags

from zsad_jax.datasets import duplicates, image_files, preprocess
from zsad_jax.datasets import masks as masks_lib
from zsad_jax.evaluation import calibration, protocol, user_images
from zsad_jax.inference import tiling as tiling_lib
from zsad_jax.runs import calibrations, ensemble_detector, lock, opening, peers
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runs.calibration_file import Calibration
from zsad_jax.runtime import cli, progress


@dataclasses.dataclass(frozen=True)
class Product:
  """Calibration to store under a name.

  Attributes:
    name: see `calibrations.check_name`.
    overwrite: replace the calibration of this name.
    tiling: tiles of images; None: images are scored as a whole.
  """

  name: str
  overwrite: bool = False
  tiling: tiling_lib.Tiling | None = None


def calibrate(
  run: run_lib.Run,
  normal: Sequence[str],
  *,
  rate: float,
  anomalous: Sequence[str] = (),
  anomalous_masks: str = "",
  masks: str = "compat",
  reference_paths: Sequence[str] = (),
  class_name: str = "object",
  product: Product | None = None,
  skip_corrupt: bool = False,
) -> threshold_lib.Threshold:
  """Find thresholds, store them in the run and return them.

  Args:
    run: a trained run.
    normal: images, folders and glob patterns of normal images.
    rate: false-positive rate; with anomalous images that of pixels only, and
      with masks it is not used.
    anomalous: images, folders and glob patterns of anomalous images.
    anomalous_masks: folder of their masks; "": there are none.
    masks: how masks are read, see `datasets.masks.parse`.
    reference_paths: normal images to compare with; one that is in `normal` is
      scored with the others.
    class_name: object class in the images.
    product: calibration to store; None: the thresholds of the run are replaced.
    skip_corrupt: skip files that cannot be read instead of stopping.

  Raises:
    ValueError, FileNotFoundError: a path, the rate or the name is invalid, the
      name is taken, or an image is normal and anomalous, a reference and
      anomalous, or the only reference of itself.
  """
  calibration.check_rate(rate)
  replaces = product and calibrations.check_free(
    run.workdir, product.name, overwrite=product.overwrite
  )
  user_images.check_run(run, named=bool(product), masks=bool(anomalous_masks))
  images = _find_all(normal, anomalous, reference_paths)
  _check_all(run, images)
  copied = ()
  if product:
    copied = calibrations.describe_references(images.references)
  found_masks = {}
  if anomalous_masks:
    found_masks = _find_masks(
      images.anomalous, anomalous_masks, masks, skip_corrupt
    )
  # The thresholds are about to be set: labels of this detector are not used.
  detector = ensemble_detector.make_detector(
    run,
    class_name=class_name,
    threshold=math.inf,
    tiling=product.tiling if product else None,
  )
  if images.references:
    detector = detector.with_references(images.references)
  results = user_images.UserImages(rate, with_masks=bool(anomalous_masks))
  _score_normal(detector, images, skip_corrupt, results)
  _score_anomalous(detector, images, skip_corrupt, results, found_masks)
  details = ""
  if few_shot := detector.has_references:
    details += f", with {len(images.references)} references"
  if class_name != "object":
    details += f", class {class_name}"
  stored = results.thresholds(_map_range(run, results, few_shot), details)
  if product:
    path = _store(run, product, stored, copied, class_name, results)
  else:
    file = threshold_lib.FEW_SHOT_FILE if few_shot else threshold_lib.FILE
    stored.write(run.workdir, file)
    path = run.workdir / file
  _report(stored, results, path, run.workdir, product)
  if replaces:
    print(calibrations.REPLACED)
  return stored


def _check_all(run, images):
  """Compare images with those of other processes and of the training."""
  peers.check_images("the normal images", images.normal)
  peers.check_images("the anomalous images", images.anomalous)
  peers.check_images("the references", images.references)
  if seen := duplicates.equal_to(
    [*images.normal, *images.anomalous], protocol.trained_images(run.config)
  ):
    print(
      f"warning: {len(seen)} of the images were trained on, such as "
      f"{next(iter(seen))}: scores of other images may be higher."
    )


def _find_masks(images, folder, reading, skip_corrupt):
  """Return the masks of anomalous images; print notes about them."""
  found, notes = user_images.find_masks(
    images, folder, reading, skip_corrupt=skip_corrupt
  )
  for note in notes:
    print(f"note: {note}")
  return found


class Images(NamedTuple):
  """Images of a calibration, each once.

  Attributes:
    normal: normal images.
    anomalous: anomalous images, none of them normal.
    references: normal images to compare with.
    own: by normal image, the references that are the same image.
  """

  normal: list[str]
  anomalous: list[str]
  references: list[str]
  own: Mapping[str, Sequence[str]]


def _find_all(normal, anomalous, reference_paths) -> Images:
  """Return the images that paths refer to, after checking their roles."""
  found = []
  for name, paths in (
    ("normal", normal),
    ("--anomalous", anomalous),
    ("--references", reference_paths),
  ):
    images, copies = duplicates.distinct(
      image_files.find(paths) if paths else []
    )
    for path, kept in copies.items():
      print(f"note: {name}: {path} is a copy of {kept} and left out.")
    found.append(images)
  normal, anomalous, references = found
  problem = "is given as normal and as anomalous; it cannot be both."
  duplicates.refuse(normal, anomalous, problem)
  problem = "is a reference and anomalous; references are normal images."
  duplicates.refuse(references, anomalous, problem)
  own = duplicates.equal_to(normal, references)
  if own and len(references) == 1:
    raise ValueError(
      f"{next(iter(own))} is the only reference, and a normal image to "
      "calibrate with: it would be compared with itself. Give other or further "
      "--references."
    )
  return Images(normal, anomalous, references, own)


def _score_normal(detector, images: Images, skip_corrupt, results):
  """Add the results of normal images.

  An image that is a reference is compared with the other references alone.
  """
  reported = progress.Progress("Calibration", len(images.normal))
  others = [path for path in images.normal if path not in images.own]
  parts = [(detector, others)] if others else []
  for path, own in images.own.items():
    rest = [each for each in images.references if each not in own]
    parts.append((detector.with_references(rest), [path]))
  for scoring, paths in parts:
    for _, found in _score(scoring, paths, skip_corrupt, reported):
      results.add_normal(found)
  if images.own:
    print(
      f"note: {len(images.own)} of the {len(images.normal)} normal images are "
      "references; each is compared with the other references alone."
    )
  if not results.normal.score:
    raise ValueError(_unreadable("normal", images.normal))


def _score_anomalous(detector, images: Images, skip_corrupt, results, masks):
  """Add the results of anomalous images, with their masks."""
  paths = images.anomalous
  reported = progress.Progress("Calibration, anomalous", len(paths))
  for path, found in _score(detector, paths, skip_corrupt, reported):
    mask = None
    if path in masks:
      mask = masks_lib.marked(preprocess.open_pair(masks[path])[1])
    results.add_anomalous(found, mask)
  if paths and not results.anomalous.score:
    raise ValueError(_unreadable("anomalous", paths))


def _unreadable(kind, images):
  """Return the message for images that were all skipped."""
  return (
    f"None of the {len(images)} {kind} images can be read, first {images[0]}: "
    "name other images."
  )


def _score(detector, paths, skip_corrupt, reported):
  """Yield the path and the result of each image that can be read."""
  for i, found in detector.stream(paths, skip_corrupt=skip_corrupt):
    reported.add(1)
    if isinstance(found, str):
      print(f"Skipped: {found}")
    else:
      yield paths[i], found


def _map_range(run, results, few_shot):
  """Return the stored color limits; of normal maps where none are stored."""
  try:
    stored = threshold_lib.read(run.workdir, few_shot=few_shot)
  except FileNotFoundError:
    return calibration.map_range(results.raw_maps)
  except ValueError as error:  # The user is about to set it again.
    print(f"note: color limits are those of the normal images: {error}")
    return calibration.map_range(results.raw_maps)
  return stored.map_low, stored.map_high


def _store(run, product, stored, references, class_name, results):
  """Write a named calibration and return its path."""
  found = Calibration(
    name=product.name,
    threshold=stored,
    class_name=class_name,
    tiling=product.tiling,
    references=references,
    rate=results.used_rate,
    num_normal=len(results.normal.score),
    num_anomalous=len(results.anomalous.score),
    date=calibrations.now(),
    run_digest=calibrations.run_digest(run),
  )
  return calibrations.write(run.workdir, found, overwrite=product.overwrite)


def _report(stored, results, path, workdir, product):
  """Print thresholds, what is unusual about them, and what they label."""
  for remark in results.remarks(stored):
    print(remark)
  for what, values, limit in (
    ("Labelled anomalous", "scores", stored.image_score),
    ("With anomalous pixels", "peaks", stored.pixel),
  ):
    parts = []
    if limit is None:
      continue
    for kind in ("normal", "anomalous"):
      found = getattr(getattr(results, kind), values)
      if kind == "normal" or len(found):
        parts.append(f"{(found >= limit).sum()} of {len(found)} {kind}")
    print(f"{what}, of these images: {' and '.join(parts)}.")
  if stored.pixel is not None:
    print(f"Pixel threshold {stored.pixel:.6g} ({stored.pixel_source}).")
  print(f"Threshold {stored.image_score:.6g} ({stored.source}): {path}")
  if product:
    print(
      f"Use it: zsad predict --workdir={workdir} "
      f"--calibration={product.name} IMAGE_OR_FOLDER"
    )


def define_flags() -> None:
  """Define the command's flags, only when it is run."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_float("rate", 0.05, "False-positive rate on normal images.")
  flags.DEFINE_list("anomalous", [], "Anomalous images.")
  flags.DEFINE_string(
    "anomalous_masks", "", "Folder of the masks of the anomalous images."
  )
  flags.DEFINE_string("masks", "compat", masks_lib.HELP)
  flags.DEFINE_list("references", [], "Normal images to compare with.")
  flags.DEFINE_string("class_name", "object", "Object class in the images.")
  flags.DEFINE_string(
    "name", None, "Store a calibration of this name; the run's thresholds stay."
  )
  flags.DEFINE_bool("overwrite", False, "Replace the calibration --name.")
  flags.DEFINE_bool("skip_corrupt", False, "Skip images that cannot be read.")
  tiling_lib.define_flags()


def _check_flags(options):
  """Refuse flags that have no effect without others, or with them."""
  if options.anomalous_masks and options["rate"].present:
    raise ValueError(
      "--rate is of normal images; with --anomalous_masks both thresholds have "
      "the best F1. Give one of them."
    )
  for flag, needed, reason in (
    ("anomalous_masks", "anomalous", "they are masks of those images"),
    ("masks", "anomalous_masks", "no other masks are read"),
    ("overwrite", "name", "the thresholds of the run are always replaced"),
    ("tile", "name", "the thresholds of the run are those of whole images"),
  ):
    if (
      options[flag].present
      and options[flag].value
      and not options[needed].value
    ):
      raise ValueError(f"--{flag} needs --{needed}: {reason}.")
  if options.name is not None:
    calibrations.check_name(options.name)


def main(options: flags.FlagValues) -> None:
  """Run the command."""
  _check_flags(options)
  masks_lib.parse(options.masks)
  tiling = tiling_lib.from_flags(options)
  if not options.arguments:
    raise ValueError("No normal image given: name images or folders.")
  try:
    lock.check(options.workdir)
  except ValueError as error:
    effect = "training replaces the threshold."
    if options.name:
      effect = "the calibration is refused: the parameters have changed then."
    print(f"note: {error} At its end, {effect}")
  image_files.check_normal([*options.arguments, *options.references])
  product = None
  if options.name:
    product = Product(options.name, options.overwrite, tiling)
    calibrations.check_free(
      pathlib.Path(options.workdir), product.name, overwrite=product.overwrite
    )
  calibrate(
    opening.load(options.workdir),
    options.arguments,
    rate=options.rate,
    anomalous=options.anomalous,
    anomalous_masks=options.anomalous_masks,
    masks=options.masks,
    reference_paths=options.references,
    class_name=options.class_name,
    product=product,
    skip_corrupt=options.skip_corrupt,
  )


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True)
