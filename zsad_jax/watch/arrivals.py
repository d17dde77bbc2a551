"""Images that arrive in a folder, each reported once it is complete.

The folder is listed again and again, which works on network drives as well. A
file counts as complete if two lists in a row show the same size and time.
Writers that pause for longer than that are recognised by a file that cannot be
decoded; writers that rename a complete file into the folder are safe always.
"""

import os
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

from zsad_jax.datasets import walker

INTERVAL = 0.5  # Seconds between two lists.
_SHARE = 5  # A list that takes t seconds is followed by a pause of 5 t.
# Seconds without a change, after which a file that cannot be decoded counts as
# corrupt instead of incomplete.
PATIENCE = 5.0


class Identity(NamedTuple):
  """An image: one state of a file. A file that is replaced is another image.

  Attributes:
    path: absolute path.
    size: bytes.
    mtime_ns: time of the last change in nanoseconds.
  """

  path: str
  size: int
  mtime_ns: int

  @classmethod
  def of(cls, path: str) -> "Identity":
    """Return the present state of a file.

    Raises:
      OSError: it does not exist, or cannot be reached.
    """
    status = os.stat(path)
    return cls(path, status.st_size, status.st_mtime_ns)

  @property
  def is_current(self) -> bool:
    """Whether the file still has this state."""
    try:
      return Identity.of(self.path) == self
    except OSError:
      return False


class Arrivals:
  """Lists of the images of a folder that have no result yet.

  Args:
    folder: the folder, which is searched as by `walker.tree`.
    output: folder of the results, which is not searched.
    is_done: whether an image has a result.
    clock: returns seconds.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    output: pathlib.Path,
    is_done: Callable[[Identity], bool],
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    self._folder, self._output = folder, output
    self._is_done, self._clock = is_done, clock
    self._since: dict[Identity, float] = {}
    self._next = -float("inf")
    self._kinds: set[str] = set()  # Of files that are no images.
    self.problem = ""  # Of the last list: a folder that cannot be read.
    self.left_out = ""  # Files of kinds that the last list showed first.

  @property
  def wait(self) -> float:
    """Seconds until the next list is due; 0 if it is."""
    return max(0.0, self._next - self._clock())

  def poll(self) -> list[Identity]:
    """List the folder; return the images that are complete, oldest first."""
    start, errors = self._clock(), []
    try:
      if not self._folder.is_dir():
        raise FileNotFoundError(f"{self._folder} does not exist.")
      found = walker.tree(self._folder, without=[self._output], errors=errors)
    except OSError as error:
      found = walker.Tree()
      errors.append(error)
    self._note_kinds(found.left_out)
    self.problem = _describe(errors[0]) if errors else ""
    now, before = self._clock(), self._since
    self._since = {}
    for path in found.images:
      try:
        image = Identity.of(str(path))
      except OSError:  # Removed since, or out of reach for now.
        continue
      if not self._is_done(image):
        self._since[image] = before.get(image, now)
    self._next = now + max(INTERVAL, _SHARE * (now - start))
    ready = [image for image in self._since if image in before]
    return sorted(ready, key=lambda image: (image.mtime_ns, image.path))

  def _note_kinds(self, left_out):
    """Describe files that are no images, each kind in one list only."""
    new = {p: kind for p, kind in left_out.items() if kind not in self._kinds}
    self._kinds.update(new.values())
    self.left_out = walker.describe(new)

  def may_change(self, image: Identity) -> bool:
    """Return whether an image that cannot be decoded may be incomplete."""
    since = self._since.get(image)
    return since is None or self._clock() - since < PATIENCE


def _describe(error: OSError) -> str:
  """Return the reason in one line."""
  if error.strerror is None:
    return str(error)
  return f"{error.filename}: {error.strerror}"
