"""Accumulators of pixel metrics, and the variants of published evaluations.

An accumulator is updated with maps and masks as they leave the device, merged
with those of other processes, and computes the metrics of all pixels.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

import zsad_jax.metrics.exact as exact
import zsad_jax.metrics.streaming as streaming
import zsad_jax.metrics.variants as variants
from zsad_jax import metrics

BOUND = "_bound"  # Suffix of the error bound of a metric.
Gather = Callable[[Any], list[Any]]
Function = Callable[[np.ndarray, np.ndarray], float]


@runtime_checkable
class PixelMetrics(Protocol):
  """Accumulator of the pixel metrics of a category."""

  def update(
    self,
    gt_mask: Shaped[np.ndarray, "n h w"],
    anomaly_map: Shaped[np.ndarray, "n h w"],
  ) -> None:
    """Add some images; see `streaming.PixelState.update`."""

  def merge(self, gather: Gather) -> None:
    """Merge the accumulators of all processes; each holds the result.

    All processes must have called `update` equally often.

    Args:
      gather: returns the values of all processes, in their order, such as
        `distributed.all_gather_object`.
    """

  def compute(self) -> dict[str, float]:
    """Return the metrics of all pixels so far; nan where undefined."""
    ...

  def curves(self) -> exact.Curves:
    """Return ROC, "pr" and PRO of all pixels so far; {} where undefined."""
    ...


class StreamingPixelMetrics:
  """Pixel metrics in constant memory, each with the bound of its error."""

  def __init__(self):
    self.state = streaming.PixelState.init()

  def update(
    self,
    gt_mask: Shaped[np.ndarray, "n h w"],
    anomaly_map: Shaped[np.ndarray, "n h w"],
  ) -> None:
    """Add some images; see `streaming.PixelState.update`."""
    self.state.update(gt_mask, anomaly_map)

  def merge(self, gather: Gather) -> None:
    """Add up the histograms of all processes; see `PixelMetrics`."""
    states = gather(self.state.to_dict())
    self.state = functools.reduce(
      streaming.PixelState.merge, map(streaming.PixelState.from_dict, states)
    )

  def compute(self) -> dict[str, float]:
    """Return the metrics of all pixels so far; nan where undefined."""
    row = {}
    for name, bounded in metrics.streamed_metrics(self.state).items():
      if bounded is None:
        row[name] = math.nan
      else:
        row |= {name: bounded.value, name + BOUND: bounded.bound}
    return row

  def curves(self) -> exact.Curves:
    """Return the curves of all pixels so far; {} where undefined."""
    try:
      return self.state.curve().points()
    except exact.UndefinedError:
      return {}


class ExactPixelMetrics:
  """Pixel metrics from all maps of a category, which are kept in memory."""

  def __init__(self, variant: "Variant | None" = None):
    self._variant = variant or Variant()
    self._batches: list[tuple[np.ndarray, np.ndarray]] = []

  def update(
    self,
    gt_mask: Shaped[np.ndarray, "n h w"],
    anomaly_map: Shaped[np.ndarray, "n h w"],
  ) -> None:
    """Add some images."""
    self._batches.append((gt_mask, anomaly_map))

  def merge(self, gather: Gather) -> None:
    """Take over the maps of all processes; see `PixelMetrics`.

    Batch by batch, in the order in which a single process sees the images:
    sums are the same to the last digit, and no message is large.
    """
    self._batches = [part for batch in self._batches for part in gather(batch)]

  def compute(self) -> dict[str, float]:
    """Return the metrics of all pixels so far, as the variant defines them."""
    gt_mask, anomaly_map = self._arrays()
    row = metrics.pixel_metrics(gt_mask, anomaly_map)
    return self._variant.replace(row, "pixel", gt_mask, anomaly_map)

  def curves(self) -> exact.Curves:
    """Return the curves of all pixels so far; {} where undefined."""
    try:
      return exact.rank_pixels(*self._arrays()).curves()
    except exact.UndefinedError:
      return {}

  def _arrays(self):
    """Return masks and maps, preprocessed as the variant does."""
    if not self._batches:
      return np.zeros((0, 1, 1), bool), np.zeros((0, 1, 1), np.float32)
    gt_mask, anomaly_map = map(np.concatenate, zip(*self._batches))
    if self._variant.size:
      gt_mask, anomaly_map = at_size(gt_mask, anomaly_map, self._variant.size)
    if self._variant.per_image:
      anomaly_map = np.stack([variants.min_max(x) for x in anomaly_map])
    return gt_mask, anomaly_map


@dataclasses.dataclass(frozen=True)
class Variant:
  """Definition of the metrics of an evaluation.

  Attributes:
    image, pixel: functions of labels and scores, or of masks and maps, by the
      name of the metric that they replace or add.
    size: side in pixels to which maps and masks are resized; None: unchanged.
    per_image: whether every map is scaled to [0, 1] by its own extremes.
    undefined: value of an undefined metric.
    streamed: whether pixels are counted in histograms instead of kept; not
      together with other settings of pixels.
  """

  image: Mapping[str, Function] = dataclasses.field(default_factory=dict)
  pixel: Mapping[str, Function] = dataclasses.field(default_factory=dict)
  size: int | None = None
  per_image: bool = False
  undefined: float = math.nan
  streamed: bool = False

  def pixel_metrics(self) -> PixelMetrics:
    """Return an empty accumulator of pixel metrics."""
    return StreamingPixelMetrics() if self.streamed else ExactPixelMetrics(self)

  def image_metrics(
    self, label: Shaped[np.ndarray, " n"], score: Shaped[np.ndarray, " n"]
  ) -> dict[str, float]:
    """Return the metrics of image scores; see `metrics.image_metrics`."""
    row = metrics.image_metrics(label, score)
    return self.replace(row, "image", label, score)

  def replace(
    self,
    row: Mapping[str, float],
    level: metrics.Level,
    truth: np.ndarray,
    score: np.ndarray,
  ) -> dict[str, float]:
    """Return a row with the metrics that this variant defines differently."""
    functions = self.image if level == "image" else self.pixel
    defined = not math.isnan(row[f"{level}_auroc"])
    replaced = {
      name: function(truth, score) if defined else math.nan
      for name, function in functions.items()
    }
    return {
      name: self.undefined if math.isnan(value) else value
      for name, value in {**row, **replaced}.items()
    }


def at_size(
  gt_mask: Shaped[np.ndarray, "n h w"],
  anomaly_map: Shaped[np.ndarray, "n h w"],
  size: int,
) -> tuple[Shaped[np.ndarray, "n s s"], Shaped[np.ndarray, "n s s"]]:
  """Resize masks to the nearest pixel and maps bilinearly, no antialiasing.

  As torch.nn.functional.interpolate does, modes "nearest" and "bilinear".
  """
  rows, columns = (np.arange(size) * side // size for side in gt_mask.shape[1:])
  anomaly_map = _resize(_resize(anomaly_map, size).swapaxes(1, 2), size)
  return gt_mask[:, rows][:, :, columns], anomaly_map.swapaxes(1, 2)


def _resize(maps, size):
  """Resize the last axis bilinearly, half-pixel centres."""
  side = maps.shape[-1]
  at = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
  low = at.astype(int)
  weight = (at - low).astype(maps.dtype)
  above = maps[..., np.minimum(low + 1, side - 1)]
  return (1 - weight) * maps[..., low] + weight * above


_OVERKILL = {
  f"image_overkill_{100 * rate:g}": functools.partial(
    variants.overkill, escape_rate=rate
  )
  for rate in variants.ESCAPE_RATES
}
_ADAPTCLIP: dict[str, Any] = dict(
  image={"image_ap": variants.aupr_reordered, **_OVERKILL},
  pixel={
    "pixel_ap": exact.pixels(variants.aupr_reordered),
    "pixel_aupro": variants.aupro_resampled,
  },
)
_200 = {"pixel_aupro": variants.aupro_200}
VARIANTS = {
  "streamed": Variant(streamed=True),
  "exact": Variant(),
  "adaclip": Variant(undefined=0.0),
  "anomalyclip": Variant(pixel=_200),
  "april_gan": Variant(pixel=_200),
  "faprompt": Variant(pixel=_200),
  "adaptclip": Variant(**_ADAPTCLIP),
  "adaptclip_256": Variant(size=256, **_ADAPTCLIP),  # Real-IAD.
  "trapezoid": Variant(
    image={"image_ap": variants.aupr_trapezoid},
    pixel={"pixel_ap": exact.pixels(variants.aupr_trapezoid)},
  ),
  "per_image": Variant(per_image=True),
}


def variant(name: str) -> Variant:
  """Return the variant of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in VARIANTS:
    raise ValueError(
      f"There is no variant {name!r} of the metrics, only "
      f"{', '.join(VARIANTS)}."
    )
  return VARIANTS[name]
