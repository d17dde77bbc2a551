"""Settings of a folder of results, which hold for all of its images."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from zsad_jax.reporting import score_table
from zsad_jax.runtime import files

FILE = "watch.json"
_SHOWN = 60  # Characters of a value in messages.


def check(output: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Store the settings of a new folder; compare them with those of an old one.

  Args:
    output: the folder, which exists.
    settings: by name, such as "--threshold"; JSON values.

  Raises:
    ValueError: the folder has results of other settings, or of a command that
      does not watch.
  """
  path = output / FILE
  wanted = json.loads(json.dumps(dict(settings)))
  if not path.exists():
    for name in (score_table.SCORES, score_table.PARTIAL_SCORES):
      if (output / name).exists():
        raise ValueError(
          f"{output / name} was written without --watch; choose another "
          "--output."
        )
    files.write_text(path, json.dumps(wanted, indent=1) + "\n")
    return
  stored = files.read_json_object(path)
  for name in (*wanted, *stored):
    before, now = stored.get(name), wanted.get(name)
    if before != now:
      raise ValueError(
        f"{output} has results of other settings: {name} was "
        f"{_shown(before)}, and is {_shown(now)} now. Give the former "
        "settings, or choose another --output."
      )


def refuse(output: pathlib.Path) -> None:
  """Refuse to write other results into a folder of watched ones.

  Raises:
    ValueError: the folder has results of --watch.
  """
  if (output / FILE).exists():
    raise ValueError(
      f"{output} has results of --watch ({FILE}); choose another --output."
    )


def _shown(value: Any) -> str:
  """Return a value as text of limited length."""
  text = "not given" if value is None else json.dumps(value)
  return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
