"""What grows with the number of images, but for the model and the files.

A data set of Real-IAD's size is made of a few small files that are listed many
times, and goes through a tiny backbone: index, stored features, an epoch of
batches, evaluation.
"""

import json
import pathlib
import tempfile
import threading
import time
import types

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
  """Writes the files and a meta.json that lists them many times."""
  rng, records = np.random.default_rng(0), []
  for i in range(FILES):
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{i}.png")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4 : 8 + i % 16, 4:12] = 255
    Image.fromarray(mask).save(folder / f"{i}_mask.png")
  # Files come in turns, so that each class has both states.
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


class Watch:
  """Seconds of each stage, and MiB in memory along the way."""

  def __init__(self):
    self.rows, self._seen = {}, []
    self._ended = threading.Event()
    threading.Thread(target=self._look, daemon=True).start()

  def _look(self):
    while not self._ended.wait(0.2):
      self._seen.append((time.perf_counter(), resident()))

  def run(self, name: str, function):
    """Runs a stage; memory is that after a tenth of it and the largest then."""
    start = time.perf_counter()
    result = function()
    end = time.perf_counter()
    tenth = start + 0.1 * (end - start)
    seen = [mib for at, mib in self._seen if tenth <= at <= end] or [resident()]
    first, most = seen[0], max(seen)
    self.rows[name] = dict(seconds=end - start, tenth_mib=first, most_mib=most)
    print(
      f"{name:12} {end - start:8.1f} s  {first:6.0f} MiB after a tenth, "
      f"{most:6.0f} MiB at most",
      flush=True,
    )
    return result

  def close(self):
    self._ended.set()


def define_flags():
  """The command's flags; defined only when it is run."""
  flags.DEFINE_integer("images", 150_000, "Images in the index.", 2 * CLASSES)


def main(options):
  with tempfile.TemporaryDirectory() as folder:
    rows = measure(pathlib.Path(folder), options.images)
  if options.json:
    document = {"images": options.images, "rows": rows, **environment.setting()}
    files.write_text(options.json, json.dumps(document, indent=1) + "\n")


def measure(folder: pathlib.Path, images: int) -> dict[str, dict[str, float]]:
  """Runs all stages; returns seconds and MiB of each."""
  (folder / "data").mkdir()
  write(folder / "data", images)
  backbone, watch = clip.random_clip(TINY, 0), Watch()
  mesh = distributed.make_mesh()
  dataset = watch.run("index", lambda: meta_json.read(folder / "data"))
  config = types.SimpleNamespace(
    features=types.SimpleNamespace(
      place="disk", dtype="float32", folder=str(folder / "features")
    ),
    image_size=SIDE,
    batch_size=64,
    eval_batch_size=256,
    seed=0,
    skip_corrupt=False,
    decoded_cache="",
  )
  frozen = feature_cache.FeatureCache(config, METHOD, backbone, mesh, [dataset])
  watch.run("features", lambda: frozen.compute())
  watch.run("epoch", lambda: _epoch(frozen, images // config.batch_size))
  again = feature_cache.FeatureCache(config, METHOD, backbone, mesh, [dataset])
  watch.run("found again", lambda: again.compute())
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
  watch.run("evaluation", evaluate)
  watch.close()
  return watch.rows


def _epoch(frozen, steps):
  batches = frozen.batches(start_step=0)
  for _ in range(steps):
    next(batches)
