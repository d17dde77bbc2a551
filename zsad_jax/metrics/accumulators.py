"""How the maps of a category become numbers: streamed, exactly, as published.

A measure is fed with maps and masks as they leave the device, and gives the
metrics of their pixels once all have been seen.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from zsad_jax.metrics import exact, streaming, variants

PIXEL = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "pixel_aupro")
BOUND = "_bound"  # After the name of a metric: of its error.


class StreamingPixelMetrics:
  """Constant memory; every value with the bound of its error."""

  def __init__(self):
    self.state = streaming.PixelState.init()

  def update(
    self,
    gt_mask: Shaped[np.ndarray, "n h w"],
    anomaly_map: Shaped[np.ndarray, "n h w"],
  ) -> None:
    """Takes in some images; see `streaming.PixelState.update`."""
    self.state.update(gt_mask, anomaly_map)

  def parts(self) -> list[streaming.PixelState]:
    """What another process needs to know of what was seen here."""
    return [self.state]

  def join(self, parts: Sequence[Sequence[streaming.PixelState]]) -> None:
    """Takes in what all processes have seen instead of this one's alone.

    Args:
      parts: of `parts`, for each of them that of every process.
    """
    self.state = functools.reduce(streaming.PixelState.merge, parts[0])

  def image(self, label, score) -> dict[str, float]:
    """The metrics of image scores; see `metrics.image_metrics`."""
    return exact.image_metrics(label, score)

  def pixel(self) -> dict[str, float]:
    """The metrics of all pixels so far; nan without both states."""
    try:
      found = self.state.finalize()
    except exact.UndefinedError:
      return dict.fromkeys(PIXEL, math.nan)
    row = {}
    for name in PIXEL:
      bounded = found[name.removeprefix("pixel_")]
      row |= {name: bounded.value, name + BOUND: bounded.bound}
    return row

  def curves(self) -> exact.Curves:
    """Of all pixels so far; none where they are undefined."""
    try:
      return self.state.curves()
    except exact.UndefinedError:
      return {}


class ExactPixelMetrics:
  """Keeps all maps of a category, for what cannot be streamed."""

  def __init__(self, variant: "Variant | None" = None):
    self._variant = variant or Variant()
    self._masks, self._maps = [], []

  def update(self, gt_mask, anomaly_map) -> None:
    """Takes in some images; see `StreamingPixelMetrics`."""
    self._masks.append(gt_mask)
    self._maps.append(anomaly_map)

  def parts(self) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks and maps of each batch; see `StreamingPixelMetrics`."""
    return list(zip(self._masks, self._maps))

  def join(self, parts) -> None:
    """In the order in which one process would have seen them."""
    pairs = [pair for batch in parts for pair in batch]
    self._masks, self._maps = ([*x] for x in zip(*pairs))

  def image(self, label, score) -> dict[str, float]:
    """The metrics of image scores, some of them as published."""
    row = exact.image_metrics(label, score)
    return self._published(row, "image", self._variant.image, label, score)

  def pixel(self) -> dict[str, float]:
    """The metrics of all pixels, some of them as published."""
    gt_mask, anomaly_map = self._joined()
    row = exact.pixel_metrics(gt_mask, anomaly_map)
    return self._published(
      row, "pixel", self._variant.pixel, gt_mask, anomaly_map
    )

  def curves(self) -> exact.Curves:
    """Of all pixels so far; none where they are undefined."""
    try:
      return exact.rank_pixels(*self._joined()).curves()
    except exact.UndefinedError:
      return {}

  def _joined(self):
    """Masks and maps as the variant has them."""
    if not self._maps:
      return np.zeros((0, 1, 1), bool), np.zeros((0, 1, 1), np.float32)
    gt_mask, anomaly_map = map(np.concatenate, (self._masks, self._maps))
    if self._variant.size:
      gt_mask, anomaly_map = at_size(gt_mask, anomaly_map, self._variant.size)
    if self._variant.per_image:
      anomaly_map = np.stack([variants.min_max(x) for x in anomaly_map])
    return gt_mask, anomaly_map

  def _published(self, row, level, functions, truth, score):
    """The row with these metrics in place of the exact ones."""
    defined = not math.isnan(row[f"{level}_auroc"])
    published = {
      name: function(truth, score) if defined else math.nan
      for name, function in functions.items()
    }
    return {
      name: self._variant.undefined if math.isnan(value) else value
      for name, value in (row | published).items()
    }


@dataclasses.dataclass(frozen=True)
class Variant:
  """What a paper's numbers were measured with, where not with the exact.

  Attributes:
    image, pixel: functions of labels and scores, or of masks and maps, by the
      name of the metric that they replace or add.
    size: maps and masks are brought to this side in pixels; None: as they are.
    per_image: every map is scaled to [0, 1] by itself.
    undefined: what an undefined metric counts as.
  """

  image: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
  pixel: Mapping[str, Callable] = dataclasses.field(default_factory=dict)
  size: int | None = None
  per_image: bool = False
  undefined: float = math.nan


def at_size(
  gt_mask: Shaped[np.ndarray, "n h w"],
  anomaly_map: Shaped[np.ndarray, "n h w"],
  size: int,
) -> tuple[Shaped[np.ndarray, "n s s"], Shaped[np.ndarray, "n s s"]]:
  """Masks by the pixel at their left, maps bilinearly without antialiasing.

  torch.nn.functional.interpolate, modes "nearest" and "bilinear".
  """
  rows, columns = (np.arange(size) * side // size for side in gt_mask.shape[1:])
  anomaly_map = _enlarged(_enlarged(anomaly_map, size).swapaxes(1, 2), size)
  return gt_mask[:, rows][:, :, columns], anomaly_map.swapaxes(1, 2)


def _enlarged(maps, size):
  """Resizes the last axis, half-pixel centres."""
  side = maps.shape[-1]
  place = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
  low = place.astype(int)
  share = (place - low).astype(maps.dtype)
  above = maps[..., np.minimum(low + 1, side - 1)]
  return (1 - share) * maps[..., low] + share * above


def _raveled(function):
  """A function of items, for pixels."""
  return lambda gt_mask, anomaly_map: function(
    (gt_mask != 0).ravel().astype(int), anomaly_map.ravel()
  )


_OVERKILL = {
  f"image_overkill_{100 * rate:g}": lambda label, score, rate=rate: (
    variants.overkill(label, score, rate)
  )
  for rate in variants.ESCAPE_RATES
}
_ADAPTCLIP = dict(
  image={"image_ap": variants.aupr_reordered, **_OVERKILL},
  pixel={
    "pixel_ap": _raveled(variants.aupr_reordered),
    "pixel_aupro": variants.aupro_resampled,
  },
)
_200 = {"pixel_aupro": variants.aupro_200}
VARIANTS = {
  "adaclip": Variant(undefined=0.0),
  "anomalyclip": Variant(pixel=_200),
  "april_gan": Variant(pixel=_200),
  "faprompt": Variant(pixel=_200),
  "adaptclip": Variant(**_ADAPTCLIP),
  "adaptclip_256": Variant(size=256, **_ADAPTCLIP),  # Real-IAD.
  "trapezoid": Variant(
    image={"image_ap": variants.aupr_trapezoid},
    pixel={"pixel_ap": _raveled(variants.aupr_trapezoid)},
  ),
  "per_image": Variant(per_image=True),
}
MEASURES = {"streamed": StreamingPixelMetrics, "exact": ExactPixelMetrics} | {
  name: (lambda variant=variant: ExactPixelMetrics(variant))
  for name, variant in VARIANTS.items()
}


def make(name: str) -> StreamingPixelMetrics | ExactPixelMetrics:
  """A measure of that name.

  Raises:
    ValueError: there is none.
  """
  if name not in MEASURES:
    raise ValueError(
      f"There is no variant {name!r} of the metrics, only "
      f"{', '.join(MEASURES)}."
    )
  return MEASURES[name]()
