"""Removal of private information: absolute paths, folders, URLs."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from zsad_jax.backbones.published_weights import FOLDER, Published
from zsad_jax.datasets import registry

# An absolute path, one below a home folder, or a URL, within a text.
_PATH = re.compile(
  r"(?<![\w.])(?:[A-Za-z][\w+.-]*://|~?/|[A-Za-z]:[\\/]|\.\.?/)[^\s,;\"'()]*"
)
_DATA = ("train_data", "test_data", "selection_data")
_OWN = " (own data)"
# Fields that are folders of one machine.
_EMPTY = ("decoded_cache", "features.folder")


def text(value: str) -> str:
  """Return a text in which paths and URLs are replaced by their last part."""
  return _PATH.sub(lambda found: _last(found[0]), value)


def data(name: str) -> str:
  """Return the name of a data set, without the path of one that is a folder."""
  if name in registry.ENTRIES or name.startswith(registry.TFDS):
    return name
  return _last(name).removesuffix(_OWN) + _OWN


def config(
  document: Mapping[str, Any], weights: Published | None
) -> dict[str, Any]:
  """Return the configuration of a run without private paths.

  Args:
    document: content of config.json.
    weights: entry of the catalogue that the run's weights are; None for none.
  """
  result = json.loads(json.dumps(document))
  for field in _DATA:
    if field in result:
      result[field] = [data(name) for name in result[field]]
  result["data_root"] = "data"
  for name in _EMPTY:
    section, _, field = name.rpartition(".")
    part = result.get(section) if section else result
    if part and field in part:
      part[field] = ""
  backbone = result["backbone"]
  if backbone["path"]:
    name = weights.name if weights else backbone["name"]
    backbone["path"] = f"{FOLDER}/{name}.safetensors"
  text_backbone = result.get("text_backbone", {})
  if text_backbone.get("path"):
    text_backbone["path"] = f"{FOLDER}/{text_backbone['name']}.safetensors"
  return _scrubbed(result, kept=backbone["path"])


def check(folder: pathlib.Path, workdir: pathlib.Path) -> None:
  """Check that no text file of a folder has a path of this machine.

  Args:
    folder: the files to upload.
    workdir: folder of the run.

  Raises:
    ValueError: one has.
  """
  paths = {os.path.realpath(p) for p in (workdir, os.getcwd(), "~")}
  paths |= {os.path.expanduser("~"), os.path.abspath(workdir)}
  for path in sorted(folder.rglob("*")):
    if path.suffix not in (".json", ".md"):
      continue
    content = path.read_text(encoding="utf-8")
    for each in paths - {os.sep}:
      if re.search(rf"(?<![\w.]){re.escape(each)}(?!\w)", content):
        raise ValueError(
          f"{path.relative_to(folder)} would contain the path {each} of this "
          "machine: remove it from the configuration or the thresholds of the "
          "run."
        )


def _scrubbed(value: Any, kept: str) -> Any:
  """Return JSON values with the paths in all texts replaced."""
  if isinstance(value, dict):
    return {k: _scrubbed(v, kept) for k, v in value.items()}
  if isinstance(value, list):
    return [_scrubbed(each, kept) for each in value]
  return text(value) if isinstance(value, str) and value != kept else value


def _last(path: str) -> str:
  """Return the last part of a path or a URL."""
  return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
