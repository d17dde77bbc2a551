"""Flags of commands with a web server, and the check of their packages.

Needs no package of an extra; `server` does.
"""

import importlib.util
from collections.abc import Sequence

from absl import flags


def define_flags(*, port: int, users: str) -> None:
  """Define the flags of an address and of the size of uploads.

  Args:
    port: default.
    users: who has a token, for the help.
  """
  flags.DEFINE_string("host", "127.0.0.1", "Name or address to listen at.")
  flags.DEFINE_integer("port", port, "Port; 0: any free one.", 0, 65535)
  flags.DEFINE_string("token_file", None, f"File with the token of {users}.")
  flags.DEFINE_integer("max_bytes", 32 * 2**20, "Size of an image file.", 1)


def check_installed(command: str, packages: Sequence[str]) -> None:
  """Check that the packages of a command's extra are there.

  Args:
    command: its name, which is that of the extra.
    packages: names of modules.

  Raises:
    ValueError: one is missing.
  """
  find = importlib.util.find_spec
  if missing := [name for name in packages if not find(name)]:
    raise ValueError(
      f"zsad {command} needs {', '.join(missing)}: "
      f"pip install 'zsad_jax[{command}]'."
    )
