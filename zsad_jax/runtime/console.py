"""Plain messages of commands on the console.

Library code logs to `logging.getLogger(__name__)`. A command calls
`configure`, which prints the package's messages without prefixes.
"""

import io
import logging
import os
import sys
from typing import Any

LOGGER = "zsad_jax"


class _Console(logging.Handler):
  """Prints messages to the current standard output, errors to stderr."""

  def emit(self, record: logging.LogRecord) -> None:
    error = record.levelno >= logging.ERROR
    stream = sys.stderr if error else sys.stdout
    print(self.format(record), file=stream, flush=True)


class _Output:
  """A standard stream whose reader may end, such as `head`."""

  def __init__(self, stream: io.TextIOWrapper):
    self._stream = stream

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Write text, to no file from the end of the reader on."""
    try:
      return self._stream.write(text)
    except BrokenPipeError:
      self._discard()
      return len(text)

  def flush(self) -> None:
    """Write what is buffered."""
    try:
      self._stream.flush()
    except BrokenPipeError:
      self._discard()

  def _discard(self):
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, self._stream.fileno())
    os.close(nothing)


def outlast_readers() -> None:
  """Complete a command whose messages are no longer read."""
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    if type(stream) is io.TextIOWrapper:  # No stream of a notebook or a test.
      setattr(sys, name, _Output(stream))


def configure(*, primary: bool = True) -> None:
  """Print the package's messages from level INFO on, or only errors.

  Args:
    primary: whether this is the process that writes the results. The others
      would print the same: they show errors only.
  """
  for stream in (sys.stdout, sys.stderr):
    # A console that cannot show a character shows its number.
    if isinstance(stream, (io.TextIOWrapper, _Output)):
      stream.reconfigure(errors="backslashreplace")
  logger = logging.getLogger(LOGGER)
  logger.setLevel(logging.INFO if primary else logging.ERROR)
  logger.propagate = False
  if not any(isinstance(h, _Console) for h in logger.handlers):
    logger.addHandler(_Console())
