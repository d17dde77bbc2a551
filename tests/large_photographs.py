r"""Blots on photographs of 12 megapixels are found by tiles.

python -m tests.large_photographs --workdir=RUN --tile=448 [--references=1]

Makes photographs of 4000 x 3000 pixels from textures of scikit-image (CC0; pip
install scikit-image): references, further normal ones, and four with an ink
blot of radius 0 (none), 15, 60 and 250 pixels. Thresholds of scores and pixels
are set by the normal ones. Prints what is found with the time and the peak
memory, and exits with status 1 unless the blots alone are found, with regions
over them, within the memory. The file name keeps it out of the default tests.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
from absl import app, flags
from PIL import Image
from scipy import ndimage

from zsad_jax.evaluation import calibration
from zsad_jax.inference import tiling
from zsad_jax.runs import ensemble, ensemble_detector
from zsad_jax.runs.threshold import Threshold

HEIGHT, WIDTH = 3000, 4000
RADII = (0, 15, 60, 250)
INK, OPACITY = np.array([38, 30, 62]), 0.85
LIMIT_GB = 1.5

flags.DEFINE_string("workdir", None, "Folder of the run.")
flags.DEFINE_list("textures", ["brick", "grass", "gravel"], "Their names.")
flags.DEFINE_integer("references", 1, "Reference photographs; 0: zero-shot.", 0)
flags.DEFINE_integer("normals", 9, "Photographs to set thresholds by.", 1)
flags.DEFINE_integer("batch_size", 8, "Tiles per call.", 1)
flags.DEFINE_integer("seed", 0, "Of the photographs.")
tiling.define_flags()


def texture(name):
  """Return a gray texture, float (512, 512)."""
  try:
    from skimage import data
  except ImportError:
    sys.exit("error: this test needs textures: pip install scikit-image")
  return np.asarray(getattr(data, name)(), np.float32)


def photograph(surface, rng):
  """Return a photograph of a surface, float32 (h, w, 3).

  The texture continues by reflection, from a random place; light falls off to
  one side, and the sensor has noise.
  """
  if rng.random() < 0.5:
    surface = surface[::-1]
  side = surface.shape[0]
  double = np.block(
    [[surface, surface[:, ::-1]], [surface[::-1], surface[::-1, ::-1]]]
  )
  top, left = rng.integers(0, 2 * side, 2)
  rows = np.arange(top, top + HEIGHT) % (2 * side)
  columns = np.arange(left, left + WIDTH) % (2 * side)
  gray = double[np.ix_(rows, columns)]
  angle, fall = rng.uniform(0, 2 * math.pi), rng.uniform(0.05, 0.15)
  y = np.linspace(-0.5, 0.5, HEIGHT, dtype=np.float32)[:, None]
  x = np.linspace(-0.5, 0.5, WIDTH, dtype=np.float32)
  gray *= 1 + fall * (
    np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y
  )
  gray += rng.normal(0, 3, gray.shape).astype(np.float32)
  return np.repeat(gray[..., None], 3, axis=2)


def disk(radius, center):
  """Return where a blot is, bool (h, w)."""
  y, x = np.ogrid[:HEIGHT, :WIDTH]
  return (y - center[0]) ** 2 + (x - center[1]) ** 2 < radius**2


def center_of(radius, seed):
  """Return a random place of a blot that is not cut by a border."""
  rng = np.random.default_rng([seed, radius])
  margin = radius + 20
  return (
    int(rng.integers(margin, HEIGHT - margin)),
    int(rng.integers(margin, WIDTH - margin)),
  )


def make(folder, name, number_of_normals, seed):
  """Write the photographs of a texture: normal_*.jpg and blot_<radius>.jpg."""
  surface, rng = texture(name), np.random.default_rng(seed)
  names = [f"normal_{i}" for i in range(number_of_normals)]
  for file in [*names, *(f"blot_{radius}" for radius in RADII)]:
    image = photograph(surface, rng)
    if file.startswith("blot"):
      radius = int(file.split("_")[1])
      where = disk(radius, center_of(radius, seed))
      image[where] = (1 - OPACITY) * image[where] + OPACITY * INK
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{file}.jpg", quality=95)


def overlap(mask, truth):
  """Return IoU of the regions on the blot, and the number of other regions."""
  labels, count = ndimage.label(mask, np.ones((3, 3)))
  numbers = np.unique(labels[truth & mask])
  on_blot = np.isin(labels, numbers[numbers > 0])
  union = (on_blot | truth).sum()
  iou = float((on_blot & truth).sum() / union) if union else 0.0
  return iou, count - len(numbers)


def limits_of(detector, paths, rate):
  """Return thresholds by normal photographs; the maps are not kept."""
  scores, peaks = [], []
  for path in paths:
    found = detector(str(path))
    scores.append(found.score)
    peaks.append(float(found.anomaly_map.max()))
  score, _ = calibration.normal_threshold(np.array(scores, np.float32), rate)
  pixel, _ = calibration.normal_threshold(np.array(peaks, np.float32), rate)
  print(
    f"  normal: scores {min(scores):.3f} to {max(scores):.3f}, peaks of maps "
    f"{min(peaks):.3f} to {max(peaks):.3f}"
  )
  return Threshold(score, 0.0, 1.0, "normal photographs", pixel=pixel)


def memory():
  """Return the peak memory of this process in GB."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def check(detector, folder, options):
  """Print the results of the four photographs; return whether all are right."""
  normal = [folder / f"normal_{i}.jpg" for i in range(options.normals)]
  rate = 1 / (options.normals + 1)
  limits = limits_of(detector, normal, rate)
  right = True
  for radius in RADII:
    start = time.perf_counter()
    found = detector(str(folder / f"blot_{radius}.jpg"))
    found = dataclasses.replace(found, limits=limits)
    mask, seconds = found.mask, time.perf_counter() - start
    truth = disk(radius, center_of(radius, options.seed))
    iou, others = overlap(mask, truth)
    print(
      f"  radius {radius:3}: score {found.score:.3f} ({limits.image_score:.3f})"
      f"  {found.label:9}  IoU {iou:.3f}  other regions {others}"
      f"  {seconds:.1f} s",
      flush=True,
    )
    label = "anomalous" if radius else "normal"
    right &= found.label == label and (iou > 0) == bool(radius)
  return right


def main(arguments):
  """Run the check; the exit status tells whether it succeeded."""
  del arguments
  options, right = flags.FLAGS, True
  tiles = tiling.from_flags(options)
  before = memory()
  with contextlib.ExitStack() as stack:
    run = ensemble.load(options.workdir)
    detector = ensemble_detector.make_detector(
      run, threshold=math.inf, batch_size=options.batch_size, tiling=tiles
    )
    how = "whole images" if tiles is None else tiles.describe()
    print(
      f"{run.workdir.name}, {detector._config.image_size} px, {how}, "
      f"{options.references} references, {options.normals} normal photographs"
    )
    for name in options.textures:
      folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
      number = options.normals + options.references
      given = (folder, name, number, options.seed)
      # In a process of its own, whose memory does not count.
      maker = multiprocessing.get_context("spawn").Process(
        target=make, args=given
      )
      maker.start()
      maker.join()
      if maker.exitcode:
        return 1
      print(f"{name}:")
      last = range(options.normals, number)
      references = [str(folder / f"normal_{i}.jpg") for i in last]
      own = detector.with_references(references) if references else detector
      right &= check(own, folder, options)
  used = memory() - before
  print(f"Peak memory {memory():.2f} GB, {used:.2f} GB above the start.")
  return 0 if right and used < LIMIT_GB else 1


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
