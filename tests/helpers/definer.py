"""Flags of commands in values of their own, apart from the global ones."""

import functools
from typing import Any

from absl import flags


class Definer:
  """absl's functions, for separate flag values."""

  def __init__(self, known: flags.FlagValues):
    self._known = known

  def __getattr__(self, name: str) -> Any:
    return functools.partial(getattr(flags, name), flag_values=self._known)
