"""Parameters per category: one run, one set of parameters for each category.

Every leaf of parameters and statistics has a leading axis of categories, whose
names are in the workdir's categories.json. The statistics hold the memory bank
of the references that a category was trained on.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax import types
from zsad_jax.inference import predictor
from zsad_jax.runtime import files

FILE = "categories.json"
BANK = "memory_bank"  # Among the statistics.


@dataclasses.dataclass(frozen=True)
class Categories:
  """Categories of a run, in the order of their parameters.

  Attributes:
    names: as the data set spells them.
    prompt_names: as prompts have them.
    references: names of the files that each was trained on.
  """

  names: tuple[str, ...]
  prompt_names: tuple[str, ...]
  references: tuple[tuple[str, ...], ...]

  def index(self, name: str) -> int:
    """Return the position of a category.

    Raises:
      ValueError: it has no parameters.
    """
    if name not in self.names:
      raise ValueError(
        f"The run has no parameters for the category {name!r}: it was trained "
        f"on {', '.join(self.names)}. Choose one of them (--class_name), or "
        "train another run."
      )
    return self.names.index(name)

  def check(self, names: Iterable[str]) -> None:
    """Raise ValueError for the first name that has no parameters."""
    for name in sorted(names):
      self.index(name)

  def write(self, workdir: pathlib.Path) -> None:
    """Write the file of a run."""
    text = json.dumps(dataclasses.asdict(self), indent=1)
    files.write_text(workdir / FILE, text + "\n")


def read(workdir: pathlib.Path) -> Categories:
  """Read the categories of a run.

  Raises:
    FileNotFoundError: the run has no such file.
    ValueError: the file is corrupt.
  """
  path = workdir / FILE
  document = files.read_json_object(path)
  try:
    names, prompts = map(tuple, (document["names"], document["prompt_names"]))
    references = tuple(map(tuple, document["references"]))
  except (KeyError, TypeError) as error:
    raise ValueError(
      f"{path} is corrupt: it has to list names, prompt_names and references. "
      "Copy it from a backup, or train the run again."
    ) from error
  if not len(names) == len(prompts) == len(references) > 0:
    raise ValueError(
      f"{path} is corrupt: its lists have different lengths. Copy it from a "
      "backup, or train the run again."
    )
  return Categories(names, prompts, references)


def is_used(config: types.Config) -> bool:
  """Return whether a configuration has parameters per category."""
  return bool(config.get("per_category", False))


def check_takes_references(config: types.Config) -> None:
  """Raise ValueError for a run that has those it was trained on."""
  if is_used(config):
    raise ValueError(
      f"{config.name} compares with the references that it was trained on: "
      "leave out --references, or train it with others."
    )


def row(tree: Any, index: Any) -> Any:
  """Return the parameters or statistics of one category."""
  return jax.tree.map(lambda x: x[index], tree)


def select(
  known: Categories | None, name: str, params: Any, stats: Any
) -> tuple[Any, Any]:
  """Return the parameters and statistics of a category.

  Args:
    known: categories with parameters of their own, the leading axis of both;
      None where all share them.
    name: of the category.
    params: parameters.
    stats: running statistics.

  Raises:
    ValueError: it has no parameters.
  """
  if known is None:
    return params, stats
  return row((params, stats), known.index(name))


def stack(trees: Sequence[Any]) -> Any:
  """Return the parameters or statistics of all categories."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def initial(
  config: types.Config, method: Any, backbone: Any, count: int
) -> tuple[types.Params, types.Params]:
  """Return parameters and statistics of the right shapes.

  All categories begin with the same parameters; memory banks are 0.

  Args:
    config: see configs/promptad.py.
    method: a method that `learns_category`.
    backbone: frozen backbone.
    count: number of categories.
  """
  size, shots = config.image_size, config.references.shots
  batch = {
    "image": jax.ShapeDtypeStruct((shots, size, size, 3), jnp.uint8),
    "class_id": jax.ShapeDtypeStruct((shots,), jnp.int32),
  }

  def build(backbone, batch):
    features = predictor.encode(method, backbone, batch)
    return predictor.shared_memory_bank(method, features)

  bank = jax.eval_shape(build, backbone, batch)
  params, stats = jax.jit(method.init)(jax.random.key(config.seed), backbone)
  stats = {**stats, BANK: jax.tree.map(lambda x: jnp.zeros(x.shape), bank)}
  every = lambda tree: jax.tree.map(
    lambda x: jnp.broadcast_to(x, (count, *x.shape)), tree
  )
  return every(params), every(stats)
