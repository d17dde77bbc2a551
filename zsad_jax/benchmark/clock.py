"""Timing of several compiled functions in turns."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


class Clock:
  """Times compiled functions in turns, so that other load affects all alike."""

  def __init__(self, rounds: int):
    self._rounds, self._calls = rounds, {}
    self.first: dict[str, float] = {}

  def add(
    self, name: str, function: Callable[..., Any], *arguments: Any
  ) -> None:
    """Compile a function and add it to those that are timed."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    self.first[name] = time.perf_counter() - start
    self._calls[name] = function, arguments

  def medians(self) -> dict[str, float]:
    """Time all functions; return the median seconds of each."""
    seconds = {name: [] for name in self._calls}
    for _ in range(self._rounds):
      for name, (function, arguments) in self._calls.items():
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}
