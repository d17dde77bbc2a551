"""Agreement of the processes of a run about data, weights and parameters.

Each process reads its own part of the images and computes from its own copy of
the weights. Where these differ, nothing fails, but the results are wrong.
"""

import hashlib
import os
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from zsad_jax import types
from zsad_jax.datasets import index
from zsad_jax.runtime import agreement, processes

_SIZES = 256  # Files of which the size is compared, of all the names are.


def check_training(
  config: types.Config,
  workdir: pathlib.Path,
  datasets: Sequence[index.Dataset],
  backbone: Any,
) -> None:
  """Check that all processes train the same run; all have to call it.

  Args:
    config: see configs/common.py.
    workdir: folder of the run, which the processes must share.
    datasets: the auxiliary data sets.
    backbone: the frozen backbone.

  Raises:
    ValueError: they differ, or see different folders.
  """
  if processes.count() == 1:
    return
  agreement.check(
    "configuration",
    agreement.describe("config", config),
    "Start the same command on every host.",
  )
  agreement.check_shared(workdir)
  for dataset in datasets:
    check_data(dataset)
  _check_weights(config.backbone.name, backbone)


def check_data(dataset: index.Dataset) -> None:
  """Check that all processes read the same data set; all have to call it.

  The names of all files, their classes and labels are compared, and the sizes
  of some.

  Raises:
    ValueError: the data sets differ.
  """
  if processes.count() == 1:
    return
  _check_files(
    f"the data set {dataset.name}",
    [
      (path, f"{os.path.relpath(path, dataset.root)} {s.class_name} {s.label}")
      for s in (*dataset.train, *dataset.test)
      for path in (s.image_path, *s.mask_files)
    ],
  )


def check_images(role: str, paths: Iterable[str]) -> None:
  """Check that all processes read the same images; all have to call it.

  Args:
    role: of the images, such as "the normal images".
    paths: files.

  Raises:
    ValueError: the images differ.
  """
  if processes.count() > 1:
    _check_files(role, [(path, path) for path in paths])


def _check_files(role: str, named: Sequence[tuple[str, str]]) -> None:
  """Compare files: their path on this host, and a text for all hosts."""
  digest = hashlib.sha256()
  for _, text in named:
    digest.update(text.encode(errors="surrogatepass") + b"\n")
  for path, _ in named[:: -(-len(named) // _SIZES) or 1]:
    digest.update(b"%d\n" % _size(index.file_and_box(path)[0]))
  agreement.check(
    "data",
    {role: f"{len(named)} files ({digest.hexdigest()[:8]})"},
    "Give every host the same files, or a folder that all share.",
  )


def _size(path: str) -> int:
  """Return the size of a file in bytes; -1 if it is missing."""
  try:
    return os.path.getsize(path)
  except OSError:
    return -1


def check_run(
  config: types.Config,
  backbone: Any,
  step: int,
  parameters: types.Params,
) -> None:
  """Check that all processes have loaded the same run; all have to call it.

  Args:
    config: configuration of the run.
    backbone: the frozen backbone.
    step: of the parameters.
    parameters: trained parameters and statistics.

  Raises:
    ValueError: the runs differ.
  """
  if processes.count() == 1:
    return
  agreement.check(
    "run",
    {
      **agreement.describe("config", config),
      "the step of the run": step,
      "the digest of its parameters": _digest(parameters),
    },
    "Give every process the same run: a --workdir that all hosts share.",
  )
  _check_weights(config.backbone.name, backbone)


def _check_weights(name: str, backbone: Any) -> None:
  agreement.check(
    "weights",
    {f"the digest of the weights of {name}": _digest(backbone)},
    "Give every host the same file of weights.",
  )


def _digest(tree: Any) -> str:
  """Return a digest of the arrays of a tree."""
  value = 0
  for leaf in jax.tree.leaves(tree):
    value = zlib.crc32(np.asarray(leaf, order="C").tobytes(), value)
  return f"{value:08x}"
