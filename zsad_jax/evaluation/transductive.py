"""Image scores that depend on all test images of a category."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

from zsad_jax import types
from zsad_jax.datasets.references import References
from zsad_jax.inference import sets
from zsad_jax.inference.tiling import Tiling


def category_scores(
  method: Any, choice: References
) -> Callable[[np.ndarray], np.ndarray] | None:
  """Return the function of the score terms of a category's images.

  Args:
    method: detection method.
    choice: choice of references.

  Returns:
    `types.Transductive.category_scores`; None where the score of an image
    depends on it alone: without references, except for methods that score
    images together; for other methods; and unless
    `config.method.transductive_score` is set.
  """
  together = bool(choice.images) or sets.scores_sets(method)
  if not together or not isinstance(method, types.Transductive):
    return None
  return method.category_scores if method.transductive_score else None


def notes(method: Any, choice: References) -> tuple[str, ...]:
  """Return the note that belongs to results with such scores."""
  if sets.scores_sets(method):
    return (
      "transductive: the method scores all test images of a category together, "
      "so that each result depends on the others. Compare it with such methods "
      "only.",
    )
  if category_scores(method, choice) is None:
    return ()
  return (
    "transductive: with references, config.method.transductive_score scales "
    "image scores over all test images of a category, so that each depends on "
    "the others.",
  )


def check(
  method: Any,
  name: str,
  choices: Sequence[References],
  tiling: Tiling | None,
) -> None:
  """Check that an evaluation is defined for a method.

  Args:
    method: detection method.
    name: of its configuration.
    choices: choices of references.
    tiling: None for whole images.

  Raises:
    ValueError: images are scored together, by tiles or with references.
  """
  if sets.scores_sets(method):
    if tiling:
      raise ValueError(
        f"--tile: {name} scores whole images of a category together: leave out "
        "--tile."
      )
    if any(choice.images for choice in choices):
      raise ValueError(
        f"{name} compares the test images of a category with one another, not "
        "with references: leave out --shots and --references."
      )
  elif tiling and any(category_scores(method, choice) for choice in choices):
    raise ValueError(
      "--tile: config.method.transductive_score scales the scores of whole "
      "images over a category, which is not defined for tiles. Leave out "
      "--tile, or use a run without it."
    )


def without(method: types.Method) -> types.Method:
  """Return the method with scores that depend on single images alone.

  A method that scores images together has none, and is returned unchanged.
  """
  if sets.scores_sets(method):
    return method
  if isinstance(method, types.Transductive) and method.transductive_score:
    return dataclasses.replace(cast(Any, method), transductive_score=False)
  return method
