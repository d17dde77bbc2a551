"""Plain messages of commands on the console.

Library code logs to `logging.getLogger(__name__)`. A command calls
`configure`, which prints the package's messages without prefixes.
"""

import io
import logging
import sys

LOGGER = "zsad_jax"


class _Console(logging.Handler):
  """Prints messages to the current standard output, errors to stderr."""

  def emit(self, record: logging.LogRecord) -> None:
    error = record.levelno >= logging.ERROR
    stream = sys.stderr if error else sys.stdout
    print(self.format(record), file=stream, flush=True)


def configure(*, primary: bool = True) -> None:
  """Print the package's messages from level INFO on, or only errors.

  Args:
    primary: whether this is the process that writes the results. The others
      would print the same: they show errors only.
  """
  for stream in (sys.stdout, sys.stderr):
    # A console that cannot show a character shows its number.
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")
  logger = logging.getLogger(LOGGER)
  logger.setLevel(logging.INFO if primary else logging.ERROR)
  logger.propagate = False
  if not any(isinstance(h, _Console) for h in logger.handlers):
    logger.addHandler(_Console())
