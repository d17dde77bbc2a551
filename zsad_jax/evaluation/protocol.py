"""Evaluation protocol: data sets, seeds, shots, metrics, checkpoint.

Two results are comparable where their protocols agree. Testing on training
data is refused unless it is explicitly allowed.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from zsad_jax.datasets import index, registry
from zsad_jax.metrics import accumulators


@dataclasses.dataclass(frozen=True)
class Protocol:
  """Evaluation protocol of a run.

  Attributes:
    train_data: data sets used for training.
    test_data: data sets to evaluate on.
    selection: how the checkpoint was chosen, "last" or "official".
    selection_data: data sets used to choose it.
    shots: numbers of references per class, 0 for zero-shot.
    seeds: seeds of reference sampling.
    variant: definition of the metrics, a key of `accumulators.VARIANTS`.
    allow_trained: whether testing on training data is allowed.
  """

  train_data: tuple[str, ...]
  test_data: tuple[str, ...]
  selection: str
  selection_data: tuple[str, ...]
  shots: tuple[int, ...] = (0,)
  seeds: tuple[int, ...] = ()
  variant: str = "streamed"
  allow_trained: bool = False

  def __post_init__(self):
    accumulators.variant(self.variant)  # Raises ValueError if unknown.

  @classmethod
  def from_config(cls, config: Any, **settings: Any) -> "Protocol":
    """Return the protocol of a configuration, with these fields replaced."""
    used = config.selection_data if config.selection != "last" else ()
    return cls(
      **{
        "train_data": tuple(config.train_data),
        "test_data": tuple(config.test_data),
        "selection": config.selection,
        "selection_data": tuple(used),
        **settings,
      }
    )

  def check(self, dataset: index.Dataset, data_root: str | None) -> list[str]:
    """Return notes that belong to results on this data set.

    Raises:
      ValueError: it was trained on, and that is not allowed.
    """
    notes = []
    if dataset.root in _roots(self.train_data, data_root):
      if not self.allow_trained:
        raise ValueError(
          f"{dataset.name} ({dataset.root}) was trained on: this would be "
          "no zero-shot result. --allow_trained evaluates it nevertheless."
        )
      notes.append(f"{dataset.name} was trained on: no zero-shot result.")
    if self.selection == "official":
      names = ", ".join(self.selection_data)
      target = dataset.root in _roots(self.selection_data, data_root)
      images = "this target set" if target else f"target images ({names})"
      notes.append(f'checkpoint "official": chosen by the results on {images}.')
    return notes

  def describe(self) -> str:
    """Return the protocol in one line of text."""
    shots = ", ".join(map(str, self.shots))
    seeds = f", seeds {', '.join(map(str, self.seeds))}" if self.seeds else ""
    return (
      f"trained on {', '.join(self.train_data)}; tested on "
      f"{', '.join(self.test_data)}; checkpoint {self.selection}; shots "
      f"{shots}{seeds}; metrics {self.variant}"
    )


def check_names(config: Any) -> None:
  """Check before training that no data set is used for training and testing.

  Raises:
    ValueError: one is, and `config.allow_trained` is not set.
  """
  both = set(config.train_data) & set(config.test_data)
  if both and not config.allow_trained:
    raise ValueError(
      f"{', '.join(sorted(both))} is in config.train_data and in "
      "config.test_data: its results would mean nothing. "
      "--config.allow_trained=True evaluates it nevertheless."
    )


def _roots(names: Sequence[str], data_root: str | None) -> set[str]:
  """Return the folders of data sets, without those that are missing."""
  roots = set()
  for name in names:
    with contextlib.suppress(FileNotFoundError):
      roots.add(registry.open_dataset(name, data_root=data_root).root)
  return roots
