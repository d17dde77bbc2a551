"""Choices of references of an evaluation."""

from collections.abc import Callable, Sequence

from zsad_jax.datasets import index, naming, references, registry
from zsad_jax.datasets.references import FromTest, References

Choose = Callable[[index.Dataset, naming.Place], Sequence[References]]


def chooser(
  shots: Sequence[int],
  seeds: Sequence[int],
  path: str | None,
  *,
  official: bool = False,
) -> Choose:
  """Return the function from a data set to choices of references.

  Zero-shot always comes first.

  Args:
    shots: numbers of references per class.
    seeds: seeds of their sampling.
    path: folder or JSON file of given references; not together with `shots`.
    official: where the published protocol draws references from the test
      images, draw anomalous ones, too, and score them, as AdaptCLIP's authors.

  Raises:
    ValueError: both are given.
  """
  if path and shots:
    raise ValueError("Give --shots or --references, not both.")

  def choose(dataset, place):
    chosen = [references.NONE]
    if path:
      chosen.append(references.read(path, dataset))
    entry = registry.ENTRIES.get(place.registered)
    from_test: FromTest = "never"
    if entry and entry.references_from_test:
      from_test = "all" if official else "normal"
    for number in sorted(set(shots) - {0}):
      chosen += [
        references.sample(dataset, shots=number, seed=seed, from_test=from_test)
        for seed in dict.fromkeys(seeds)
      ]
    return chosen

  return choose
