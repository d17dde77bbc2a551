"""Blots on photographs of 12 megapixels are found by tiles.

python -m tests.large_photographs --workdir=RUN [--tiles=112]

Makes photographs of 4000 x 3000 pixels from textures of scikit-image (CC0; pip
install scikit-image): references, further normal ones, and four with an ink
blot of radius 0 (none), 15, 60 and 250 pixels. Thresholds of scores and pixels
are set by the normal ones. Small and large blots may need tiles of several
sizes, each with its own thresholds. Prints what is found with the time and the
peak memory, and exits with status 1 unless the blots alone are found, with
regions over them, within the memory. The file name keeps it out of the default
tests.
"""

import contextlib
import dataclasses
import importlib.util
import math
import multiprocessing
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
from absl import app, flags, logging
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
flags.DEFINE_list("tiles", ["896"], "Sizes, one after the other.")
flags.DEFINE_float("overlap", 0.25, "Of tiles.")


def texture(name):
  """Return a gray texture, float (512, 512)."""
  spec = importlib.util.find_spec("skimage")
  if spec is None or not spec.submodule_search_locations:
    sys.exit("error: this test needs textures: pip install scikit-image")
  folder = pathlib.Path(spec.submodule_search_locations[0])
  file = folder / "data" / f"{name}.png"
  return np.asarray(Image.open(file).convert("L"), np.float32)


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


def check(detectors, folder, options):
  """Print the results of the four photographs; return whether all are right.

  A photograph is anomalous if it is so by tiles of one of the sizes.
  """
  normal = [folder / f"normal_{i}.jpg" for i in range(options.normals)]
  rate = 1 / (options.normals + 1)
  flagged = dict.fromkeys(RADII, False)
  masks = {radius: np.zeros((HEIGHT, WIDTH), bool) for radius in RADII}
  for detector in detectors:
    print(f"  {detector.tiling.describe()}")
    limits = limits_of(detector, normal, rate)
    for radius in RADII:
      start = time.perf_counter()
      found = detector(str(folder / f"blot_{radius}.jpg"))
      found = dataclasses.replace(found, limits=limits)
      mask, seconds = found.mask, time.perf_counter() - start
      flagged[radius] |= found.label == "anomalous"
      masks[radius] |= mask
      print(
        f"  radius {radius:3}: score {found.score:.3f} (threshold "
        f"{limits.image_score:.3f}), {found.label}, "
        f"{describe(mask, radius, options.seed)}, {seconds:.1f} s",
        flush=True,
      )
  right = True
  for radius in RADII:
    iou, _ = overlap(masks[radius], truth(radius, options.seed))
    text = describe(masks[radius], radius, options.seed)
    found = "anomalous" if flagged[radius] else "normal"
    print(f"  radius {radius:3} in all: {found}, {text}")
    right &= flagged[radius] == bool(radius) == (iou > 0)
  return right


def truth(radius, seed):
  """Return where the blot of a photograph is."""
  return disk(radius, center_of(radius, seed))


def describe(mask, radius, seed):
  """Return the overlap of a mask with the blot as text."""
  iou, others = overlap(mask, truth(radius, seed))
  return f"IoU {iou:.3f}, other regions {others}"


def main(arguments):
  """Run the check; the exit status tells whether it succeeded."""
  del arguments
  logging.set_verbosity(logging.WARNING)
  options, right = flags.FLAGS, True
  before = memory()
  with contextlib.ExitStack() as stack:
    run = ensemble.load(options.workdir)
    detectors = [
      ensemble_detector.make_detector(
        run,
        threshold=math.inf,
        batch_size=options.batch_size,
        tiling=tiling.Tiling(int(size), options.overlap),
      )
      for size in options.tiles
    ]
    print(
      f"{run.workdir.name}, {options.references} references, "
      f"{options.normals} normal photographs"
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
      compared = (
        each.with_references(references) if references else each
        for each in detectors
      )
      right &= check(compared, folder, options)
  used = memory() - before
  print(f"Peak memory {memory():.2f} GB, {used:.2f} GB above the start.")
  return 0 if right and used < LIMIT_GB else 1


if __name__ == "__main__":
  flags.mark_flag_as_required("workdir")
  app.run(main)
