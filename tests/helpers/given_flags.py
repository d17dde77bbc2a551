"""Flags of a command as its `main` receives them."""

import types


class GivenFlags(types.SimpleNamespace):
  """Values of flags by name; flags that are not given are None."""

  def __getattr__(self, name):
    return None

  def __getitem__(self, name):
    return types.SimpleNamespace(value=getattr(self, name))
