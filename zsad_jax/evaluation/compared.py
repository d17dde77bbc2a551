"""Images that are compared with the same references, and scored with them."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from zsad_jax.datasets import index
from zsad_jax.datasets.references import References


def check_not_given(
  digest: bytes, sample: index.Sample, given: Mapping[bytes, str]
) -> None:
  """Refuse a test image that has the pixels of a given reference.

  Copies of files are found before; these are copies in other formats.

  Args:
    digest: of the pixels of the image.
    sample: the image.
    given: paths of references by the digest of their pixels.

  Raises:
    ValueError: the image has the pixels of a reference.
  """
  if path := given.get(digest):
    raise ValueError(
      f"{sample.image_path} has the pixels of {path}, one of the references: "
      "it would be compared with itself. Choose references that are not scored."
    )


def scored(
  samples: Sequence[index.Sample], choice: References
) -> Bool[np.ndarray, " n"]:
  """Return whether each image is scored with a choice of references."""
  left_out = frozenset(choice.left_out)
  return np.array([s.image_path not in left_out for s in samples], bool)


def by_references(
  samples: Sequence[index.Sample], references: Sequence[References]
) -> dict[str, np.ndarray]:
  """Return indices of the samples by `compared_with`, the key of references.

  All together where there are no references.
  """
  if not any(choice.images for choice in references):
    return {"": np.arange(len(samples))}
  names = np.array([sample.compared_with for sample in samples])
  return {name: np.flatnonzero(names == name) for name in dict.fromkeys(names)}
