"""The loop that scores the images of a folder as they arrive."""

import dataclasses
import logging
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zsad_jax.reporting import predictions, result_files
from zsad_jax.runs import lock, opening
from zsad_jax.runs.detector import Detection
from zsad_jax.runtime import file_names, mirror, stopping
from zsad_jax.watch import settings, tables
from zsad_jax.watch.arrivals import Arrivals, Identity
from zsad_jax.watch.journal import Journal, Table

_RETRY = 5.0  # Seconds until a result is written again that was not.
_log = logging.getLogger(__name__)


class _Unscored(str):
  """Status of an image that will not be scored."""


@dataclasses.dataclass
class Watcher:
  """Scores the images of a folder as they arrive, until a signal.

  Each image gets one line in the journal, after its files are written. An image
  that was not recorded is scored again at the next start.

  Attributes:
    detector: has `stream`, see `runs.detector.Detector`.
    writer: writes the files of an image.
    folder: the folder that is watched, absolute.
    output: folder of the results.
    tables: CSV tables in addition to the journal.
    describe: returns the line to print for an image.
    batch_size: number of images that are scored together, where so many wait;
      else they are scored one by one: two programs are compiled.
    clock: returns seconds.
    sleep: waits some seconds.
  """

  detector: Any
  writer: result_files.ResultWriter
  folder: pathlib.Path
  output: pathlib.Path
  tables: Sequence[Table]
  describe: Callable[[predictions.ImageResult], str]
  batch_size: int = 8
  clock: Callable[[], float] = time.monotonic
  sleep: Callable[[float], None] = time.sleep

  def __post_init__(self) -> None:
    self._ready: list[Identity] = []
    self._problems = dict.fromkeys(("input", "output"), "")
    self._idle = False
    self._labels = {"normal": 0, "anomalous": 0, "": 0}

  def run(
    self,
    checked: Mapping[str, Any],
    prepare: Callable[[], object] = lambda: None,
  ) -> None:
    """Score images until a signal.

    Args:
      checked: settings that all images of the folder share, see `settings`.
      prepare: called once the folder of the results is known to be ours.

    Raises:
      Stopped: at a signal.
      ValueError: a folder or the settings cannot be used.
      OSError: the journal cannot be opened.
    """
    check_folders(self.folder, self.output)
    with lock.hold(self.output, "--output"):
      settings.check(self.output, checked)
      prepare()
      with Journal(self.output, self.tables) as journal:
        if journal.count:
          print(f"Images in {self.output}: {journal.count}.")
        self._warm_up()
        self.begin(journal)
        try:
          while True:
            self.step()
        except stopping.Stopped as error:
          error.add_note(
            f"{self.summary()} All images: {journal.count}; the same command "
            "goes on from there."
          )
          raise

  def summary(self) -> str:
    """Return the number of images since the start, by label."""
    labels = self._labels
    left = f", {labels['']} without a score" if labels[""] else ""
    return (
      f"New images: {sum(labels.values())}, {labels['anomalous']} of them "
      f"anomalous{left}."
    )

  def _warm_up(self):
    """Compile the programs for one image and for a batch."""
    start = time.monotonic()
    opening.warm_up(self.detector, {1, self.batch_size})
    seconds = time.monotonic() - start
    print(f"Ready after {seconds:.1f} s.", flush=True)

  def begin(self, journal: Journal) -> None:
    """Set the journal that receives the results of `step`."""
    self._journal = journal
    self._arrivals = Arrivals(
      self.folder, self.output, journal.is_done, self.clock
    )

  def step(self) -> None:
    """List the folder if that is due; score what is ready, or wait."""
    found = self._arrivals
    if not found.wait:
      self._ready = found.poll()
      self._tell("input", found.problem, "the folder can be read again")
      if found.left_out:
        _log.info(f"note: {self.folder}: {found.left_out}.")
    number = self.batch_size if len(self._ready) >= self.batch_size else 1
    images, self._ready = self._ready[:number], self._ready[number:]
    if images:
      self._process(images)
      return
    if not self._idle:
      print(f"Waiting for images in {self.folder}.", flush=True)
    self._idle = True
    self.sleep(found.wait)

  def _process(self, images):
    """Score images, write their files and record them."""
    current = [image for image in images if image.is_current]
    for image, found in zip(current, self._score(current)):
      if not isinstance(found, (Detection, _Unscored)):
        if self._arrivals.may_change(image):
          continue  # It is in the next lists again.
        found = _Unscored(f"not read: {found}")
      try:
        with stopping.postponed():
          line = self._record(image, found)
      except OSError as error:
        if not image.is_current:
          continue
        reason = f"{error.filename or self.output}: {error.strerror or error}"
        self._tell("output", reason, "results can be written again")
        self._ready = []
        self.sleep(_RETRY)
        return
      self._tell("output", "", "results can be written again")
      if line:
        print(line, flush=True)

  def _score(self, images) -> list[Any]:
    """Return for each a `Detection`, an `_Unscored` or why it is unreadable."""
    if not images:
      return []
    paths = [image.path for image in images]
    try:
      stream = self.detector.stream(paths, skip_corrupt=True)
      return [found for _, found in stream]
    except (ValueError, MemoryError) as error:
      if len(images) == 1:
        return [_Unscored(f"not scored: {error or 'too little memory'}")]
      return [found for image in images for found in self._score([image])]

  def _record(self, image, found) -> str:
    """Write the files of an image, then its line in the journal.

    Returns:
      The line to print; "" where the image has changed and is not recorded.
    """
    if not image.is_current:
      return ""
    name = self._journal.name(image, self.folder)
    if not isinstance(found, _Unscored):
      result = predictions.ImageResult(image.path, name, found)
      try:
        row = self.writer.write(result)
        line = self.describe(result)
      except (ValueError, MemoryError) as error:
        found = _Unscored(f"not scored: {error or 'too little memory'}")
    if isinstance(found, _Unscored):
      line = file_names.shown(" ".join(found.split()))
      row = self.writer.unscored(image.path, line)
    if not image.is_current:  # It may have changed while it was read.
      _remove_files(row)
      return ""
    self._journal.add(image, name, tables.record(row))
    self._labels[getattr(found, "label", "")] += 1
    return line

  def _tell(self, kind, reason, action):
    """Report a problem once, and its end."""
    before, self._problems[kind] = self._problems[kind], reason
    if reason and not before:
      reason = reason.rstrip(".")
      _log.warning(f"warning: {reason}; trying again until it is possible.")
    elif before and not reason:
      _log.info(f"note: {action}.")


def _remove_files(row: result_files.ImageRow) -> None:
  """Remove the files of an image that is not recorded."""
  for column in ("overlay", "map", "mask"):
    if path := row.values.get(column):
      pathlib.Path(str(path)).unlink(missing_ok=True)


def check_folders(folder: pathlib.Path, output: pathlib.Path) -> None:
  """Check the folders of images and results; create that of the results.

  Raises:
    ValueError: they are one folder, or that of the results is a URL.
    FileNotFoundError: the folder of images does not exist.
  """
  if mirror.of(output):
    raise ValueError("--output is a URL; --watch needs a local folder.")
  if not folder.is_dir():
    raise FileNotFoundError(f"--watch: {folder} is no folder.")
  output.mkdir(parents=True, exist_ok=True)
  if os.path.samefile(folder, output):
    raise ValueError(
      f"--watch and --output are both {folder}; give another folder for the "
      "results."
    )
