"""Pairs of pictures for pretraining: one invented object, sound and damaged.

Pairs are drawn once into a folder, in parts, by all cores; a pair is a pure
function of the seed and its number.
"""

import concurrent.futures
import io
import itertools
import multiprocessing
import os
import pathlib
from typing import NamedTuple

import numpy as np

from zsad_jax.datasets.synthetic import (
  invented,
  invented_objects,
  invented_textures,
  twins,
)
from zsad_jax.pretraining.captions import Facts
from zsad_jax.runtime import files

VERSION = 1  # Raise it when a change to the drawing code changes pictures.
PART = 256  # Pairs per file.
STRUCTURAL = 0.5  # Share of defects that the object itself is drawn with.
OBJECTS = 0.6  # Share of objects among the pictures.
ATTEMPTS = 4  # At a defect, before another design is tried.
DESIGN = 3  # Ends the key of what a pair is of; `twins` uses 0 to 2.


class Pairs(NamedTuple):
  """n pairs: images uint8 (n, 2, s, s, 3), sound first; masks bool (n, s, s).

  `facts[i]` are those of the damaged picture.
  """

  images: np.ndarray
  masks: np.ndarray
  facts: tuple[Facts, ...]


def draw(number: int, *, size: int, seed: int):
  """Draws pair `number`.

  Returns:
    Images uint8 (2, s, s, 3), mask uint8 (s, s) and the facts of the second.
  """
  for attempt in itertools.count():
    key = (seed, number, attempt)
    rng = np.random.default_rng(np.random.SeedSequence((*key, DESIGN)))
    textures = rng.random() >= OBJECTS
    source = invented_textures if textures else invented_objects
    design = invented.invent(rng, source.FAMILIES)
    family = design.family
    structural = family.structural and rng.random() < STRUCTURAL
    kinds = family.structural if structural else family.overlays
    defect = str(rng.choice(kinds))
    pair = _twins(family, defect, key, size)
    if pair is not None:
      facts = Facts(design.noun, design.material, design.color, True, defect)
      return np.stack([pair.normal, pair.anomalous]), pair.mask, facts


def _twins(family, defect, key, size):
  """The twins, or None where this design cannot show this defect."""
  try:
    return twins.draw(family, defect, key=key, size=size, attempts=ATTEMPTS)
  except ValueError:  # No room for an overlay.
    return None


def ensure(cache_dir, count: int, *, size: int, seed: int) -> Pairs:
  """Returns `count` pairs, drawing those that are missing in the folder.

  Args:
    cache_dir: where files of this kind are kept; made if missing.
    count: number of pairs.
    size: side of the pictures in pixels.
    seed: of everything drawn.
  """
  folder = pathlib.Path(cache_dir) / f"pairs-v{VERSION}-{size}px-seed{seed}"
  folder.mkdir(parents=True, exist_ok=True)
  jobs = [
    (folder, part, size, seed)
    for part in range(-(-count // PART))
    if not _path(folder, part).is_file()
  ]
  if jobs:
    print(f"Drawing {len(jobs) * PART} pairs into {folder}", flush=True)
    # Forking a process that runs JAX's threads may hang.
    context = multiprocessing.get_context("spawn")
    workers = min(len(jobs), os.cpu_count())
    with concurrent.futures.ProcessPoolExecutor(workers, context) as pool:
      for _ in pool.map(_write, jobs):
        pass
  return _read(folder, count)


def _path(folder, part):
  return folder / f"{part:05d}.npz"


def _write(job):
  folder, part, size, seed = job
  numbers = range(part * PART, (part + 1) * PART)
  pairs = [draw(number, size=size, seed=seed) for number in numbers]
  images, masks, facts = zip(*pairs)
  told = [[f.noun, f.material, f.color, f.defect] for f in facts]
  data = io.BytesIO()
  np.savez(
    data,
    images=np.stack(images),
    masks=np.packbits(np.stack(masks).astype(bool), axis=-1),
    facts=np.array(told),
  )
  files.write_local_bytes(_path(folder, part), data.getvalue())


def _read(folder, count):
  parts = []
  for part in range(-(-count // PART)):
    with np.load(_path(folder, part)) as f:
      parts.append((f["images"], f["masks"], f["facts"]))
  images, masks, told = (np.concatenate(p)[:count] for p in zip(*parts))
  masks = np.unpackbits(masks, axis=-1)[..., : images.shape[2]].astype(bool)
  facts = tuple(
    Facts(*map(str, t[:3]), anomalous=True, defect=str(t[3])) for t in told
  )
  return Pairs(images, masks, facts)
