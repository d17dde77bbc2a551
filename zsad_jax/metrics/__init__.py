"""Metrics of detection and segmentation; needs neither JAX nor TensorFlow.

The accumulators, the evaluator, tables, reports, the comparison with published
tables and help texts iterate over `TABLE` (by name: `METRICS`). A new metric is
one row of it: a name, a title, and a function of labels and scores (level
"image") or of masks and maps (level "pixel"), for example

  Metric(
    "image_fpr95",
    level="image",
    title="false positive rate at a recall of 95 %",
    function=fpr95,
    higher_is_better=False,
  ),

A pixel metric without `streamed` needs all maps at once: it is computed in the
exact modes (`--variant=exact` and those of the papers), else shown as n/a.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Shaped

import zsad_jax.metrics.exact as exact
import zsad_jax.metrics.streaming as streaming

Level = Literal["image", "pixel"]


@dataclasses.dataclass(frozen=True)
class Metric:
  """A row of `METRICS`.

  Attributes:
    name: key of the results, beginning with the level.
    level: "image" for image scores, "pixel" for anomaly maps.
    title: for help texts and the report.
    function: of labels and scores (n,), or of masks and maps (n, h, w), as
      NumPy arrays; raises `exact.UndefinedError` where it is undefined.
    from_ranking: the same value from a ranking, which all metrics share; None
      where the ranking does not determine it.
    streamed: of pixels, the same value and the bound of its error from
      histograms; None where they do not determine it.
    higher_is_better: whether larger values are better; None for values that
      are no measure of quality, such as thresholds.
    in_tables: whether it is a column of tables and reports.
    paper_names: names in published tables, the preferred one first.
  """

  name: str
  level: Level
  title: str
  function: Callable[[np.ndarray, np.ndarray], float]
  from_ranking: Callable[[exact.Ranking], float] | None = None
  streamed: Callable[[streaming.BinnedCurve], streaming.Bounded] | None = None
  higher_is_better: bool | None = True
  in_tables: bool = True
  paper_names: tuple[str, ...] = ()

  def is_better(self, value: float, other: float) -> bool:
    """Return whether `value` is better than `other`."""
    return value > other if self.higher_is_better else value < other


TABLE = (
  Metric(
    "image_auroc",
    level="image",
    title="area under the ROC curve of image scores",
    function=exact.auroc,
    from_ranking=exact.Ranking.auroc,
    paper_names=("AUROC",),
  ),
  Metric(
    "image_ap",
    level="image",
    title="average precision of image scores",
    function=exact.average_precision,
    from_ranking=exact.Ranking.average_precision,
    paper_names=("AP", "AUPR"),
  ),
  Metric(
    "image_f1_max",
    level="image",
    title="largest F1 of image scores over all thresholds",
    function=lambda label, score: exact.f1_max(label, score)[0],
    from_ranking=lambda ranking: ranking.f1_max()[0],
    paper_names=("F1max",),
  ),
  Metric(
    "image_f1_threshold",
    level="image",
    title="threshold that reaches image_f1_max",
    function=lambda label, score: exact.f1_max(label, score)[1],
    from_ranking=lambda ranking: ranking.f1_max()[1],
    higher_is_better=None,
    in_tables=False,
  ),
  Metric(
    "pixel_auroc",
    level="pixel",
    title="area under the ROC curve of all pixels",
    function=exact.pixels(exact.auroc),
    from_ranking=exact.Ranking.auroc,
    streamed=streaming.BinnedCurve.auroc,
    paper_names=("AUROC",),
  ),
  Metric(
    "pixel_ap",
    level="pixel",
    title="average precision of all pixels",
    function=exact.pixels(exact.average_precision),
    from_ranking=exact.Ranking.average_precision,
    streamed=streaming.BinnedCurve.average_precision,
    paper_names=("AP", "AUPR"),
  ),
  Metric(
    "pixel_f1_max",
    level="pixel",
    title="largest F1 of all pixels over all thresholds",
    function=exact.pixels(lambda label, score: exact.f1_max(label, score)[0]),
    from_ranking=lambda ranking: ranking.f1_max()[0],
    streamed=streaming.BinnedCurve.f1_max,
    paper_names=("F1max",),
  ),
  Metric(
    "pixel_aupro",
    level="pixel",
    title="area under the per-region overlap, up to a false positive rate of "
    f"{exact.MAX_FPR}",
    function=exact.aupro,
    from_ranking=exact.Ranking.aupro,
    streamed=streaming.BinnedCurve.aupro,
    paper_names=("PRO",),
  ),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in TABLE}


def at_level(level: Level) -> tuple[Metric, ...]:
  """Return the metrics of a level, in the order of the table."""
  return tuple(m for m in METRICS.values() if m.level == level)


def image_metrics(
  label: Shaped[np.ndarray, " n"], score: Shaped[np.ndarray, " n"]
) -> dict[str, float]:
  """Compute all metrics of image scores; arguments are those of `exact.auroc`.

  Returns:
    Values by name; nan where undefined, such as without anomalous images.

  Raises:
    ValueError: a score is NaN, or a label is neither 0 nor 1.
  """
  return _compute("image", exact.rank_items, label, score)


def pixel_metrics(
  gt_mask: Shaped[np.ndarray, "n h w"],
  anomaly_map: Shaped[np.ndarray, "n h w"],
) -> dict[str, float]:
  """Compute all metrics of the pixels of a category, pooled over its images.

  Arguments are those of `exact.aupro`. An all-zero mask means that the image is
  normal: leave out images whose masks are unknown. Needs memory for about one
  more copy of the maps and masks.

  Returns:
    Values by name; nan where undefined, such as without anomalous pixels.

  Raises:
    ValueError: a value is NaN, or the shapes differ.
  """
  return _compute("pixel", exact.rank_pixels, gt_mask, anomaly_map)


def streamed_metrics(
  state: streaming.PixelState,
) -> dict[str, streaming.Bounded | None]:
  """Compute the pixel metrics of histograms; None where undefined."""
  try:
    curve = state.curve()
  except exact.UndefinedError:
    return dict.fromkeys(m.name for m in at_level("pixel"))
  return {m.name: m.streamed and m.streamed(curve) for m in at_level("pixel")}


def _compute(level, rank, truth, score):
  """Compute the metrics of a level from one ranking where possible."""
  try:
    ranking = rank(truth, score)
  except exact.UndefinedError:
    ranking = None
  row = {}
  for metric in at_level(level):
    if metric.from_ranking:
      row[metric.name] = metric.from_ranking(ranking) if ranking else math.nan
      continue
    try:
      row[metric.name] = float(metric.function(truth, score))
    except exact.UndefinedError:
      row[metric.name] = math.nan
  return row
