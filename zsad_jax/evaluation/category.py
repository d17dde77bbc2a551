"""Predictions of one category, accumulated batch by batch into metrics."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from zsad_jax.datasets import index, verification
from zsad_jax.datasets.references import References
from zsad_jax.evaluation.examples import Example, ExampleSelector
from zsad_jax.metrics import accumulators, variants
from zsad_jax.types import ANOMALOUS, NORMAL

GRID_ROWS = 6  # Images in the figure of a category; a third of them normal.


class CategoryResult:
  """Metrics and examples of one category with one choice of references.

  `update` adds this process's images of a batch, `merge` combines all
  processes, `compute` returns the row of metrics.

  Args:
    name: category.
    references: reference images of the predictions.
    samples: all images of the category, `listed`.
    variant: definition of the metrics.
    num_examples: examples of each kind; 0: none, and no images for a figure.
    threshold: threshold of image scores for borderline examples, or None.
    category_scores: of a `types.Transductive` method, if the scores of all
      images are computed together from their terms; examples have the scores
      of single images. None otherwise.

  Attributes:
    pixel_metrics: accumulator of all maps with known masks.
    examples: selected maps.
    skipped: messages about images that could not be read.
    findings: samples, and what is suspicious about their masks.
  """

  def __init__(
    self,
    name: str,
    references: References,
    samples: Sequence[index.Sample],
    *,
    variant: accumulators.Variant,
    num_examples: int = 0,
    threshold: float | None = None,
    category_scores: Callable[[np.ndarray], np.ndarray] | None = None,
  ):
    self.name, self.references = name, references
    self.listed, self._variant = list(samples), variant
    self._row: dict[str, float | int] | None = None
    self._numbers: list[np.ndarray] = []  # By batch, as the scores.
    self._scores: list[np.ndarray] = []  # Or their terms.
    self._category_scores = category_scores
    self.pixel_metrics = variant.pixel_metrics()
    self._empty_examples = functools.partial(
      ExampleSelector,
      num_per_kind=num_examples,
      threshold=threshold,
      always=_spread([s.label for s in samples]) if num_examples else (),
    )
    self.examples = self._empty_examples()
    self.skipped: list[str] = []
    self.findings: list[verification.Found] = []

  def update(
    self,
    numbers: np.ndarray,
    gt_mask: np.ndarray,
    has_mask: np.ndarray,
    anomaly_map: np.ndarray,
    pred_score: np.ndarray,
    score_terms: np.ndarray | None = None,
  ) -> None:
    """Add this process's images of a batch.

    All processes must call it equally often, be it with no image.

    Args:
      numbers: int (n,), indices into the samples of the category.
      gt_mask: (n, h, w), nonzero = anomalous; the size of maps may differ
        between batches where the accumulator allows it.
      has_mask: bool (n,), whether `gt_mask` is known.
      anomaly_map: float32 (n, h, w).
      pred_score: float32 (n,).
      score_terms: float32 (n, k), needed for `category_scores`.

    Raises:
      ValueError: a prediction contains NaN or infinity.
    """
    self._row = None
    masks = gt_mask.astype(bool)
    for i, number in enumerate(numbers):
      sample = self.listed[number]
      finite = np.isfinite(pred_score[i]) and np.isfinite(anomaly_map[i]).all()
      if not finite:
        raise ValueError(
          f"{sample.image_path}: the prediction contains NaN or infinity. "
          "Parameters or weights that are not finite are the usual reason."
        )
      mask = masks[i] if has_mask[i] else None
      # A copy: a view would keep the whole batch in memory.
      example = Example(
        int(number), float(pred_score[i]), anomaly_map[i].copy(), mask
      )
      self.examples.update(sample.label, example)
    self.pixel_metrics.update(masks[has_mask], anomaly_map[has_mask])
    self._numbers.append(numbers)
    self._scores.append(pred_score if score_terms is None else score_terms)

  def merge(self, gather: accumulators.Gather) -> None:
    """Merge the results of all processes; each holds the result.

    Args:
      gather: returns the values of all processes, in their order, such as
        `distributed.all_gather_object`.

    Raises:
      ValueError: no process has read an image.
    """
    self._row = None
    self.pixel_metrics.merge(gather)
    examples = self.examples.to_dict()
    parts = gather((self._numbers, self._scores, examples, self.skipped))
    numbers, scores, selectors, skipped = zip(*parts)
    self.findings = sum(gather(self.findings), [])
    # Batch by batch, in the order in which a single process sees the images.
    self._numbers, self._scores = _interleave(numbers), _interleave(scores)
    self.examples = self._empty_examples()
    for selector in selectors:
      self.examples.merge_dict(selector)
    self.skipped = list(dict.fromkeys(sum(skipped, [])))
    if not self._numbers or not sum(map(len, self._numbers)):
      reason = "can be read" if self.skipped else "is scored"
      raise ValueError(
        f"None of the {len(self.listed)} test images of {self.name} {reason}, "
        f"first {self.listed[0].image_path}: replace them, or remove the "
        "category."
      )

  def compute(self) -> dict[str, float | int]:
    """Return image and pixel metrics; nan where undefined."""
    if self._row is None:
      label, score = self.label, self.pred_score
      anomalous = int((label == ANOMALOUS).sum())
      self._row = {
        "num_normal": len(label) - anomalous,
        "num_anomalous": anomalous,
        **self._variant.image_metrics(label, score),
        **self.pixel_metrics.compute(),
        **self._sample_metrics(),
      }
    return self._row

  @property
  def needs_terms(self) -> bool:
    """Whether `update` needs the terms of the scores."""
    return self._category_scores is not None

  @property
  def samples(self) -> list[index.Sample]:
    """The n images that could be read, in the order of `pred_score`."""
    numbers: list[Any] = [number for part in self._numbers for number in part]
    return [self.listed[number] for number in numbers]

  @property
  def label(self) -> np.ndarray:
    """Labels, int32 (n,)."""
    return np.array([s.label for s in self.samples], np.int32)

  @property
  def pred_score(self) -> np.ndarray:
    """Image scores, float32 (n,)."""
    if self._category_scores is not None and self._scores:
      return self._category_scores(np.concatenate(self._scores))
    return np.concatenate([*self._scores, np.zeros(0, np.float32)])

  def sample(self, number: int) -> index.Sample:
    """Return the image with the number of an example."""
    return self.listed[number]

  def _sample_metrics(self):
    """Return the image metrics of samples shown by several images."""
    groups = np.array([s.group for s in self.samples], str)
    if not groups.size or "" in groups:
      return {}
    found = self._variant.image_metrics(
      *variants.by_sample(groups, self.label, self.pred_score)
    )
    return {k.replace("image_", "sample_"): v for k, v in found.items()}


def _interleave(parts):
  """Return batches of all processes: all parts of the first, then the next."""
  return [part for batch in zip(*parts) for part in batch]


def _spread(labels):
  """Return indices of a few normal and anomalous images over the list."""
  chosen = []
  for state, count in ((NORMAL, GRID_ROWS // 3), (ANOMALOUS, GRID_ROWS)):
    where = np.flatnonzero(np.array(labels) == state)
    count = min(count, len(where), GRID_ROWS - len(chosen))
    if count:
      at = np.linspace(0, len(where) - 1, count).astype(int)
      chosen += where[np.unique(at)].tolist()
  return chosen
