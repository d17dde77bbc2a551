"""`predict --watch`: the loop for the flags of the command."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

from zsad_jax.reporting import predictions, result_files
from zsad_jax.runs import opening
from zsad_jax.watch import loop, tables


def run(
  options: Any, describe: Callable[[predictions.ImageResult], str]
) -> None:
  """Score the images of the folder --watch until a signal.

  Args:
    options: flags of `predict`.
    describe: returns the line to print for an image.

  Raises:
    Stopped: at a signal.
    ValueError, OSError: a flag, a folder or a file is missing or invalid.
  """
  opening.check_alone("--watch")
  folder = pathlib.Path(os.path.abspath(options.watch))
  output = pathlib.Path(os.path.abspath(options.output))
  loop.check_folders(folder, output)
  opened = opening.from_flags(options)
  limits = opened.detector.limits
  image_only = opened.run.method.image_only
  save = result_files.choose(options.save, limits, image_only=image_only)
  if options.save is None and limits.pixel is None and not image_only:
    print(result_files.NOTE)
  has_references = opened.detector.has_references
  writer = result_files.ResultWriter(
    output,
    save,
    limits,
    has_references=has_references,
    overlay_side=options.overlay_side,
  )
  watcher = loop.Watcher(
    detector=opened.detector,
    writer=writer,
    folder=folder,
    output=output,
    tables=tables.make(writer.columns),
    describe=describe,
    batch_size=options.batch_size,
  )

  def save_references():
    choice = opened.choice
    if choice.references:
      predictions.save_references(output, choice.class_name, choice.references)

  checked = {
    "--watch": str(folder),
    **opened.settings(),
    "--save": sorted(save),
  }
  watcher.run(checked, save_references)
