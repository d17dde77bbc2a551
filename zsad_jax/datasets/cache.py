"""Decoded, resized images and masks on disk: each is decoded once.

A file holds one sample. Its name says what it was made from: the files' paths,
sizes and times of change, and the settings; so a changed image is read anew.
Files appear whole, whoever else writes them, and carry a checksum: one that is
damaged is made again.
"""

import hashlib
import os
import zlib
from pathlib import Path

import numpy as np

from zsad_jax.datasets import index, preprocess
from zsad_jax.runtime import files

VERSION = 2  # Raise it when decoding or resizing changes.
_CHECK = 4  # Bytes of the checksum at the end.


class DecodedCache:
  """Reads samples, and keeps what was decoded.

  Args:
    folder: where the files are; made when needed.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    self.folder = Path(folder)
    self._closed = False  # Whether it cannot be written to.

  def load(
    self, sample: index.Sample, size: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns image uint8 (size, size, 3) and mask uint8 (size, size).

    Raises:
      ValueError: a file is missing or corrupt, or sizes differ.
    """
    path = self._path(sample, size)
    found = _read(path, size)
    if found is None:
      found = preprocess.load_pair(sample, size)
      self._keep(path, found)
    return found

  def _keep(self, path, found):
    """Writes a sample; says so, once, when that cannot be done."""
    if self._closed:
      return
    try:
      files.write_local_bytes(path, _packed(*found))
    except OSError as error:
      self._closed = True
      print(
        f"note: {error}. Images are decoded without the cache from here.",
        flush=True,
      )

  def size(self) -> int:
    """Bytes that the files take."""
    return sum(p.stat().st_size for p in self.folder.glob("*/*.raw"))

  def _path(self, sample, size):
    digest = hashlib.sha256(facts(sample, size).encode()).hexdigest()
    return self.folder / digest[:2] / f"{digest[2:34]}.raw"


def facts(sample: index.Sample, size: int) -> str:
  """What a decoded sample is made from; changes whenever its files do."""
  lines = [str(VERSION), str(size)]
  for path in (sample.image_path, sample.mask_path, *sample.more_masks):
    name, box = index.file_and_box(path)
    lines.append(f"{path} {box} {_state(name)} {sample.lossy_mask}")
  return "\n".join(lines)


def _state(name):
  """What changes with a file; nothing for records, which do not."""
  if not name or name.startswith(index.BUILT):
    return ""
  try:
    state = os.stat(name)
  except OSError as error:
    raise ValueError(f"{name}: the file does not exist.") from error
  return f"{state.st_size} {state.st_mtime_ns}"


def _packed(image, mask):
  content = image.tobytes() + np.packbits(mask).tobytes()
  return content + zlib.crc32(content).to_bytes(_CHECK, "little")


def _read(path, size):
  """Image and mask of a file; None if it is not there, or not whole."""
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    return None
  pixels, content = size * size, data[:-_CHECK]
  whole = len(content) == 3 * pixels + -(-pixels // 8)
  check = int.from_bytes(data[-_CHECK:], "little")
  if not whole or zlib.crc32(content) != check:
    return None
  raw = np.frombuffer(content, np.uint8)
  mask = np.unpackbits(raw[3 * pixels :], count=pixels)
  return raw[: 3 * pixels].reshape(size, size, 3), mask.reshape(size, size)


def open_cache(folder: str) -> DecodedCache | None:
  """The cache of a configuration's folder; None for ""."""
  return DecodedCache(folder) if folder else None
