"""A command of the project with the backbone of small runs.

python -m tests.helpers.small_command serve --workdir=DIR
"""

import importlib
import sys

from tests.helpers import small_run
from zsad_jax.backbones.clip import load as clip_load
from zsad_jax.runtime import cli, stopping


def main(name):
  """Run a command with the other arguments of this process."""
  stopping.exit_on_signal()  # As `import zsad_jax` of a command does.
  clip_load.RANDOM_CONFIG = small_run.BACKBONE
  package = name == "serve"
  module = f"zsad_jax.{name}.__main__" if package else f"zsad_jax.{name}"
  found = importlib.import_module(module)
  takes = name in ("predict", "calibrate")
  cli.run(found.main, found.define_flags, arguments=takes)


if __name__ == "__main__":
  command = sys.argv.pop(1)
  sys.argv[0] = command
  main(command)
