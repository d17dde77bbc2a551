r"""Set the threshold of a run from images of the user.

python -m zsad_jax.calibrate --workdir=runs/adaclip --rate=0.01 good/
python -m zsad_jax.calibrate --workdir=runs/adaclip good/ --anomalous=bad/

From normal images only: the split-conformal threshold, whose false-positive
rate on new normal images is at most --rate. With anomalous images as well: the
threshold with the best F1. It is stored in the run, where `predict` and
`zsad_jax.load` read it.

  --rate=0.01             false-positive rate; default 0.05
  --anomalous=PATH,PATH   images, folders or patterns of anomalous images
  --references=PATH,PATH  set the threshold of scores with these references
  --class_name="hex nut"  object class in the images
  --skip_corrupt          skip images that cannot be read
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import flags

from zsad_jax.datasets import duplicates, image_files
from zsad_jax.evaluation import calibration, protocol
from zsad_jax.metrics import exact, streaming
from zsad_jax.runs import ensemble, ensemble_detector, lock, peers
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import cli


def calibrate(
  run: run_lib.Run,
  normal: Sequence[str],
  *,
  rate: float,
  anomalous: Sequence[str] = (),
  reference_paths: Sequence[str] = (),
  class_name: str = "object",
  skip_corrupt: bool = False,
) -> threshold_lib.Threshold:
  """Find a threshold, store it in the run and return it.

  Args:
    run: a trained run.
    normal: images, folders and glob patterns of normal images.
    rate: false-positive rate; not used with anomalous images.
    anomalous: images, folders and glob patterns of anomalous images.
    reference_paths: normal images to compare with; one that is in `normal` is
      scored with the others.
    class_name: object class in the images.
    skip_corrupt: skip files that cannot be read instead of stopping.

  Raises:
    ValueError, FileNotFoundError: a path or the rate is invalid, or an image is
      normal and anomalous, a reference and anomalous, or the only reference
      of itself.
  """
  calibration.check_rate(rate)
  images = _find_all(normal, anomalous, reference_paths)
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
  # The threshold is about to be set: labels of this detector are not used.
  detector = ensemble_detector.make_detector(
    run, class_name=class_name, threshold=math.inf
  )
  if images.references:
    detector = detector.with_references(images.references)
  scores, state = _score_normal(detector, images, skip_corrupt)
  others = np.zeros(0, np.float32)
  if images.anomalous:
    others, _ = _score(detector, images.anomalous, skip_corrupt)
    if not len(others):
      raise ValueError(_unreadable("anomalous", images.anomalous))
    label = np.repeat([0, 1], [len(scores), len(others)])
    _, value = exact.f1_max(label, np.concatenate([scores, others]))
    source = f"best F1 on {len(scores)} normal and {len(others)} anomalous"
  else:
    value, warning = calibration.normal_threshold(scores, rate)
    source = f"{100 * rate:g} % false alarms, from {len(scores)} normal"
    if warning:
      print(f"warning: {warning}")
  _print_flagged(scores, others, value)
  few_shot = detector.has_references
  file = threshold_lib.FEW_SHOT_FILE if few_shot else threshold_lib.FILE
  source += " images"
  if few_shot:
    source += f", with {len(images.references)} references"
  if class_name != "object":
    source += f", class {class_name}"
  stored = _with_score(run, state, value, source, few_shot)
  stored.write(run.workdir, file)
  print(f"Threshold {value:.6g} ({stored.source}): {run.workdir / file}")
  return stored


def _print_flagged(normal, anomalous, threshold):
  """Print how many of the given images are labelled anomalous."""
  parts = [f"{(normal >= threshold).sum()} of {len(normal)} normal"]
  if len(anomalous):
    found = (anomalous >= threshold).sum()
    parts.append(f"{found} of {len(anomalous)} anomalous")
  print(f"Labelled anomalous: {' and '.join(parts)} images.")


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


def _score_normal(detector, images: Images, skip_corrupt):
  """Return scores (n,) of normal images, and the histogram of their maps.

  An image that is a reference is compared with the other references alone.
  """
  state = streaming.PixelState.init()
  others = [path for path in images.normal if path not in images.own]
  scores = []
  if others:
    scores.append(_score(detector, others, skip_corrupt, state)[0])
  for path, own in images.own.items():
    rest = [each for each in images.references if each not in own]
    without = detector.with_references(rest)
    scores.append(_score(without, [path], skip_corrupt, state)[0])
  if images.own:
    print(
      f"note: {len(images.own)} of the {len(images.normal)} normal images are "
      "references; each is compared with the other references alone."
    )
  scores = np.concatenate(scores)
  if not len(scores):
    raise ValueError(_unreadable("normal", images.normal))
  return scores, state


def _unreadable(kind, images):
  """Return the message for images that were all skipped."""
  return (
    f"None of the {len(images)} {kind} images can be read, first {images[0]}: "
    "name other images."
  )


def _score(detector, images, skip_corrupt, state=None):
  """Return scores (n,) of images; count their maps in the histogram."""
  scores, state = [], state or streaming.PixelState.init()
  for _, found in detector.stream(images, skip_corrupt=skip_corrupt):
    if isinstance(found, str):
      print(f"Skipped: {found}")
      continue
    scores.append(found.score)
    maps = found.raw_map[None]
    state.update(np.zeros(maps.shape, bool), maps)
  return np.array(scores, np.float32), state


def _with_score(run, state, value, source, few_shot):
  """Return the stored threshold with another score and source.

  The color limits do not change; if none are stored, they are those of `state`.
  """
  try:
    stored = threshold_lib.read(run.workdir, few_shot=few_shot)
  except FileNotFoundError:
    low, high = calibration.map_range(state)
    stored = threshold_lib.Threshold(0.0, low, high, "")
  return dataclasses.replace(stored, image_score=float(value), source=source)


def define_flags() -> None:
  """Define the command's flags, only when it is run."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_float("rate", 0.05, "False-positive rate on normal images.")
  flags.DEFINE_list("anomalous", [], "Anomalous images.")
  flags.DEFINE_list("references", [], "Normal images to compare with.")
  flags.DEFINE_string("class_name", "object", "Object class in the images.")
  flags.DEFINE_bool("skip_corrupt", False, "Skip images that cannot be read.")


def main(options: flags.FlagValues) -> None:
  """Run the command."""
  if options.anomalous and options["rate"].present:
    raise ValueError(
      "--rate is of normal images alone; with --anomalous the threshold has "
      "the best F1. Give one of them."
    )
  if not options.arguments:
    raise ValueError("No normal image given: name images or folders.")
  try:
    lock.check(options.workdir)
  except ValueError as error:
    print(f"note: {error} At its end, training replaces the threshold.")
  image_files.check_normal([*options.arguments, *options.references])
  calibrate(
    ensemble.load(options.workdir),
    options.arguments,
    rate=options.rate,
    anomalous=options.anomalous,
    reference_paths=options.references,
    class_name=options.class_name,
    skip_corrupt=options.skip_corrupt,
  )


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True)
