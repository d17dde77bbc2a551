"""Runs a method over a data set: a row of metrics per category."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from scipy import ndimage

from zsad_jax.datasets import cache as cache_lib
from zsad_jax.datasets import index, pipeline, preprocess, registry
from zsad_jax.datasets import references as references_lib
from zsad_jax.evaluation import examples as gallery_lib
from zsad_jax.inference import few_shot as few_shot_lib
from zsad_jax.inference import predictor as predictor_lib
from zsad_jax.layers import kernels
from zsad_jax.metrics import accumulators, variants
from zsad_jax.runtime import distributed
from zsad_jax.types import ANOMALOUS, NORMAL

PROMPT_NAMES = ("verbatim", "readable")
GRID_ROWS = 6  # Images of a category in its figure; a third of them normal.


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
      f"config.prompt_names is one of {', '.join(PROMPT_NAMES)}, got {style!r}."
    )
  if style == "verbatim":
    return dataset.class_names
  return registry.prompt_names(dataset)


@dataclasses.dataclass
class Category:
  """What was predicted for the test images of one category.

  Attributes:
    name: of the category.
    references: what they were compared with.
    listed: all images of the category, by their numbers.
    samples: the n of them that could be read.
    pred_score: float32 (n,).
    measure: has seen all maps whose masks are known.
    gallery: some of the maps.
    skipped: messages about images that could not be read.
  """

  name: str
  references: references_lib.References
  listed: list[index.Sample]
  samples: list[index.Sample]
  pred_score: np.ndarray
  measure: accumulators.StreamingPixelMetrics | accumulators.ExactPixelMetrics
  gallery: gallery_lib.Gallery
  skipped: list[str]

  @property
  def label(self) -> np.ndarray:
    return np.array([s.label for s in self.samples], np.int32)

  def sample(self, number: int) -> index.Sample:
    """The image of that number in a gallery."""
    return self.listed[number]

  def metrics(self) -> dict[str, float | int]:
    """Image and pixel metrics; nan where undefined."""
    anomalous = int((self.label == ANOMALOUS).sum())
    return {
      "num_normal": len(self.samples) - anomalous,
      "num_anomalous": anomalous,
      **self.measure.image(self.label, self.pred_score),
      **self.measure.pixel(),
      **self._of_samples(),
    }

  def _of_samples(self):
    """The image metrics of samples that several images show (Real-IAD)."""
    groups = np.array([s.group for s in self.samples], str)
    if not groups.size or "" in groups:
      return {}
    found = self.measure.image(
      *variants.by_sample(groups, self.label, self.pred_score)
    )
    return {k.replace("image_", "sample_"): v for k, v in found.items()}


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
    variant: of the metrics, see `measures.MEASURES`.
    examples: images of each kind in a gallery.
    threshold: on image scores, for borderline examples; None: there are none.
    cache: of decoded images; None for none.
  """

  method: object
  backbone: object
  mesh: object
  image_size: int
  batch_size: int
  smooth_sigma: float
  prompt_names: str
  skip_corrupt: bool
  variant: str = "streamed"
  examples: int = 0
  threshold: float | None = None
  cache: cache_lib.DecodedCache | None = None

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
      smooth_sigma=self.smooth_sigma,
    )
    for class_id, class_name in enumerate(dataset.class_names):
      samples = [s for s in dataset.test if s.class_name == class_name]
      if not samples:
        continue

      def predict(name, class_id=class_id, class_name=class_name):
        memories = [
          self._memory(predictor, r.of(name, class_name), class_id)
          for r in references
        ]
        return lambda batch: predictor.predict(
          params, stats, predictor.encode(batch), memories
        )

      yield from self._category(
        predict, class_name, samples, dataset.class_names, references
      )

  def _memory(self, predictor, paths, class_id):
    if not paths:
      return None
    images = [preprocess.load_image(p, self.image_size) for p in paths]
    return predictor.build_memory_bank(
      np.stack(images), class_id, batch_size=self.batch_size
    )

  def _category(self, predict, name, samples, class_names, references):
    found = [self._start(name, choice, samples) for choice in references]
    # Of each batch, of this process's part of it.
    scores, seen, skipped = [[] for _ in references], [], []
    for seen_alike, numbers in _by_references(samples, references).items():
      predict_these = predict(seen_alike)
      batches = self._batches([samples[i] for i in numbers], class_names)
      for batch in batches:
        keep = batch["weight"] > 0
        truth = {k: batch[k][keep] for k in ("index", "mask", "has_mask")}
        truth["index"] = numbers[truth["index"]]
        seen.append(truth["index"])
        predictions = distributed.local_rows(predict_these(batch))
        for category, parts, prediction in zip(found, scores, predictions):
          maps = self._smooth(prediction["anomaly_map"][keep])
          parts.append(prediction["pred_score"][keep])
          _look(category, samples, truth, maps, parts[-1])
      skipped += batches.skipped
    for category, parts in zip(found, scores):
      yield _joined(category, seen, parts, skipped)

  def _batches(self, samples, class_names):
    return pipeline.eval_batches(
      samples,
      class_names=class_names,
      image_size=self.image_size,
      batch_size=predictor_lib.round_up(self.batch_size),
      skip_corrupt=self.skip_corrupt,
      **distributed.shard(),
      cache=self.cache,
    )

  def _start(self, name, choice, samples):
    """A category of which nothing was seen yet."""
    always = _spread([s.label for s in samples]) if self.examples else ()
    gallery = gallery_lib.Gallery(
      each=self.examples, threshold=self.threshold, always=always
    )
    empty = np.zeros(0, np.float32)
    measure = accumulators.make(self.variant)
    return Category(name, choice, samples, [], empty, measure, gallery, [])

  def _smooth(self, maps):
    """scipy's Gaussian over height and width, never over the batch.

    Where it is faster the predictor has smoothed them already.
    """
    if not self.smooth_sigma or kernels.smooths_maps():
      return maps
    sigmas = (0, self.smooth_sigma, self.smooth_sigma)
    return ndimage.gaussian_filter(maps, sigmas)


def _joined(category, seen, scores, skipped):
  """The category with what all processes have seen of it.

  Args:
    category: of which the measure and the gallery are filled.
    seen: of each batch, the numbers of the images.
    scores: of each batch, their scores.
    skipped: messages.
  """
  parts = [
    distributed.all_gather_object(part) for part in category.measure.parts()
  ]
  category.measure.join(parts)
  given = distributed.all_gather_object(
    (seen, scores, category.gallery, skipped)
  )
  all_seen, all_scores, galleries, messages = zip(*given)
  gallery = category.gallery
  for number, other in enumerate(galleries):
    if number != jax.process_index():
      gallery.merge(other)
  # Batch by batch, as one process would have seen them.
  in_turn = lambda parts: np.concatenate([x for y in zip(*parts) for x in y])
  return dataclasses.replace(
    category,
    samples=[category.listed[i] for i in in_turn(all_seen)],
    pred_score=in_turn(all_scores),
    skipped=list(dict.fromkeys(sum(messages, []))),
  )


def _by_references(samples, references):
  """Numbers of the samples by what they are compared with, see `compared_with`.

  All together where nothing is compared.
  """
  if not any(choice.images for choice in references):
    return {"": np.arange(len(samples))}
  names = np.array([sample.compared_with for sample in samples])
  return {name: np.flatnonzero(names == name) for name in dict.fromkeys(names)}


def _look(category, samples, truth, maps, scores):
  """Shows some images to the measure and to the gallery of a category.

  Raises:
    ValueError: a prediction contains NaN.
  """
  known, masks = truth["has_mask"], truth["mask"].astype(bool)
  for i, number in enumerate(truth["index"]):
    sample = samples[number]
    if np.isnan(scores[i]) or np.isnan(maps[i]).any():
      raise ValueError(
        f"{sample.image_path}: the prediction contains NaN. Parameters or "
        "weights that are not finite are the usual reason."
      )
    mask = masks[i] if known[i] else None
    # A copy: a view would keep the whole batch in memory.
    example = gallery_lib.Example(
      int(number), float(scores[i]), maps[i].copy(), mask
    )
    category.gallery.add(sample.label, example)
  category.measure.update(masks[known], maps[known])


def _spread(labels):
  """Numbers of a few normal and anomalous images, spread over the list."""
  chosen = []
  for state, count in ((NORMAL, GRID_ROWS // 3), (ANOMALOUS, GRID_ROWS)):
    where = np.flatnonzero(np.array(labels) == state)
    count = min(count, len(where), GRID_ROWS - len(chosen))
    if count:
      places = np.linspace(0, len(where) - 1, count).astype(int)
      chosen += where[np.unique(places)].tolist()
  return chosen


def make(
  config,
  method,
  backbone,
  mesh,
  *,
  skip_corrupt=None,
  few_shot=False,
  **options,
) -> Evaluator:
  """The evaluator that a configuration describes.

  With `few_shot`, a method that knows no references gets a memory of them.
  `options` are further attributes of the evaluator.
  """
  if skip_corrupt is None:
    skip_corrupt = config.skip_corrupt
  if few_shot:
    method = few_shot_lib.with_memory_bank(method, **config.memory)
  return Evaluator(
    method=method,
    backbone=backbone,
    mesh=mesh,
    image_size=config.image_size,
    batch_size=config.eval_batch_size,
    smooth_sigma=config.smooth_sigma,
    prompt_names=config.prompt_names,
    skip_corrupt=skip_corrupt,
    # Runs made before there was one have no such field.
    cache=cache_lib.open_cache(config.get("decoded_cache", "")),
    **options,
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
