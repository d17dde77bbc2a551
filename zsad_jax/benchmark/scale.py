"""Costs that grow with the number of images, without model and decoding.

A data set of Real-IAD's size consists of a few small files that are listed
many times. It is indexed, encoded by a tiny backbone into cached features, read
for an epoch and evaluated.
"""

import json
import pathlib
import tempfile
import threading
import time
import types
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from absl import flags
from PIL import Image

from zsad_jax.backbones.clip import model as clip
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.benchmark.data import resident
from zsad_jax.datasets import meta_json
from zsad_jax.evaluation import evaluator
from zsad_jax.methods import anomalyclip
from zsad_jax.runtime import distributed, environment, files
from zsad_jax.training import feature_cache

T = TypeVar("T")
FILES, CLASSES, SIDE = 60, 30, 28
TINY = ClipConfig(
  embed_dim=32,
  image_size=28,
  patch_size=14,
  vision_width=64,
  vision_layers=2,
  text_width=64,
  text_layers=2,
)
METHOD = anomalyclip.Method(
  feature_layers=(1, 2),
  vv_from=1,
  context_length=2,
  deep_length=2,
  deep_depth=2,
)


def write(folder: pathlib.Path, images: int) -> None:
  """Write the files and a meta.json that lists them many times."""
  rng, records = np.random.default_rng(0), []
  for i in range(FILES):
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4 : 8 + i % 16, 4:12] = 255
    Image.fromarray(mask).save(folder / f"{i}_mask.png")
  # Files alternate, so that each class has both states.
  for i in range(images):
    number, anomaly = i % FILES, i // CLASSES % 2
    records.append(
      {
        "img_path": f"{number}.png",
        "mask_path": f"{number}_mask.png" if anomaly else "",
        "cls_name": f"class_{i % CLASSES:02d}",
        "specie_name": "",
        "anomaly": anomaly,
      }
    )
  of = lambda name: [r for r in records if r["cls_name"] == name]
  names = [f"class_{i:02d}" for i in range(CLASSES)]
  meta = {"train": {}, "test": {name: of(name) for name in names}}
  (folder / meta_json.META).write_text(json.dumps(meta))


class StageMonitor:
  """Measures seconds and resident memory of stages."""

  def __init__(self):
    self.rows: dict[str, dict[str, float]] = {}
    self._samples: list[tuple[float, float]] = []
    self._ended = threading.Event()
    threading.Thread(target=self._sample, daemon=True).start()

  def _sample(self):
    while not self._ended.wait(0.2):
      self._samples.append((time.perf_counter(), resident()))

  def run(self, name: str, function: Callable[[], T]) -> T:
    """Run a stage; measure memory after a tenth of it and the maximum."""
    start = time.perf_counter()
    result = function()
    end = time.perf_counter()
    tenth = start + 0.1 * (end - start)
    sizes = [mib for at, mib in self._samples if tenth <= at <= end]
    sizes = sizes or [resident()]
    first, most = sizes[0], max(sizes)
    self.rows[name] = dict(seconds=end - start, tenth_mib=first, most_mib=most)
    print(
      f"{name:12} {end - start:8.1f} s  {first:6.0f} MiB after a tenth, "
      f"{most:6.0f} MiB at most",
      flush=True,
    )
    return result

  def close(self) -> None:
    """Stop sampling the memory."""
    self._ended.set()


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_integer(
    "images", 150_000, "Number of images in the index.", 2 * CLASSES
  )


def main(options: Any) -> None:
  """Run the benchmark."""
  with tempfile.TemporaryDirectory() as folder:
    rows = measure(pathlib.Path(folder), options.images)
  if options.json:
    document = {"images": options.images, "rows": rows, **environment.setting()}
    files.write_text(options.json, json.dumps(document, indent=1) + "\n")


def measure(folder: pathlib.Path, images: int) -> dict[str, dict[str, float]]:
  """Run all stages; return seconds and MiB of each."""
  (folder / "data").mkdir()
  write(folder / "data", images)
  backbone, monitor = clip.random_clip(TINY, 0), StageMonitor()
  mesh = distributed.make_mesh()
  dataset = monitor.run("index", lambda: meta_json.read(folder / "data"))
  config = types.SimpleNamespace(
    features=types.SimpleNamespace(
      storage="disk", dtype="float32", folder=str(folder / "features")
    ),
    image_size=SIDE,
    batch_size=64,
    eval_batch_size=256,
    seed=0,
    skip_corrupt=False,
    decoded_cache="",
  )
  make = lambda: feature_cache.FeatureCache(
    config, METHOD, backbone, mesh, [dataset]
  )
  frozen = make()
  monitor.run("features", lambda: frozen.compute())
  monitor.run("epoch", lambda: _epoch(frozen, images // config.batch_size))
  again = make()
  monitor.run("cached features", lambda: again.compute())
  compare = evaluator.Evaluator(
    method=METHOD,
    backbone=backbone,
    mesh=mesh,
    image_size=SIDE,
    batch_size=256,
    smooth_sigma=1.0,
    prompt_names="verbatim",
    skip_corrupt=False,
  )
  params, stats = jax.jit(METHOD.init)(jax.random.key(0), backbone)
  evaluate = lambda: compare.evaluate(params, stats, dataset)
  monitor.run("evaluation", evaluate)
  monitor.close()
  return monitor.rows


def _epoch(frozen, steps):
  batches = frozen.batches(start_step=0)
  for _ in range(steps):
    next(batches)
