"""Repetitions: results that differ in seeds alone."""

import json
from collections.abc import Sequence

from zsad_jax.evaluation.results import Result

_SHOWN = 3  # Differing fields in the name of a group.


def groups(results: Sequence[Result]) -> dict[str, list[Result]]:
  """Group the results of one data set by configuration and references.

  Repetitions are runs of one configuration with other seeds, and other seeds of
  the references. Runs of one name that differ in anything else are different
  groups, whose names show the differing fields.

  Args:
    results: of one data set.

  Returns:
    Results by the name of their group, such as "adaclip, 0-shot".
  """
  found: dict[tuple[str, str], list[Result]] = {}
  for result in results:
    found.setdefault((result.group, _configuration(result)), []).append(result)
  named: dict[str, list[Result]] = {}
  for (name, configuration), members in found.items():
    same = [other for group, other in found if group == name]
    if len(same) > 1:
      fields = [json.loads(text) for text in same]
      own = json.loads(configuration)
      label = f"{members[0].method} ({_differences(own, fields)})"
      name = f"{label}, {members[0].references.group}"
    number, unique = 2, name
    while unique in named:  # Fields beyond those that are shown differ.
      unique, number = f"{name} #{number}", number + 1
    named[unique] = members
  return named


def notes(results: Sequence[Result]) -> list[str]:
  """Return notes about repetitions of one data set that are not independent."""
  found = []
  for name, members in groups(results).items():
    runs = [(r.setting.seed, r.references.seed) for r in members]
    if len(set(runs)) < len(runs):
      found.append(
        f"{name}: {len(runs)} repetitions have {len(set(runs))} different "
        "seeds; their deviation is not that of seeds alone."
      )
  return found


def _configuration(result: Result) -> str:
  """Return what repetitions have in common, as text."""
  setting = result.setting
  fields = {k: v for k, v in setting.fields.items() if k != "seed"}
  # An unfinished run is no repetition of a finished one; the step that is
  # selected by results may differ.
  if setting.selection == "last":
    fields["step"] = setting.step
  fields["metrics"] = result.protocol.variant
  tiling = result.protocol.tiling
  fields["tiling"] = tiling.describe() if tiling else "none"
  return json.dumps(fields, sort_keys=True)


def _differences(own, fields):
  """Return the fields that are not equal in all configurations."""
  keys = dict.fromkeys(key for each in fields for key in each)
  missing = object()
  differing = [
    key
    for key in keys
    if any(each.get(key, missing) != own.get(key, missing) for each in fields)
  ]
  shown = [f"{key}={_short(own.get(key))}" for key in differing[:_SHOWN]]
  return ", ".join(shown + ["..."] * (len(differing) > _SHOWN))


def _short(value):
  """Return a value as text, lists without brackets."""
  return "+".join(map(str, value)) if isinstance(value, list) else str(value)
