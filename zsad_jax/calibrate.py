r"""Sets the threshold of a run on images of one's own.

python -m zsad_jax.calibrate --workdir=runs/adaclip --rate=0.01 good/
python -m zsad_jax.calibrate --workdir=runs/adaclip good/ --anomalous=bad/

From normal images alone: the threshold that fresh ones exceed at the wanted
rate of false alarms. With anomalous images as well: the one of best F1. It is
stored in the run, where `predict` reads it.

  --rate=0.01             of false alarms; default 0.05
  --anomalous=PATH,PATH   images, folders or patterns of anomalous images
  --references=PATH,PATH  for the threshold of scores beside references
  --class_name="hex nut"  what the images show
  --skip_corrupt          leave out what cannot be read
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags

from zsad_jax.datasets import image_files
from zsad_jax.evaluation import calibration
from zsad_jax.inference import predictor, scoring
from zsad_jax.metrics import exact, streaming
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
  """Finds a threshold, stores it in the run and returns it.

  Args:
    run: a trained run.
    normal, anomalous: images, folders and glob patterns.
    rate: of false alarms that is wanted, without anomalous images.
    reference_paths: normal images to compare with, others than `normal`.
    class_name: what the images show.
    skip_corrupt: leave out files that cannot be read instead of stopping.

  Raises:
    ValueError, FileNotFoundError: a path or the rate is not as it has to be.
  """
  beside = image_files.find(reference_paths) if reference_paths else ()
  if not beside and run.method.needs_references:
    raise ValueError(f"{run.config.name} needs --references.")
  measure = lambda paths: _measure(run, paths, beside, class_name, skip_corrupt)
  scores, state = measure(normal)
  if anomalous:
    others, _ = measure(anomalous)
    label = np.repeat([0, 1], [len(scores), len(others)])
    _, value = exact.f1_max(label, np.concatenate([scores, others]))
    source = f"best F1 on {len(scores)} normal and {len(others)} anomalous"
  else:
    value, warning = calibration.normal_threshold(scores, rate)
    source = f"{100 * rate:g} % false alarms, from {len(scores)} normal"
    if warning:
      print(f"warning: {warning}")
  file = threshold_lib.FEW_SHOT_FILE if beside else threshold_lib.FILE
  stored = _with_score(run, state, value, f"{source} images", bool(beside))
  stored.write(run.workdir, file)
  print(f"Threshold {value:.6g} ({stored.source}): {run.workdir / file}")
  return stored


def _measure(run, paths, beside, class_name, skip_corrupt):
  """Scores of images, and the histogram of their maps."""
  images = image_files.find(paths)
  batch_size = predictor.round_up(min(8, len(images)))
  score = scoring.Scorer(run, class_name, beside, batch_size)
  scores, state = [], streaming.PixelState.init()
  for rows, pixels, bad in scoring.batches(
    images,
    image_size=run.config.image_size,
    batch_size=batch_size,
    skip=skip_corrupt,
  ):
    for message in bad:
      print(f"Skipped: {message}")
    result = {k: v[: len(rows)] for k, v in score(pixels)[0].items()}
    scores.append(result["pred_score"])
    maps = np.asarray(result["anomaly_map"])
    state.update(np.zeros(maps.shape, bool), maps)
  scores = np.concatenate(scores)
  if not scores.size:
    raise ValueError("None of the images could be read.")
  return scores, state


def _with_score(run, state, value, source, few_shot):
  """The stored threshold with another score; colours stay as they are."""
  try:
    stored = threshold_lib.read(run.workdir, few_shot=few_shot)
  except FileNotFoundError:
    low, high = calibration.map_range(state)
    stored = threshold_lib.Threshold(0.0, low, high, "")
  return dataclasses.replace(stored, image_score=float(value), source=source)


def define_flags():
  """The command's flags; defined only when it is run."""
  flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
  flags.DEFINE_float("rate", 0.05, "Of false alarms.")
  flags.DEFINE_list("anomalous", [], "Anomalous images.")
  flags.DEFINE_list("references", [], "Normal images to compare with.")
  flags.DEFINE_string("class_name", "object", "What the images show.")
  flags.DEFINE_bool("skip_corrupt", False, "Leave out what can't be read.")


def main(options):
  if not options.arguments:
    raise ValueError("No normal image given: name images or folders.")
  calibrate(
    run_lib.load(pathlib.Path(options.workdir)),
    options.arguments,
    rate=options.rate,
    anomalous=options.anomalous,
    reference_paths=options.references,
    class_name=options.class_name,
    skip_corrupt=options.skip_corrupt,
  )


if __name__ == "__main__":
  cli.run(main, define_flags, arguments=True)
