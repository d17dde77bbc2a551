"""Pairs of synthetic images for pretraining: normal and anomalous.

Both images of a pair show the same object. Pairs are generated once into a
folder of files, on all CPU cores. A pair is a pure function of the seed and
its number.
"""

import concurrent.futures
import contextlib
import io
import itertools
import logging
import multiprocessing
import os
import pathlib
import signal
import threading
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

VERSION = 1  # Increase it if a change of the generator changes the images.
PAIRS_PER_FILE = 256
STRUCTURAL_SHARE = 0.5  # Of the defects: those of the object's own shape.
OBJECT_SHARE = 0.6  # Of the images: objects; the others are textures.
ATTEMPTS = 4  # Per defect, before another design is tried.
DESIGN_KEY = 3  # Last part of the seed of a design; `twins` uses 0 to 2.

_log = logging.getLogger(__name__)


class Pairs(NamedTuple):
  """Pairs of images, normal first.

  Attributes:
    images: uint8 (n, 2, s, s, 3).
    masks: bool (n, s, s), True where the anomalous image is anomalous.
    facts: description of each anomalous image.
  """

  images: np.ndarray
  masks: np.ndarray
  facts: tuple[Facts, ...]


def draw(
  number: int, *, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray, Facts]:
  """Generate one pair.

  Args:
    number: number of the pair.
    size: side of the images in pixels.
    seed: seed of all pairs.

  Returns:
    Images uint8 (2, s, s, 3), normal first, mask uint8 (s, s), and the
    description of the anomalous image.
  """
  for attempt in itertools.count():
    key = (seed, number, attempt)
    rng = np.random.default_rng(np.random.SeedSequence((*key, DESIGN_KEY)))
    textures = rng.random() >= OBJECT_SHARE
    source = invented_textures if textures else invented_objects
    design = invented.invent(rng, source.FAMILIES)
    family = design.family
    structural = family.structural and rng.random() < STRUCTURAL_SHARE
    kinds = family.structural if structural else family.overlays
    defect = str(rng.choice(kinds))
    pair = _twins(family, defect, key, size)
    if pair is not None:
      facts = Facts(design.noun, design.material, design.color, True, defect)
      return np.stack([pair.normal, pair.anomalous]), pair.mask, facts
  raise AssertionError  # The loop does not end.


def _twins(family, defect, key, size):
  """Return the pair, or None if the design cannot have this defect."""
  try:
    return twins.draw(family, defect, key=key, size=size, attempts=ATTEMPTS)
  except ValueError:  # No room for an overlay.
    return None


def ensure(
  cache_dir: str | os.PathLike[str], count: int, *, size: int, seed: int
) -> Pairs:
  """Return pairs from the cache; generate the missing ones.

  Args:
    cache_dir: folder of cached files; it is created if missing.
    count: number of pairs.
    size: side of the images in pixels.
    seed: seed of all pairs.
  """
  folder = pathlib.Path(cache_dir) / f"pairs-v{VERSION}-{size}px-seed{seed}"
  folder.mkdir(parents=True, exist_ok=True)
  jobs = [
    (folder, part, size, seed)
    for part in range(-(-count // PAIRS_PER_FILE))
    if not _path(folder, part).is_file()
  ]
  if jobs:
    _log.info("Drawing %d pairs into %s", len(jobs) * PAIRS_PER_FILE, folder)
    # A forked process may hang because of JAX's threads.
    context = multiprocessing.get_context("spawn")
    workers = min(len(jobs), os.cpu_count() or 1)
    with concurrent.futures.ProcessPoolExecutor(
      workers, context, initializer=_end_with_parent
    ) as pool:
      try:
        with _ctrl_c_blocked():
          written = pool.map(_write, jobs)
        for _ in written:
          pass
      except KeyboardInterrupt:  # Do not wait for files that are not needed.
        for process in multiprocessing.active_children():
          process.terminate()
        raise
  return _read(folder, count)


def _end_with_parent() -> None:
  """End this process when its parent is killed; it would wait for ever."""
  parent = multiprocessing.parent_process()
  assert parent

  def watch():
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _ctrl_c_blocked():
  """Block SIGINT in processes started here: the terminal sends it to all."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _path(folder, part):
  return folder / f"{part:05d}.npz"


def _write(job):
  folder, part, size, seed = job
  numbers = range(part * PAIRS_PER_FILE, (part + 1) * PAIRS_PER_FILE)
  pairs = [draw(number, size=size, seed=seed) for number in numbers]
  images, masks, facts = zip(*pairs)
  rows = [[f.noun, f.material, f.color, f.defect] for f in facts]
  data = io.BytesIO()
  np.savez(
    data,
    images=np.stack(images),
    masks=np.packbits(np.stack(masks).astype(bool), axis=-1),
    facts=np.array(rows),
  )
  files.write_local_bytes(_path(folder, part), data.getvalue())


def _read(folder, count):
  parts = []
  for part in range(-(-count // PAIRS_PER_FILE)):
    with np.load(_path(folder, part)) as f:
      parts.append((f["images"], f["masks"], f["facts"]))
  images, masks, rows = (np.concatenate(p)[:count] for p in zip(*parts))
  masks = np.unpackbits(masks, axis=-1)[..., : images.shape[2]].astype(bool)
  facts = tuple(
    Facts(*map(str, row[:3]), anomalous=True, defect=str(row[3]))
    for row in rows
  )
  return Pairs(images, masks, facts)
