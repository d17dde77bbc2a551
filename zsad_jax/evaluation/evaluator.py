"""Evaluation of a method on a data set: one row of metrics per category."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zsad_jax import types
from zsad_jax.datasets import cache as cache_lib
from zsad_jax.datasets import (
  index,
  pipeline,
  preprocess,
  registry,
  verification,
)
from zsad_jax.datasets import references as references_lib
from zsad_jax.evaluation import compared, image_sets, tiled, transductive
from zsad_jax.evaluation import speed as speed_lib
from zsad_jax.evaluation.category import CategoryResult
from zsad_jax.inference import few_shot as few_shot_lib
from zsad_jax.inference import inputs, sets
from zsad_jax.inference import predictor as predictor_lib
from zsad_jax.inference.tiling import Tiling
from zsad_jax.layers import coreset as coreset_lib
from zsad_jax.layers import smoothing
from zsad_jax.metrics import accumulators
from zsad_jax.runs import categories as categories_lib
from zsad_jax.runtime import distributed, progress, stopping

PROMPT_NAMES = ("verbatim", "readable")

Row = Mapping[str, float | int]


def prompt_names(dataset: index.Dataset, style: str) -> tuple[str, ...]:
  """Return the class names as prompts use them.

  Args:
    dataset: data set with the classes.
    style: "verbatim", as the data set spells them (the authors' code), or
      "readable", such as "printed circuit board" for pcb1.

  Raises:
    ValueError: unknown style.
  """
  if style not in PROMPT_NAMES:
    raise ValueError(
      f"config.prompt_names is one of {', '.join(PROMPT_NAMES)}, got {style!r}."
    )
  if style == "verbatim":
    return dataset.class_names
  return registry.prompt_names(dataset)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Metrics of a data set.

  Attributes:
    rows: for each choice of references, a row of metrics by category.
    images_per_second: predictions, one of each image for each choice of
      references, in the time of reading, predicting and counting them; figures
      and batches with a compilation are left out. nan if nothing remains.
    skipped: messages about images that could not be read.
    mask_notes: messages about suspicious masks.
  """

  rows: list[dict[str, dict[str, float | int]]]
  images_per_second: float
  skipped: list[str]
  mask_notes: list[str]


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Predicts the test images of data sets and computes their metrics.

  Attributes:
    method: detection method.
    backbone: frozen backbone.
    mesh: devices.
    image_size: side of images and maps in pixels.
    batch_size: images per call.
    smooth_sigma: of the Gaussian that smooths maps, in pixels; 0: none.
    prompt_names: see `prompt_names`.
    skip_corrupt: count images that cannot be read instead of stopping.
    variant: definition of the metrics, a key of `accumulators.VARIANTS`.
    num_examples: qualitative examples of each kind per category.
    thresholds: thresholds of image scores for borderline examples, without
      and with references; None: no such examples.
    cache: cache of decoded images, or None.
    trained: see `categories.select`.
    tiling: score overlapping tiles; None for whole images. Maps and masks have
      the size of the merged maps, and the score of an image is the largest one
      of its tiles.
    coreset: share of memory banks that is kept; None for all.
  """

  method: types.DetectionModel
  backbone: types.ImageBackbone
  mesh: jax.sharding.Mesh
  image_size: int
  batch_size: int
  smooth_sigma: float
  prompt_names: str
  skip_corrupt: bool
  variant: str = "streamed"
  num_examples: int = 0
  thresholds: tuple[float | None, float | None] = (None, None)
  cache: cache_lib.DecodedCache | None = None
  tiling: Tiling | None = None
  coreset: coreset_lib.Coreset | None = None
  trained: categories_lib.Categories | None = None

  @classmethod
  def from_config(
    cls,
    config: Any,
    method: types.Method,
    backbone: types.ImageBackbone,
    mesh: jax.sharding.Mesh,
    *,
    skip_corrupt: bool | None = None,
    few_shot: bool = False,
    **settings: Any,
  ) -> "Evaluator":
    """Return the evaluator of a configuration.

    Args:
      config: configuration of a run; see configs/common.py.
      method: see the attributes, as the other arguments.
      backbone: frozen backbone.
      mesh: devices.
      skip_corrupt: None: as configured.
      few_shot: give methods without reference images a memory bank.
      **settings: further attributes.
    """
    model: types.DetectionModel = method
    if few_shot:
      model = few_shot_lib.with_memory_bank(method, **config.memory)
    return cls(
      method=model,
      backbone=backbone,
      mesh=mesh,
      image_size=config.image_size,
      batch_size=config.eval_batch_size,
      smooth_sigma=config.smooth_sigma,
      prompt_names=config.prompt_names,
      skip_corrupt=config.skip_corrupt
      if skip_corrupt is None
      else skip_corrupt,
      # Runs of older versions have no such field.
      cache=cache_lib.open_cache(config.get("decoded_cache", "")),
      coreset=coreset_lib.from_settings(**config.memory),
      **settings,
    )

  @property
  def image_only(self) -> bool:
    """Whether scores are the only result."""
    return getattr(self.method, "image_only", False)

  @property
  def tiles(self) -> tiled.TiledImages | None:
    """Images by tiles; None for whole images."""
    if self.tiling is None:
      return None
    return tiled.TiledImages(
      self.tiling,
      side=self.image_size,
      batch_size=self.batch_size,
      smooth_sigma=self.smooth_sigma,
      skip_corrupt=self.skip_corrupt,
    )

  def evaluate(
    self,
    params: types.Params,
    stats: types.Params,
    dataset: index.Dataset,
    references: Sequence[references_lib.References] = (references_lib.NONE,),
    *,
    on_category: Callable[[CategoryResult], None] = lambda category: None,
  ) -> Evaluation:
    """Compute the metrics of every category for each choice of references.

    Args:
      params: trained parameters.
      stats: running statistics.
      dataset: data set, of which the test images are predicted.
      references: choices of reference images.
      on_category: called with each category.
    """
    rows = {choice.label: {} for choice in references}
    skipped, speed, findings = {}, speed_lib.Speed(), []
    for category in self.categories(params, stats, dataset, references, speed):
      rows[category.references.label][category.name] = category.compute()
      skipped |= dict.fromkeys(category.skipped)
      if category.references.label == references[0].label:
        findings += category.findings
      on_category(category)
    notes = verification.mask_notes(
      findings, registry.ENTRIES.get(dataset.name), size=self.image_size
    )
    notes = [*verification.missing_masks(dataset), *notes]
    return Evaluation([*rows.values()], speed.compute(), [*skipped], notes)

  def categories(
    self,
    params: types.Params,
    stats: types.Params,
    dataset: index.Dataset,
    references: Sequence[references_lib.References] = (references_lib.NONE,),
    speed: speed_lib.Speed | None = None,
  ) -> Iterator[CategoryResult]:
    """Yield each category, once for each choice of references.

    Memory holds only one. Arguments are those of `evaluate`.
    """
    if self.trained:  # Before anything is predicted.
      self.trained.check({sample.class_name for sample in dataset.test})
    predictor = self.predictor(dataset)
    variant = accumulators.variant(self.variant)
    reported = progress.Progress(
      f"Predictions on {dataset.name}", len(dataset.test)
    )
    for class_name in dataset.class_names:
      samples = [s for s in dataset.test if s.class_name == class_name]
      if not samples:
        continue
      results = [
        CategoryResult(
          class_name,
          choice,
          samples,
          variant=variant,
          num_examples=0 if self.image_only else self.num_examples,
          threshold=self.thresholds[bool(choice.images)],
          category_scores=transductive.category_scores(self.method, choice),
        )
        for choice in references
      ]
      self._predict(
        predictor,
        *categories_lib.select(self.trained, class_name, params, stats),
        dataset,
        results,
        reported,
        speed or speed_lib.Speed(),
      )
      for result in results:
        result.merge(distributed.all_gather_object)
        yield result

  def predictor(self, dataset: index.Dataset) -> Any:
    """Return the compiled functions for the classes of a data set."""
    return predictor_lib.Predictor(
      self.method,
      self.backbone,
      prompt_names(dataset, self.prompt_names),
      self.mesh,
      # Maps of tiles are smoothed after they are merged.
      smooth_sigma=0.0 if self.tiling else self.smooth_sigma,
      coreset=self.coreset,
    )

  def predict_batches(
    self,
    predictor: Any,
    params: Any,
    stats: Any,
    dataset: index.Dataset,
    samples: Sequence[index.Sample],
    references: Sequence[Sequence[str]],
  ) -> tuple[Any, Iterator[tuple[Any, list[Any]]]]:
    """Predict images of one category that have the same references.

    Args:
      predictor: returned by `predictor`.
      params: trained parameters.
      stats: running statistics.
      dataset: data set of the images.
      samples: the images; all of them if they are scored together.
      references: paths of the references of each prediction; () for none.

    Returns:
      The batches, which collect messages, and an iterator over each batch and
      its predictions by references: this process's rows, maps smoothed.
    """
    class_id = dataset.class_names.index(samples[0].class_name)
    if sets.scores_sets(self.method):
      read, model = lambda: self._batches(samples, dataset), (params, stats)
      return image_sets.predict(self, predictor, model, read)
    banks = [self._memory_bank(predictor, x, class_id) for x in references]

    def of_batch(batch, collect):
      stopping.sync_point()
      features = predictor.encode(batch)
      return collect(predictor.predict(params, stats, features, banks))

    if self.tiles is not None:
      return self.tiles.predict(samples, class_id, of_batch)
    batches = self._batches(samples, dataset)

    def predict():
      for batch in batches:
        found = of_batch(batch, distributed.local_rows)
        keep = batch["weight"] > 0
        for each in found:
          each["anomaly_map"] = smoothing.on_host(
            each["anomaly_map"], keep, self.smooth_sigma
          )
        yield batch, found

    return batches, predict()

  def _predict(
    self, predictor, params, stats, dataset, results, reported, speed
  ):
    """Predict the images of a category and update its results."""
    name, samples = results[0].name, results[0].listed
    choices = [result.references for result in results]
    scored = [compared.scored(samples, choice) for choice in choices]
    for key, numbers in compared.by_references(samples, choices).items():
      batches, predicted = self.predict_batches(
        predictor,
        params,
        stats,
        dataset,
        [samples[i] for i in numbers],
        [choice.of(key, name) for choice in choices],
      )
      left = len(numbers)
      given = self._given(choices, key, name)
      speed.start()
      for batch, predictions in predicted:
        keep = batch["weight"] > 0  # Not the padding of the last batch.
        for i in np.flatnonzero(keep) if given else ():
          digest = batch.get("digest") or inputs.digest(batch["image"][i])
          compared.check_not_given(
            digest, samples[numbers[batch["index"][i]]], given
          )
        for result, prediction, may in zip(results, predictions, scored):
          kept = keep.copy()
          kept[keep] = may[numbers[batch["index"][keep]]]
          result.update(
            numbers[batch["index"][kept]],
            batch["mask"][kept],
            batch["has_mask"][kept] & (not self.image_only),
            prediction["anomaly_map"][kept],
            prediction["pred_score"][kept],
            prediction["score_terms"][kept] if result.needs_terms else None,
          )
        step = 1 if self.tiles else predictor_lib.round_up(self.batch_size)
        done = min(left, step)
        left -= done
        reported.add(done)
        speed.add(int(keep.sum()) * len(results))
      for result in results:
        result.skipped += batches.skipped
        result.findings += [
          (samples[numbers[i]], found) for i, found in batches.findings.items()
        ]

  def _given(self, choices, key, name):
    """Return the path of each given reference by the digest of its pixels."""
    paths = [p for c in choices if c.seed is None for p in c.of(key, name)]
    if self.tiles is not None:
      return {self.tiles.digest(path): path for path in paths}
    load = lambda path: preprocess.load_image(path, self.image_size)
    return {inputs.digest(load(path)): path for path in paths}

  def _memory_bank(self, predictor, paths, class_id):
    """Return the memory bank of reference images; None without any."""
    if not paths:
      return None
    if self.tiles is not None:
      return self.tiles.build_memory_bank(predictor, paths, class_id)
    images = [preprocess.load_image(p, self.image_size) for p in paths]
    return predictor.build_memory_bank(
      np.stack(images), class_id, batch_size=self.batch_size
    )

  def _batches(self, samples, dataset):
    """Return the batches of this process."""
    return pipeline.eval_batches(
      samples,
      class_names=dataset.class_names,
      image_size=self.image_size,
      batch_size=predictor_lib.round_up(self.batch_size),
      skip_corrupt=self.skip_corrupt,
      **distributed.shard(),
      cache=self.cache,
    )
