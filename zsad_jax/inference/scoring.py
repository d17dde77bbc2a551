"""Search for image files."""

import glob
import os
from collections.abc import Sequence

from zsad_jax.datasets import layouts


def find_images(paths: Sequence[str]) -> list[str]:
  """Return the images that files, folders and globs match, each once.

  Raises:
    FileNotFoundError: a path matches nothing.
    ValueError: a folder holds no image.
  """
  found = {}
  for path in paths:
    if os.path.isdir(path):
      images = layouts.image_files(path)
    elif os.path.isfile(path):
      images = [path]
    else:
      images = sorted(
        p for p in glob.glob(path, recursive=True) if os.path.isfile(p)
      )
      if not images:
        raise FileNotFoundError(f"{path} is no image, folder or pattern.")
    found |= dict.fromkeys(map(str, images))
  return list(found)
