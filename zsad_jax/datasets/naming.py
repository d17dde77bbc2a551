"""Names of data sets, by which results are stored and compared.

A registered data set has its registered name. A folder has the shortest end of
its path that no other data set of the same list has, such as "site1/parts".
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from zsad_jax.datasets import registry
from zsad_jax.runtime import copies, urls


class Place(NamedTuple):
  """A data set, whatever the path that names it.

  Attributes:
    key: registered name, with `registry.TFDS` for records; "" for a folder.
    root: real path of its folder; "" for a registered set that is missing.
  """

  key: str
  root: str

  @property
  def registered(self) -> str:
    """Registered name without a prefix; "" for a folder."""
    return self.key.removeprefix(registry.TFDS)

  @property
  def digest(self) -> str:
    """Identifier in results, which hold no path of the machine."""
    text = os.fsencode(self.root or self.key)
    return hashlib.sha256(text).hexdigest()[:12]


def place(spec: str, data_root: str | os.PathLike[str] | None = None) -> Place:
  """Return the data set that a configuration or a flag names.

  Args:
    spec: registered name or folder, see `registry.open_dataset`.
    data_root: folder of the registered data sets.
  """
  name = spec.removeprefix(registry.TFDS)
  if name not in registry.ENTRIES:
    return Place("", os.path.realpath(copies.location(spec)))
  if name != spec:
    root = copies.location(urls.join(data_root or "", spec))
    return Place(spec, os.path.realpath(root))
  found = registry.find(name, data_root)
  return Place(spec, os.path.realpath(found) if found else "")


def names(
  places: Sequence[Place],
  free: Callable[[str, Place], bool] = lambda name, place: True,
) -> dict[Place, str]:
  """Return a name for each data set; those of different ones differ.

  Names that differ in case alone count as equal: they would be one folder on
  some file systems.

  Args:
    places: data sets, in any order; a data set may occur several times.
    free: whether a data set may have a name, for names that are in use.
  """
  rest = {each: _candidates(each, free) for each in places}
  chosen = {each: next(candidates) for each, candidates in rest.items()}
  while True:
    users: dict[str, list[Place]] = {}
    for each, name in chosen.items():
      users.setdefault(name.casefold(), []).append(each)
    equal = [
      each for group in users.values() if len(group) > 1 for each in group
    ]
    if not equal:
      return chosen
    for each in equal:
      chosen[each] = next(rest[each])


def _candidates(
  place: Place, free: Callable[[str, Place], bool]
) -> Iterator[str]:
  """Yield the names of a data set, the preferred one first."""
  if place.key:
    yield place.registered
  ends = place.root.strip(os.sep).split(os.sep) if place.root else []
  for length in range(1, len(ends) + 1):
    name = "/".join(ends[-length:])
    if name and name not in registry.ENTRIES and free(name, place):
      yield name
  # Nothing else is left for the root folder, or for registered names.
  stem = place.key.replace(":", "-") or ends[-1] or "root"
  yield f"{stem}-{place.digest}"
