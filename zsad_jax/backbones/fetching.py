"""Loading and fetching of weights, shared by the folders of backbones."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from zsad_jax.backbones.clip import sources, weights
from zsad_jax.backbones.published_weights import Published


def require_file(name: str, path: str, published: Sequence[Published]) -> None:
  """Check that there is a file of converted weights.

  Args:
    name: `config.backbone.name`.
    path: `config.backbone.path`.
    published: weights of the folder.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: no path is given.
  """
  if not path:
    raise ValueError(
      f"config.backbone.path is empty: give the converted weights of {name} "
      f"(zsad weights list, or zsad convert --source=SOURCE "
      f"--model={name} --output=FILE)."
    )
  if not pathlib.Path(path).is_file():
    found = pathlib.Path(path).stem
    known = [each.name for each in published if each.backbone == name]
    get = found if found in known else known[0]
    raise FileNotFoundError(
      f"{path} is not a file: config.backbone.path names converted weights of "
      f"{name}. Fetch them by `zsad weights get {get} --output={path}`, or "
      f"convert a file that you have: zsad convert "
      f"--source=SOURCE --model={name} --output={path}."
    )


def fetch(
  entry: Published,
  output: str,
  convert: Callable[..., str],
  *,
  offline: bool,
) -> str:
  """Fetch published weights, convert them and return a summary.

  Args:
    entry: the weights.
    output: safetensors file to write.
    convert: conversion of the folder; takes source, output, model, name and
      the options of the entry.
    offline: use no network, only what was downloaded before.

  Raises:
    OSError: the weights cannot be fetched, or the file cannot be written.
    ValueError: a download is corrupt, or of another model.
  """
  found = sources.fetch(entry.repo, entry.files, offline=offline)
  weights_files = [name for name in found.files if name in entry.files]
  source = found.path / weights_files[0] if weights_files else found.path
  summary = convert(
    str(source),
    output,
    model=entry.backbone,
    name=f"{entry.repo}@{found.commit}",
    **dict(entry.options),
  )
  stated = found.licence or "none"
  return "\n".join(
    [
      *(f"verified {each.digest}  {n}" for n, each in found.files.items()),
      summary,
      f"licence {entry.licence}; the repository states: {stated}",
    ]
  )


def identify(
  name: str, path: str, published: Sequence[Published]
) -> Published | None:
  """Return the published weights that a converted file was made from.

  The file holds the name and the SHA-256 of its source.

  Args:
    name: `config.backbone.name`.
    path: file of converted weights.
    published: weights of the folder.

  Returns:
    None where the origin is not certain.
  """
  origin: dict[str, Any] = weights.read_origin(path)
  repo = str(origin.get("name")).partition("@")[0]
  digests = [str(x) for x in (origin.get("sha256") or {}).values()]
  for entry in published:
    if entry.backbone != name:
      continue
    digest = entry.local and sources.published_digest(entry.local.name)
    same = digest and any(x.startswith(digest) for x in digests)
    if repo == entry.repo or same:
      return entry
  return None
