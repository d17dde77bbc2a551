"""Settings of a folder of results, which hold for all of its images."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from zsad_jax.reporting import score_table
from zsad_jax.runs import opening
from zsad_jax.runtime import files

FILE = "watch.json"
_SHOWN = 60  # Characters of a value in messages.
_DIGITS = (4, 8, 17)  # Of a number: the first that tell two of them apart.
_NAMES = {"--threshold": "the threshold"}  # It need not be that of the flag.


def check(output: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Store the settings of a new folder; compare them with those of an old one.

  Args:
    output: the folder, which exists.
    settings: by name, such as "--threshold"; JSON values. See
      `opening.Opened.settings`.

  Raises:
    ValueError: the folder has results of other settings, of a calibration
      that was made again since, or of a command that does not watch.
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
  stored.setdefault(opening.CALIBRATED, wanted.get(opening.CALIBRATED))
  _check_calibration(output, stored, wanted)
  for name in (*wanted, *stored):
    if stored.get(name) != wanted.get(name):
      raise ValueError(
        f"{output} has results of other settings: "
        f"{_change(name, stored, wanted)}. Give the former settings, which "
        f"are in {FILE} there, or choose another --output."
      )


def _check_calibration(output, stored, wanted):
  """Refuse a calibration that was made again under its name."""
  differ = lambda name: stored.get(name) != wanted.get(name)
  if (
    any(map(differ, ("--workdir", "--calibration")))
    or not wanted.get("--calibration")
    or not differ(opening.CALIBRATED)
  ):
    return
  change = ""
  if differ("--threshold"):
    change = f" ({_change('--threshold', stored, wanted)})"
  raise ValueError(
    f"{output} has results of --calibration={wanted['--calibration']} of "
    f"{stored[opening.CALIBRATED]}, which was made again on "
    f"{wanted[opening.CALIBRATED]}{change}. Choose another --output for the "
    "results of the new calibration."
  )


def _change(name, stored, wanted) -> str:
  """Return how a setting has changed."""
  before, now = stored.get(name), wanted.get(name)
  for digits in _DIGITS:
    texts = [_shown(value, digits) for value in (before, now)]
    if texts[0] != texts[1]:
      break
  return f"{_NAMES.get(name, name)} was {texts[0]}, and is {texts[1]} now"


def refuse(output: pathlib.Path) -> None:
  """Refuse to write other results into a folder of watched ones.

  Raises:
    ValueError: the folder has results of --watch.
  """
  if (output / FILE).exists():
    raise ValueError(
      f"{output} has results of --watch ({FILE}); choose another --output."
    )


def _shown(value: Any, digits: int) -> str:
  """Return a value as text of limited length; of a number, some digits."""
  text = "not given" if value is None else json.dumps(value)
  if isinstance(value, float):
    text = f"{value:.{digits}g}"
  return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
