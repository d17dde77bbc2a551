"""Range checks for the numeric fields of a method."""

from collections.abc import Callable, Iterable
from typing import Any


def check(
  method: Any,
  counts: Iterable[str] = (),
  positive: Iterable[str] = (),
  shares: Iterable[str] = (),
  weights: Iterable[str] = (),
) -> None:
  """Check numeric fields whose wrong values would give wrong results silently.

  A field may be a tuple of numbers, or None where its type allows it.

  Args:
    method: object with the fields.
    counts: names of fields that are at least 1.
    positive: names of fields that are greater than 0.
    shares: names of fields in [0, 1].
    weights: names of fields that are at least 0.

  Raises:
    ValueError: a field is out of its range.
  """
  _check(method, counts, lambda x: x >= 1, "at least 1")
  _check(method, positive, lambda x: x > 0, "greater than 0")
  _check(method, shares, lambda x: 0 <= x <= 1, "in [0, 1]")
  _check(method, weights, lambda x: x >= 0, "at least 0")


def _check(
  method: Any, names: Iterable[str], valid: Callable[[Any], bool], text: str
) -> None:
  for name in names:
    value = getattr(method, name)
    numbers = value if isinstance(value, tuple) else (value,)
    if not all(valid(x) for x in numbers if x is not None):
      raise ValueError(f"config.method.{name} has to be {text}, got {value!r}.")
