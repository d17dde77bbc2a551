"""Collectives of compiled programs, read from their text."""

import math
import re
from typing import NamedTuple

_LINE = re.compile(
  r"\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) "
  r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
  r"(?:-start)?\("
)
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
  """A collective operation: its kind and the bytes that one device receives."""

  kind: str
  num_bytes: int


def collectives(text: str) -> list[Collective]:
  """Return the collectives of a program, from the text of its compiled HLO."""
  found = []
  for line in text.splitlines():
    if match := _LINE.match(line):
      sizes = [
        max(int(bits or 8), 8) // 8 * math.prod(map(int, dims.split(",")))
        if dims
        else max(int(bits or 8), 8) // 8
        for _, bits, dims in _ARRAY.findall(match[1])
      ]
      found.append(Collective(match[2], sum(sizes)))
  return found
