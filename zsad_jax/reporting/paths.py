"""Texts of reports without the paths of the machine that wrote them."""

import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

# An absolute folder in a text, but not in an address such as https://x.org/y.
_ABSOLUTE = re.compile(r"(?<![\w.~:/>-])/(?:[^\s/,;:'\"()<>|]+/)+")


def printable(text: str) -> str:
  """Return a text that can be written as UTF-8.

  Bytes of file names that are not UTF-8 are shown as backslash escapes.
  """
  return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Paths:
  """Replaces absolute paths by paths relative to folders of an evaluation.

  Args:
    folders: replacement of each folder, such as the name of a data set for its
      root; "" removes the folder. The current, the home and the temporary
      folder are always replaced.
  """

  def __init__(self, folders: Mapping[str, str]):
    known = {
      tempfile.gettempdir(): "",
      os.path.expanduser("~"): "~",
      os.getcwd(): "",
      **folders,
    }
    found = {}
    for folder, name in known.items():
      for form in (os.path.abspath(folder), os.path.realpath(folder)):
        if form != os.sep:
          found[form] = name
    # A folder before those that contain it.
    self._folders = sorted(found.items(), key=lambda item: -len(item[0]))

  def text(self, text: str) -> str:
    """Return a text without absolute paths."""
    for folder, name in self._folders:
      if folder in text:
        inside = f"{name}/" if name else ""
        text = text.replace(folder + os.sep, inside)
        end = re.compile(re.escape(folder) + r"(?![^\s,;:'\")<>|])")
        text = end.sub(lambda _, n=name: n or ".", text)
    return printable(_ABSOLUTE.sub("", text))

  def value(self, value: Any) -> Any:
    """Return a value of a JSON document with all of its texts replaced."""
    if isinstance(value, str):
      return self.text(value)
    if isinstance(value, Mapping):
      return {self.text(str(k)): self.value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
      return [self.value(each) for each in value]
    return value


def relative(path: str, root: str, paths: Paths) -> str:
  """Return the path of an image below the root of its data set.

  Args:
    path: of the image.
    root: folder of its data set.
    paths: for an image that is elsewhere.
  """
  inside = os.path.abspath(root) + os.sep
  if path.startswith(inside):
    return printable(path.removeprefix(inside))
  return paths.text(path)


def texts(values: Iterable[str], paths: Paths) -> list[str]:
  """Return texts without absolute paths."""
  return [paths.text(each) for each in values]
