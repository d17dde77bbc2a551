"""Time and peak memory of the pixel metrics of one category."""

import json
import multiprocessing
import os
import pathlib
import platform
import resource
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from scipy import ndimage

from zsad_jax import metrics
from zsad_jax.metrics import streaming as streaming_lib
from zsad_jax.runtime import files

SIDE, BATCH = 518, 8
_STEPS, _MAX_FPR = 200, 0.3

Result = tuple[float, dict[str, Any]]  # Seconds and values.


def images(number: int) -> Iterator[tuple[np.ndarray, ...]]:
  """Yield masks, bool, and maps, float32, (b, 518, 518) of `number` images.

  Maps are smoothed noise, raised in round defects of every second image and
  mapped to [0, 1] by a sigmoid. A few noise fields are reused, rotated and
  shifted.
  """
  rng = np.random.default_rng(0)
  fields = [
    ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 6) for _ in range(4)
  ]
  fields = [(f / f.std()).astype(np.float32) for f in fields]
  for first in range(0, number, BATCH):
    pairs = [
      _image(rng, fields, i % 2)
      for i in range(first, min(first + BATCH, number))
    ]
    yield tuple(np.stack(part) for part in zip(*pairs))


def _image(rng, fields, anomalous):
  field = np.rot90(fields[rng.integers(len(fields))], rng.integers(4))
  noise = np.roll(field, rng.integers(SIDE, size=2), axis=(0, 1))
  mask = np.zeros((SIDE, SIDE), bool)
  for _ in range(3 * anomalous):
    radius = int(rng.integers(8, 40))
    y, x = rng.integers(radius, SIDE - radius, 2)
    where = slice(y - radius, y + radius), slice(x - radius, x + radius)
    disc = np.hypot(*np.mgrid[-radius:radius, -radius:radius]) < radius
    mask[where] |= disc
    noise[where] += np.float32(1.5) * disc
  return mask, 1 / (1 + np.exp(2 - noise, dtype=np.float32))


def streaming(number: int) -> Result:
  """Compute all metrics, batch by batch."""
  state = streaming_lib.PixelState.init()
  spent = 0.0
  for mask, anomaly_map in images(number):
    start = time.perf_counter()
    state.update(mask, anomaly_map)
    spent += time.perf_counter() - start
  start = time.perf_counter()
  found = metrics.streamed_metrics(state)
  return spent + time.perf_counter() - start, {
    k.removeprefix("pixel_"): v.value for k, v in found.items() if v
  }


def exact(number: int) -> Result:
  """Compute all metrics by sorting."""
  mask, anomaly_map = _all(number)
  start = time.perf_counter()
  found = metrics.pixel_metrics(mask, anomaly_map)
  return time.perf_counter() - start, found


def scikit_learn(number: int) -> Result:
  """Compute AUROC and AP with scikit-learn."""
  from sklearn import metrics as peers

  mask, anomaly_map = (x.ravel() for x in _all(number))
  start = time.perf_counter()
  found = {
    "auroc": peers.roc_auc_score(mask, anomaly_map),
    "ap": peers.average_precision_score(mask, anomaly_map),
  }
  return time.perf_counter() - start, found


def thresholds_200(number: int) -> Result:
  """Compute AUPRO as published: masks are labelled again per threshold."""
  mask, anomaly_map = _all(number)
  start = time.perf_counter()
  low, high = anomaly_map.min(), anomaly_map.max()
  points = []
  for threshold in np.arange(low, high, (high - low) / _STEPS):
    flagged = anomaly_map > threshold
    overlaps = []
    for one_mask, one_map in zip(mask, flagged):
      regions = np.zeros(one_mask.shape, np.int32)
      ndimage.label(one_mask, np.ones((3, 3)), output=regions)
      for region, box in enumerate(ndimage.find_objects(regions), start=1):
        inside = regions[box] == region
        overlaps.append(one_map[box][inside].sum() / inside.sum())
    false = (flagged & ~mask).sum() / (~mask).sum()
    points.append((false, np.mean(overlaps)))
  kept = np.array([p for p in points if p[0] < _MAX_FPR])
  fpr = (kept[:, 0] - kept[:, 0].min()) / np.ptp(kept[:, 0])
  found = {"aupro_200": float(np.trapezoid(kept[::-1, 1], fpr[::-1]))}
  return time.perf_counter() - start, found


def _all(number):
  return tuple(np.concatenate(part) for part in zip(*images(number)))


def _measured(function, number, results):
  """Put seconds, values and peak MiB of this process into `results`."""
  seconds, values = function(number)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  results.put((seconds, {k: float(v) for k, v in values.items()}, peak))


def _run(function, number):
  context = multiprocessing.get_context("spawn")
  results = context.SimpleQueue()
  process = context.Process(target=_measured, args=(function, number, results))
  process.start()
  process.join()
  if process.exitcode:
    raise RuntimeError(f"{function.__name__} ended with {process.exitcode}.")
  return results.get()


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_integer("images", 186, "Number of images, 518 x 518 pixels.", 2)
  flags.DEFINE_bool("slow", True, "Measure the 200-threshold AUPRO, too.")
  flags.DEFINE_bool("alone", False, "Measure the streaming metrics alone.")


def main(options: Any) -> None:
  """Run the benchmark."""
  functions = [streaming]
  if not options.alone:
    functions += [exact, scikit_learn]
    functions += [thresholds_200] if options.slow else []
  pixels = options.images * SIDE**2
  print(f"{options.images} images, {pixels / 1e6:,.0f} million pixels")
  rows = {}
  for function in functions:
    seconds, values, peak = _run(function, options.images)
    rows[function.__name__] = dict(seconds=seconds, peak_mib=peak, **values)
    shown = ", ".join(f"{k} {v:.5f}" for k, v in values.items())
    print(
      f"{function.__name__:15} {seconds:9.2f} s {peak:8.0f} MiB  {shown}",
      flush=True,
    )
  ours = rows["streaming"]["seconds"]
  ratios = {}
  if "scikit_learn" in rows:
    peers = rows["scikit_learn"]["seconds"]
    ratios["scikit_learn / streaming"] = peers / ours
    ratios["scikit_learn / exact"] = peers / rows["exact"]["seconds"]
    if "thresholds_200" in rows:
      peers += rows["thresholds_200"]["seconds"]
      ratios["scikit_learn + thresholds_200 / streaming"] = peers / ours
  for name, ratio in ratios.items():
    print(f"{name}: {ratio:.1f}")
  if options.json:
    document = dict(
      images=options.images,
      pixels=pixels,
      rows=rows,
      ratios=ratios,
      cores=os.cpu_count(),
      machine=platform.processor(),
      numpy=np.__version__,
    )
    text = json.dumps(document, indent=1) + "\n"
    files.write_text(pathlib.Path(options.json), text)
