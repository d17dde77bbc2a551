"""Reader of data sets built as records by `tfds_builders.py`."""

import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from zsad_jax.datasets import index
from zsad_jax.runtime import copies, urls

BUILDERS = "zsad_jax.datasets.tfds_builders"  # Module that writes the records.
PREFIX = "zsad_"  # Of the names of builders.
INDEX = "samples"  # Key of the list of samples in a builder's metadata.


def open_built(
  name: str, data_root: str | os.PathLike[str] | None
) -> index.Dataset:
  """Open the records of a registered data set.

  Args:
    name: a key of `registry.ENTRIES`.
    data_root: `--data_dir` of the build.

  Raises:
    FileNotFoundError: they do not exist.
    ValueError: no data root was given.
  """
  if data_root is None:
    raise ValueError(f"tfds:{name}: no data root was given.")
  folder = Path(copies.local(urls.join(data_root, PREFIX + name))).absolute()
  versions = sorted(folder.glob("*/metadata.json"))
  if not versions:
    raise FileNotFoundError(
      f"{folder} holds no built data set: run tfds build {PREFIX}{name} "
      f"--imports={BUILDERS} --manual_dir=DIR --file_format=array_record "
      f"--data_dir={data_root}"
    )
  built = versions[-1].parent
  facts = json.loads(versions[-1].read_text(encoding="utf-8"))[INDEX]
  parts = {
    part: [_sample(built, part, i, row) for i, row in enumerate(rows)]
    for part, rows in facts.items()
  }
  train, test = parts.get("train", []), parts.get("test", [])
  return index.make_dataset(name, built, train=train, test=test)


def _sample(built: Path, part: str, number: int, row: list) -> index.Sample:
  class_name, specie, label, masked, view, group = row
  path = f"{index.BUILT}{built}/{part}/{number}"
  mask = f"{path}/mask" if masked else ""
  return index.Sample(
    f"{path}/image", mask, class_name, specie, label, view, group
  )


def read(path: str) -> bytes:
  """Return the bytes of a path that begins with `index.BUILT`."""
  built, part, number, feature = path.removeprefix(index.BUILT).rsplit("/", 3)
  return _source(built, part)[int(number)][feature]


@functools.cache
def _source(built: str, part: str) -> Sequence:
  builder = tfds.builder_from_directory(built)
  # pyright does not see the arguments that a decorator passes on.
  return builder.as_data_source(split=part)  # pyright: ignore[reportCallIssue]
