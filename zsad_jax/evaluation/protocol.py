"""What a number was measured by: sets, seeds, shots, metrics, checkpoint.

Two results can be compared where their protocols agree. What would make a
number meaningless is refused unless it is asked for.
"""

import contextlib
import dataclasses
from collections.abc import Sequence

from zsad_jax.datasets import index, registry
from zsad_jax.metrics import accumulators


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How a run is evaluated.

  Attributes:
    train_data: sets whose images were trained on.
    test_data: sets to evaluate on.
    selection: how the checkpoint was chosen, "last" or "official".
    selection_data: sets that were looked at to choose it.
    shots: numbers of references per class, 0 for zero-shot.
    seeds: of the sampling of references.
    variant: of the metrics, see `measures.MEASURES`.
    allow_trained: whether to test on what was trained on.
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
    accumulators.make(self.variant)  # Raises ValueError for an unknown one.

  @classmethod
  def of(cls, config, **settings) -> "Protocol":
    """The protocol of a run's configuration, with these settings."""
    looked_at = config.selection_data if config.selection != "last" else ()
    return cls(
      **{
        "train_data": tuple(config.train_data),
        "test_data": tuple(config.test_data),
        "selection": config.selection,
        "selection_data": tuple(looked_at),
        **settings,
      }
    )

  def check(self, dataset: index.Dataset, data_root: str | None) -> list[str]:
    """Returns what must stand beside a result on this data set.

    Raises:
      ValueError: it was trained on, and that was not allowed.
    """
    notes = []
    if dataset.root in _roots(self.train_data, data_root):
      if not self.allow_trained:
        raise ValueError(
          f"{dataset.name} ({dataset.root}) was trained on: this would be "
          "no zero-shot result. --allow_trained evaluates it all the same."
        )
      notes.append(f"{dataset.name} was trained on: no zero-shot result.")
    if self.selection == "official":
      which = ", ".join(self.selection_data)
      target = dataset.root in _roots(self.selection_data, data_root)
      what = "this target set" if target else f"target images ({which})"
      notes.append(f'checkpoint "official": chosen by the results on {what}.')
    return notes

  def describe(self) -> str:
    """One line for people."""
    shots = ", ".join(map(str, self.shots))
    seeds = f", seeds {', '.join(map(str, self.seeds))}" if self.seeds else ""
    return (
      f"trained on {', '.join(self.train_data)}; tested on "
      f"{', '.join(self.test_data)}; checkpoint {self.selection}; shots "
      f"{shots}{seeds}; metrics {self.variant}"
    )


def check_names(config) -> None:
  """Refuses, before anything is trained, to test on what is trained on.

  Raises:
    ValueError: a data set is named in both.
  """
  both = set(config.train_data) & set(config.test_data)
  if both and not config.allow_trained:
    raise ValueError(
      f"{', '.join(sorted(both))} is in config.train_data and in "
      "config.test_data: its results would mean nothing. "
      "--config.allow_trained=True evaluates it all the same."
    )


def _roots(names: Sequence[str], data_root: str | None) -> set[str]:
  """Folders of data sets; one that is not there is none that is tested."""
  roots = set()
  for name in names:
    with contextlib.suppress(FileNotFoundError):
      roots.add(registry.open_dataset(name, data_root=data_root).root)
  return roots
