"""Images per second from files to batches, and memory."""

import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from zsad_jax.datasets import index, pipeline
from zsad_jax.datasets.cache import DecodedCache
from zsad_jax.runtime import environment, files

SIDE, SIZE, BATCH = 900, 518, 8  # Pixels of files, of outputs; images.
_ROUNDS = 3


def write(folder: pathlib.Path, number: int) -> list[index.Sample]:
  """Write images, PNG and JPEG, and a mask for every second one."""
  rng, samples = np.random.default_rng(0), []
  for i in range(number):
    coarse = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize(
      (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 4, (SIDE, SIDE, 1))
    pixels = np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8)
    path = folder / f"{i}.{('png', 'jpg')[i // 2 % 2]}"
    Image.fromarray(pixels).save(path)
    mask = ""
    if i % 2:
      mask = str(folder / f"{i}_mask.png")
      Image.fromarray(255 * (pixels[..., 0] > 200).astype(np.uint8)).save(mask)
    samples.append(index.Sample(str(path), mask, "x", "", i % 2))
  return samples


def by_hand(samples: Sequence[index.Sample], **_: Any) -> None:
  """Read batches with Pillow in a loop, as the papers' code does."""
  for first in range(0, len(samples), BATCH):
    images, masks = [], []
    for sample in samples[first : first + BATCH]:
      with Image.open(sample.image_path) as file:
        image = file.convert("RGB").resize(
          (SIZE, SIZE), Image.Resampling.BICUBIC
        )
      mask = Image.new("L", image.size)
      if sample.mask_path:
        with Image.open(sample.mask_path) as file:
          binary = 255 * (np.array(file.convert("L")) > 0).astype(np.uint8)
        mask = Image.fromarray(binary).resize(
          (SIZE, SIZE), Image.Resampling.BILINEAR
        )
      images.append(np.asarray(image))
      masks.append(np.asarray(mask) / 255 > 0.5)
    np.stack(images)
    np.stack(masks)


def by_pipeline(samples: Sequence[index.Sample], **options: Any) -> None:
  """Read all batches of the pipeline."""
  for _ in _batches(samples, **options):
    pass


def _batches(samples, **options):
  return pipeline.eval_batches(
    samples, class_names=("x",), image_size=SIZE, batch_size=BATCH, **options
  )


def resident() -> float:
  """Return the resident memory of this process in MiB."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGESIZE") / 2**20


def memory(
  samples: Sequence[index.Sample], many: int, cache: DecodedCache
) -> dict[str, float]:
  """Measure MiB after a tenth of `many` images and after all of them."""
  listed = list(itertools.islice(itertools.cycle(samples), many))
  count, found = 0, {}
  for batch in _batches(listed, cache=cache):
    count += len(batch["image"])
    if "tenth" not in found and count >= many / 10:
      found["tenth"] = resident()
  return {**found, "all": resident()}


def define_flags() -> None:
  """Define the command's flags."""
  flags.DEFINE_integer(
    "files", 96, f"Number of images, {SIDE} x {SIDE} pixels.", 8
  )
  flags.DEFINE_integer(
    "many", 10_000, "Images of the memory test; 0: no test.", 0
  )


def main(options: Any) -> None:
  """Run the benchmark."""
  with tempfile.TemporaryDirectory() as folder:
    document = _measure(pathlib.Path(folder), options.files, options.many)
  if options.json:
    text = json.dumps({**document, **environment.setting()}, indent=1) + "\n"
    files.write_text(options.json, text)


def _measure(folder, number, many):
  samples = write(folder, number)
  cache = DecodedCache(folder / "cache")
  ways = {
    "Pillow in a loop": (by_hand, {}),
    "pipeline, 1 worker": (by_pipeline, dict(workers=1)),
    "pipeline, 2 workers": (by_pipeline, dict(workers=2)),
    "pipeline, cached": (by_pipeline, dict(cache=cache)),
  }
  by_pipeline(samples, cache=cache)  # Fills the cache, starts TensorFlow.
  rates = {name: [] for name in ways}
  for _ in range(_ROUNDS):  # In turns: other load affects all alike.
    for name, (way, settings) in ways.items():
      start = time.perf_counter()
      way(samples, **settings)
      rates[name].append(number / (time.perf_counter() - start))
  rates = {name: statistics.median(values) for name, values in rates.items()}
  base = rates["Pillow in a loop"]
  print(f"{number} images of {SIDE} x {SIDE} to {SIZE}, batches of {BATCH}")
  for name, rate in rates.items():
    print(f"{name:20} {rate:8.1f} images/s  {rate / base:6.2f} x", flush=True)
  document = dict(files=number, images_per_second=rates, cores=os.cpu_count())
  if many:
    document["resident_mib"] = found = memory(samples, many, cache)
    print(
      f"{many} images: {found['tenth']:.0f} MiB after a tenth, "
      f"{found['all']:.0f} MiB after all"
    )
  return document
