"""Result of a detector for one image."""

import dataclasses
import functools
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image
from scipy import ndimage

from zsad_jax.inference import regions as regions_lib
from zsad_jax.runs import threshold as threshold_lib


@dataclasses.dataclass(frozen=True, eq=False)
class Detection:
  """Result for one image.

  Attributes:
    score: image-level anomaly score in [0, 1]; higher is more anomalous.
    limits: thresholds of the score and of the pixels.
    raw_map: unsmoothed anomaly map in [0, 1] at the resolution of the model: of
      the whole image as a square, or merged from its tiles.
    image_size: height and width of the image in pixels.
    smooth_sigma: standard deviation of the Gaussian that smooths
      `anomaly_map`, in pixels of `raw_map`.
    image_only: whether the score is the only result, without a map.
    zero_shot_score: score without the references; None for a detector without
      references and for methods that require them.
  """

  score: float
  limits: threshold_lib.Threshold = dataclasses.field(repr=False)
  raw_map: Float32[np.ndarray, "m n"] = dataclasses.field(repr=False)
  image_size: tuple[int, int]
  smooth_sigma: float
  zero_shot_score: float | None = None
  image_only: bool = False

  @property
  def label(self) -> Literal["normal", "anomalous"]:
    """Label: "anomalous" where the score is at least the threshold."""
    return "anomalous" if self.score >= self.threshold else "normal"

  @property
  def threshold(self) -> float:
    """Decision threshold of the score."""
    return self.limits.image_score

  @property
  def normalized_score(self) -> float:
    """Score in [0, 1] on a scale on which the threshold is 0.5."""
    return self.limits.normalized(self.score)

  @property
  def normal_percentile(self) -> float | None:
    """Percentage of the normal images of the calibration with a lower score.

    None where these are not known.
    """
    return self.limits.normal_percentile(self.score)

  @functools.cached_property
  def anomaly_map(self) -> Float32[np.ndarray, "h w"]:
    """Smoothed anomaly map in [0, 1] at the size of the image.

    It is computed on first access, by a Gaussian filter at the resolution of
    the model and bilinear interpolation.

    Raises:
      ValueError: the method has image scores only.
    """
    if self.image_only:
      raise ValueError(
        "This method has image scores only: there is no map, mask or region."
      )
    smooth = ndimage.gaussian_filter(self.raw_map, self.smooth_sigma)
    height, width = self.image_size
    resized = Image.fromarray(smooth).resize(
      (width, height), Image.Resampling.BILINEAR
    )
    # Rounding can leave [0, 1].
    return np.clip(np.asarray(resized), 0.0, 1.0)

  @property
  def mask(self) -> Bool[np.ndarray, "h w"]:
    """Whether each pixel of the image is anomalous.

    Raises:
      ValueError: there is no pixel threshold.
    """
    if self.limits.pixel is None:
      raise ValueError(
        "The run has no pixel threshold: set one by `zsad calibrate` with "
        "normal images."
      )
    return self.anomaly_map >= self.limits.pixel

  @functools.cached_property
  def regions(self) -> tuple[regions_lib.Region, ...]:
    """Connected regions of `mask`, the largest peak first, at most 1000.

    Raises:
      ValueError: there is no pixel threshold.
    """
    return regions_lib.find(self.anomaly_map, self.mask).regions
