"""Cache of decoded, resized images and masks on disk.

A file holds one sample. Its name is a digest of the paths, sizes and
modification times of the sample's files and of the settings, so changed images
are decoded again. Files are written atomically and end with a checksum; a
corrupt file is replaced.
"""

import hashlib
import logging
import os
import zlib
from pathlib import Path

import numpy as np

from zsad_jax.datasets import index, masks, preprocess
from zsad_jax.runtime import files

VERSION = 3  # Raise it when decoding or resizing changes.
_CHECK = 4  # Bytes of the checksum at the end.
_log = logging.getLogger(__name__)


class DecodedCache:
  """Loads samples and stores the decoded arrays.

  Args:
    folder: folder of the files; made when needed.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    self.folder = Path(folder)
    self._closed = False  # After a failed write.

  def load(self, sample: index.Sample, size: int) -> preprocess.Pair:
    """Return image, mask and findings, as `preprocess.load_inspected`.

    Raises:
      ValueError: a file is missing or corrupt, or sizes differ.
    """
    path = self._path(sample, size)
    found = _read(path, size)
    if found is None:
      found = preprocess.load_inspected(sample, size)
      self._store(path, found)
    return found

  def _store(self, path: Path, found: preprocess.Pair) -> None:
    """Write a sample; after a failure log a note and write no more."""
    if self._closed:
      return
    try:
      files.write_local_bytes(path, _packed(found))
    except OSError as error:
      self._closed = True
      _log.warning(
        "note: %s. Images are decoded without the cache from now on.", error
      )

  def size(self) -> int:
    """Return the total size of the files in bytes."""
    return sum(p.stat().st_size for p in self.folder.glob("*/*.raw"))

  def _path(self, sample: index.Sample, size: int) -> Path:
    digest = hashlib.sha256(
      facts(sample, size).encode(errors="surrogatepass")
    ).hexdigest()
    return self.folder / digest[:2] / f"{digest[2:34]}.raw"


def facts(sample: index.Sample, size: int) -> str:
  """Return a description of a sample's files, which changes when they do."""
  lines = [str(VERSION), str(size)]
  for path in (sample.image_path, *sample.mask_files):
    name, box = index.file_and_box(path)
    lines.append(f"{path} {box} {_state(name)}")
  lines.append(f"{sample.label} {sample.lossy_mask} {sample.resize_mask}")
  return "\n".join(lines)


def _state(name: str) -> str:
  """Return size and modification time of a file, "" for records."""
  if not name or name.startswith(index.BUILT):
    return ""
  try:
    state = os.stat(name)
  except OSError as error:
    raise ValueError(f"{name}: the file does not exist.") from error
  return f"{state.st_size} {state.st_mtime_ns}"


def _packed(pair: preprocess.Pair) -> bytes:
  content = pair.image.tobytes() + np.packbits(pair.mask).tobytes()
  content += bytes([pair.findings])
  return content + zlib.crc32(content).to_bytes(_CHECK, "little")


def _read(path: Path, size: int) -> preprocess.Pair | None:
  """Return the content of a file; None if it is missing or corrupt."""
  try:
    data = path.read_bytes()
  except FileNotFoundError:
    return None
  pixels, content = size * size, data[:-_CHECK]
  whole = len(content) == 3 * pixels + -(-pixels // 8) + 1
  check = int.from_bytes(data[-_CHECK:], "little")
  if not whole or zlib.crc32(content) != check:
    return None
  raw = np.frombuffer(content, np.uint8)
  mask = np.unpackbits(raw[3 * pixels : -1], count=pixels)
  return preprocess.Pair(
    raw[: 3 * pixels].reshape(size, size, 3),
    mask.reshape(size, size),
    masks.Finding(int(raw[-1])),
  )


def open_cache(folder: str) -> DecodedCache | None:
  """Return the cache of a configuration's folder; None for ""."""
  return DecodedCache(folder) if folder else None
