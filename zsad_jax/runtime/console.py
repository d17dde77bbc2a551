"""Plain messages of commands on the console.

Library code logs to `logging.getLogger(__name__)`. A command calls
`configure`, which prints what the package logs, as it is, to standard output.
"""

import logging
import sys

LOGGER = "zsad_jax"


class _Console(logging.Handler):
  """Prints messages to the standard output of the moment."""

  def emit(self, record: logging.LogRecord) -> None:
    print(self.format(record), file=sys.stdout, flush=True)


def configure(*, primary: bool = True) -> None:
  """Print what the package logs, from level INFO, or ERROR.

  Args:
    primary: whether this process writes the results. The others would print
      the same: of them only errors are shown.
  """
  logger = logging.getLogger(LOGGER)
  logger.setLevel(logging.INFO if primary else logging.ERROR)
  logger.propagate = False
  if not any(isinstance(h, _Console) for h in logger.handlers):
    logger.addHandler(_Console())
