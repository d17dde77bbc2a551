"""Configurations of the papers, and whether a run is one of them."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

from zsad_jax import methods
from zsad_jax.datasets import naming
from zsad_jax.runs import run as run_lib
from zsad_jax.runtime import config_files

_BASES = ("paper", "paper_mvtec")
# Fields that no number of an evaluation depends on.
_WITHOUT_EFFECT = (
  "allow_trained",
  "checkpoint_steps",
  "data_root",
  "decoded_cache",
  "eval_batch_size",
  "features.folder",
  "features.storage",
  "log_steps",
  "name",
  "skip_corrupt",
  "tensorboard",
  "test_data",
)
_DATA = ("train_data", "selection_data")
# The weights of a paper's backbone may be in any file.
_FREE_IN_PAPERS = ("seed", "backbone.path", "matmul_precision")


def settings(config: Any) -> dict[str, Any]:
  """Return the fields of a configuration that its numbers depend on.

  Args:
    config: configuration of a run of any version.

  Returns:
    Values by name, such as "backbone.name"; data sets by registered name or
    real path; every field of the method, and also "seed".
  """
  if "members" in config:  # An ensemble.
    return {
      f"{name}.{field}": value
      for name, member in config.members.items()
      for field, value in settings(member).items()
    }
  document = json.loads(config.to_json_best_effort())
  if "method_name" in document:
    method: Any = run_lib.make_method(
      document["method_name"], document.get("method", {})
    )
    document["method"] = json.loads(json.dumps(dataclasses.asdict(method)))
  flat = dict(_flatten(document))
  for name in _DATA:
    places = [
      naming.place(spec, document.get("data_root"))
      for spec in flat.get(name, ())
    ]
    flat[name] = [each.key or each.root for each in places]
  return {k: v for k, v in flat.items() if k not in _WITHOUT_EFFECT}


def paper_config(config: Any) -> str:
  """Return the name of the papers' configuration that a run has, or "".

  Compared are all fields that the numbers depend on but the seed: backbone,
  image size, training data, method, optimizer, and so on. A field that the
  configuration of an older run lacks has no other value.
  """
  if "members" in config:
    return ""  # Its printed numbers belong to no configuration.
  try:
    own = settings(config)
  except ValueError:
    return ""  # A method that is not installed any more.
  name = config.method_name
  for base in _BASES:
    for variant in ("", *methods.paper_variants(name)):
      found = _of_paper(f"{name}:{base}{',' if variant else ''}{variant}")
      if found and all(
        own.get(field, value) == value for field, value in found[1].items()
      ):
        return found[0]
  return ""


@functools.cache
def _of_paper(spec: str) -> tuple[str, Mapping[str, Any]] | None:
  """Return name and settings of a packaged configuration; None if missing."""
  try:
    config = config_files.load(spec)
  except (FileNotFoundError, ValueError):
    return None  # A method without a configuration, or without the variant.
  found = settings(config)
  return str(config.name), {
    k: v for k, v in found.items() if k not in _FREE_IN_PAPERS
  }


def _flatten(document, prefix=""):
  """Yield names and values of nested fields."""
  for name, value in document.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value
