"""Figures, curves and example images of a category for reports."""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image

from zsad_jax import types
from zsad_jax.datasets import index, preprocess, references
from zsad_jax.evaluation.category import CategoryResult
from zsad_jax.evaluation.results import Result
from zsad_jax.metrics import exact
from zsad_jax.reporting import figures
from zsad_jax.runs.threshold import Threshold

_BINS = 20  # Of a histogram of scores.


@dataclasses.dataclass(frozen=True)
class Detail:
  """Content of the page about a category, in addition to its metrics.

  Attributes:
    image_curves, pixel_curves: points of the curves; {} where undefined.
    edges, counts: histogram of image scores, normal and anomalous.
    examples: captions and JPEG files of a few images.
  """

  image_curves: exact.Curves
  pixel_curves: exact.Curves
  edges: list[float]
  counts: dict[str, list[int]]
  examples: list[tuple[str, bytes]]


@dataclasses.dataclass(frozen=True)
class Report:
  """A result together with the details of its categories."""

  result: Result
  details: dict[str, Detail]


def category_detail(
  category: CategoryResult,
  *,
  image_size: int,
  limits: Threshold | None,
  show: Callable[[index.Sample], str],
) -> Detail:
  """Return the detail of a category.

  Example images are those of the first seed of the references only.

  Args:
    category: merged result.
    image_size: side of images and maps in pixels.
    limits: stored range of the colour scale; None: the range of the examples.
    show: returns the name of an image.
  """
  label, score = category.label, category.pred_score
  edges = np.histogram_bin_edges(score, bins=_BINS)
  counts = {
    name: np.histogram(score[label == state], edges)[0].tolist()
    for name, state in (
      ("normal", types.NORMAL),
      ("anomalous", types.ANOMALOUS),
    )
  }
  try:
    image_curves = exact.rank_items(label, score).curves()
  except exact.UndefinedError:
    image_curves = {}
  examples = []
  first = category.references.seed in (None, references.SEEDS[0])
  if first and category.examples.kept:
    examples = _examples(category, image_size, limits, show)
  return Detail(
    image_curves,
    category.pixel_metrics.curves(),
    edges.tolist(),
    counts,
    examples,
  )


def category_figure(
  category: CategoryResult,
  *,
  image_size: int,
  show: Callable[[index.Sample], str],
) -> Image.Image:
  """Draw a grid of some normal and some anomalous images of a category.

  Args:
    category: merged result.
    image_size: side of images and maps in pixels.
    show: returns the name of an image.
  """
  kept = category.examples.kept
  chosen = [(kept[i], category.sample(i)) for i in sorted(kept)]
  return figures.comparison_grid(
    [preprocess.load_image(s.image_path, image_size) for _, s in chosen],
    [example.gt_mask for example, _ in chosen],
    [example.anomaly_map for example, _ in chosen],
    [f"{_caption(s)}  score {e.score:.3g}  {show(s)}" for e, s in chosen],
    title=category.name,
  )


def _examples(category, image_size, limits, show):
  """Return captions and files of the examples, with one colour scale."""
  kinds = category.examples.compute()
  maps = [e.anomaly_map for kind in kinds.values() for e in kind]
  low, high = (
    (limits.map_low, limits.map_high)
    if limits
    else (float(np.min(maps)), float(np.max(maps)))
  )
  found = []
  for kind, examples in kinds.items():
    for example in examples:
      sample = category.sample(example.number)
      image = preprocess.load_image(sample.image_path, image_size)
      strip = figures.example_strip(
        image,
        example.gt_mask,
        _resize(example.anomaly_map, image_size),
        low=low,
        high=high,
      )
      caption = f"{kind}: {_caption(sample)}, score {example.score:.3g}"
      found.append((f"{caption}, {show(sample)}", strip))
  return found


def _resize(anomaly_map, size):
  """Return a map, which may be merged from tiles, at the size of the image."""
  if anomaly_map.shape == (size, size):
    return anomaly_map
  image = Image.fromarray(anomaly_map)
  return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _caption(sample: index.Sample) -> str:
  """Return the kind of anomaly, or the state where it has no name."""
  state = "anomalous" if sample.label == types.ANOMALOUS else "normal"
  return sample.specie_name or state
