"""Image scores that depend on all test images of a category."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from zsad_jax import types
from zsad_jax.datasets.references import References


def category_scores(
  method: Any, choice: References
) -> Callable[[np.ndarray], np.ndarray] | None:
  """Return the function of the score terms of a category's images.

  Args:
    method: detection method.
    choice: choice of references.

  Returns:
    `types.Transductive.category_scores`; None where the score of an image
    depends on it alone: without references, for other methods, and unless
    `config.method.transductive_score` is set.
  """
  if not choice.images or not isinstance(method, types.Transductive):
    return None
  return method.category_scores if method.transductive_score else None


def notes(method: Any, choice: References) -> tuple[str, ...]:
  """Return the note that belongs to results with such scores."""
  if category_scores(method, choice) is None:
    return ()
  return (
    "transductive: with references, config.method.transductive_score scales "
    "image scores over all test images of a category, so that each depends on "
    "the others.",
  )


def without(method: types.Method) -> types.Method:
  """Return the method with scores that depend on single images alone."""
  if isinstance(method, types.Transductive) and method.transductive_score:
    return dataclasses.replace(cast(Any, method), transductive_score=False)
  return method
