"""Values that `Literal` types allow."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal


def choices(hint: Any) -> tuple[Any, ...]:
  """Return the values that a `Literal` type (or `Literal | None`) allows.

  Args:
    hint: a resolved type hint.

  Returns:
    The allowed values; () where the type is no `Literal`.
  """
  if typing.get_origin(hint) is Literal:
    return typing.get_args(hint)
  parts = typing.get_args(hint)
  literal = [p for p in parts if typing.get_origin(p) is Literal]
  if not literal:
    return ()
  none = (None,) if type(None) in parts else ()
  return typing.get_args(literal[0]) + none


def check_choices(
  cls: type, values: Mapping[str, Any], prefix: str = "config.method"
) -> None:
  """Check values of a dataclass's `Literal` fields.

  Args:
    cls: the dataclass.
    values: by name of the field; other fields are ignored.
    prefix: of the field's name in the message.

  Raises:
    ValueError: a field has a value that its type does not allow.
  """
  hints = typing.get_type_hints(cls)
  for field in dataclasses.fields(cls):
    known = choices(hints[field.name])
    if known and field.name in values and values[field.name] not in known:
      raise ValueError(
        f"{prefix}.{field.name} is one of {', '.join(map(str, known))}, got "
        f"{values[field.name]!r}."
      )
