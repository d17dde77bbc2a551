"""Runs a method over a data set: a row of metrics per category."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import ndimage

from zsad_jax import fewshot
from zsad_jax import predictor as predictor_lib
from zsad_jax.api import ANOMALOUS
from zsad_jax.datasets import index, pipeline, preprocess, registry
from zsad_jax.datasets import references as references_lib
from zsad_jax.evaluation import metrics

PROMPT_NAMES = ("verbatim", "readable")


def prompt_names(dataset: index.Dataset, style: str) -> tuple[str, ...]:
  """Class names as sentences use them.

  Args:
    dataset: whose classes.
    style: "verbatim", as the data set spells them (the authors' code), or
      "readable", such as "printed circuit board" for pcb1.

  Raises:
    ValueError: unknown style.
  """
  if style not in PROMPT_NAMES:
    raise ValueError(
        f"config.prompt_names is one of {', '.join(PROMPT_NAMES)}, got "
        f"{style!r}."
    )
  if style == "verbatim":
    return dataset.class_names
  return registry.prompt_names(dataset)


@dataclasses.dataclass
class Category:
  """All that was predicted for the test images of one category.

  Attributes:
    name: of the category.
    references: what they were compared with.
    samples: the n images that could be read.
    anomaly_map: float32 (n, s, s), smoothed.
    pred_score: float32 (n,).
    gt_mask: bool (n, s, s); meaningless where `has_mask` is False.
    has_mask: bool (n,).
    skipped: messages about images that could not be read.
  """

  name: str
  references: references_lib.References
  samples: list[index.Sample]
  anomaly_map: np.ndarray
  pred_score: np.ndarray
  gt_mask: np.ndarray
  has_mask: np.ndarray
  skipped: list[str]

  @property
  def label(self) -> np.ndarray:
    return np.array([s.label for s in self.samples], np.int32)

  def metrics(self) -> dict[str, float | int]:
    """Image and pixel metrics; nan where undefined, see `metrics`."""
    anomalous = int((self.label == ANOMALOUS).sum())
    row = {
        "num_normal": len(self.samples) - anomalous,
        "num_anomalous": anomalous,
        **metrics.image_metrics(self.label, self.pred_score),
    }
    known = self.has_mask
    if not (known & (self.label == ANOMALOUS)).any():
      known = np.zeros_like(known)  # No masks: nothing to compare pixels with.
    return row | metrics.pixel_metrics(
        self.gt_mask[known], self.anomaly_map[known]
    )


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Predicts the test images of data sets, category by category.

  Attributes:
    method: the method.
    backbone: frozen CLIP.
    mesh: devices.
    image_size: side of images and maps in pixels.
    batch_size: images per call.
    smooth_sigma: of the Gaussian that smooths maps, in pixels; 0 for none.
    prompt_names: see `prompt_names`.
    skip_corrupt: count images that cannot be read instead of stopping.
  """

  method: object
  backbone: object
  mesh: object
  image_size: int
  batch_size: int
  smooth_sigma: float
  prompt_names: str
  skip_corrupt: bool

  def categories(
      self,
      params,
      stats,
      dataset,
      references: Sequence[references_lib.References] = (references_lib.NONE,),
  ) -> Iterator[Category]:
    """Yields each category once for each choice of references.

    One category after the other, so that memory holds only one. An image is
    encoded once for all choices.
    """
    predictor = predictor_lib.Predictor(
        self.method,
        self.backbone,
        prompt_names(dataset, self.prompt_names),
        self.mesh,
    )
    for class_id, class_name in enumerate(dataset.class_names):
      samples = [s for s in dataset.test if s.class_name == class_name]
      if not samples:
        continue
      memories = [
          self._memory(predictor, r.images.get(class_name, ()), class_id)
          for r in references
      ]

      def predict(batch, memories=memories):
        features = predictor.encode(batch)
        return [
            predictor.predict(params, stats, features, memory)
            for memory in memories
        ]

      yield from self._category(
          predict, class_name, samples, dataset.class_names, references
      )

  def _memory(self, predictor, paths, class_id):
    if not paths:
      return None
    images = [preprocess.load_image(p, self.image_size) for p in paths]
    return predictor.remember(
        np.stack(images), class_id, batch_size=self.batch_size
    )

  def _category(self, predict, name, samples, class_names, references):
    predictions, truth, kept = [[] for _ in references], [], []
    batches = pipeline.eval_batches(
        samples,
        class_names=class_names,
        image_size=self.image_size,
        batch_size=predictor_lib.round_up(self.batch_size),
        skip_corrupt=self.skip_corrupt,
    )
    for batch in batches:
      keep = batch["weight"] > 0
      kept += [samples[i] for i in batch["index"][keep]]
      truth.append({
          "gt_mask": batch["mask"][keep].astype(bool),
          "has_mask": batch["has_mask"][keep],
      })
      for parts, prediction in zip(predictions, predict(batch)):
        parts.append({
            "anomaly_map": self._smooth(prediction["anomaly_map"][keep]),
            "pred_score": prediction["pred_score"][keep],
        })
    truth = _joined(truth)
    for choice, parts in zip(references, predictions):
      yield Category(
          name, choice, kept, **_joined(parts), **truth, skipped=batches.skipped
      )

  def _smooth(self, maps):
    """scipy's Gaussian over height and width, never over the batch."""
    sigmas = (0, self.smooth_sigma, self.smooth_sigma)
    return ndimage.gaussian_filter(maps, sigmas) if self.smooth_sigma else maps


def make(
    config, method, backbone, mesh, *, skip_corrupt=None, few_shot=False
) -> Evaluator:
  """The evaluator that a configuration describes.

  With `few_shot`, a method that knows no references gets a memory of them.
  """
  if skip_corrupt is None:
    skip_corrupt = config.skip_corrupt
  if few_shot:
    method = fewshot.with_memory(method, **config.memory)
  return Evaluator(
      method=method,
      backbone=backbone,
      mesh=mesh,
      image_size=config.image_size,
      batch_size=config.eval_batch_size,
      smooth_sigma=config.smooth_sigma,
      prompt_names=config.prompt_names,
      skip_corrupt=skip_corrupt,
  )


def evaluate(
    evaluator: Evaluator,
    params,
    stats,
    dataset: index.Dataset,
    references: Sequence[references_lib.References] = (references_lib.NONE,),
    on_category: Callable[[Category], None] = lambda category: None,
) -> tuple[list[dict[str, dict[str, float | int]]], dict]:
  """Metrics of every category of a data set, for each choice of references.

  Args:
    evaluator: how.
    params: trained parameters.
    stats: running statistics.
    dataset: what.
    references: what images are compared with.
    on_category: called with each category, such as to draw figures.

  Returns:
    For each choice a row of metrics per category, and what should be reported
    beside them: images per second, and the images that were skipped.
  """
  tables = {choice.label: {} for choice in references}
  skipped, start, images = {}, time.perf_counter(), 0
  for category in evaluator.categories(params, stats, dataset, references):
    table = tables[category.references.label]
    table[category.name] = category.metrics()
    skipped |= dict.fromkeys(category.skipped)
    if category.references.label == references[0].label:
      images += len(category.samples)
    on_category(category)
  seconds = time.perf_counter() - start
  extra = {"images_per_second": images / seconds, "skipped": list(skipped)}
  return list(tables.values()), extra


def _joined(parts):
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
