"""Public Python API: score images with a trained run.

detector = zsad_jax.load("runs/adaclip")
detection = detector("photo.png")
few_shot = detector.with_references(["good/0.png", "good/1.png"])
detections = few_shot(["photo.png", array])
"""

import copy
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Iterator
from typing import Any, Literal, overload

import jax
import numpy as np
from jaxtyping import Bool, Float32
from PIL import Image
from scipy import ndimage

from zsad_jax import types
from zsad_jax.inference import few_shot, inputs, predictor
from zsad_jax.inference import regions as regions_lib
from zsad_jax.inference.inputs import ImageInput, ImageInputs
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runtime import distributed

_log = logging.getLogger(__name__)


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
    zero_shot_score: score without the references; None for a detector without
      references and for methods that require them.
  """

  score: float
  limits: threshold_lib.Threshold = dataclasses.field(repr=False)
  raw_map: Float32[np.ndarray, "m n"] = dataclasses.field(repr=False)
  image_size: tuple[int, int]
  smooth_sigma: float
  zero_shot_score: float | None = None

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
    """
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


class Detector:
  """A trained run that scores images; see `load`.

  It is immutable. Programs are compiled on first use for each number of images
  up to the batch size.
  """

  def __init__(
    self,
    run: run_lib.Run,
    *,
    class_name: str = "object",
    threshold: float | None = None,
    batch_size: int = 8,
    limits: threshold_lib.Threshold | None = None,
  ):
    """Wrap a run that is loaded already.

    Args:
      run: the run.
      class_name: object class in the images, for methods whose text prompts
        contain it.
      threshold: decision threshold; None for the one of `limits`.
      batch_size: largest number of images per call of the model.
      limits: thresholds of a calibration; None for those stored with the run.

    Raises:
      ValueError: the threshold is NaN, or the batch size is not positive.
    """
    if threshold is not None:
      threshold_lib.check_image_score(threshold)
    if batch_size < 1:
      raise ValueError(f"batch_size is at least 1, got {batch_size}.")
    self._run = run
    self._config: Any = run.config
    self._class_name = class_name
    self._threshold = threshold
    self._batch_size = batch_size
    self._given_limits = limits
    self._few_shot: predictor.Predictor | None = None
    self._memory_bank: Any = None
    self._reference_digests: frozenset[bytes] = frozenset()

  def __repr__(self) -> str:
    """Return the name of the run, and whether there are references."""
    references = "with" if self.has_references else "without"
    name = self._config.name
    return f"Detector({name!r}, {self._class_name!r}, {references} references)"

  @property
  def has_references(self) -> bool:
    """Whether images are compared with references."""
    return self._memory_bank is not None

  @property
  def threshold(self) -> float:
    """Decision threshold: images with at least this score are anomalous.

    Raises:
      FileNotFoundError: none was given, and the run has none.
    """
    return self.limits.image_score

  @property
  def limits(self) -> threshold_lib.Threshold:
    """Thresholds of scores and pixels, and the color limits of maps.

    Raises:
      FileNotFoundError: none were given, and the run has none.
    """
    return threshold_lib.read_or_replace(
      self._run.workdir,
      few_shot=self.has_references,
      image_score=self._threshold,
      given=self._given_limits,
    )

  @overload
  def __call__(self, images: ImageInput) -> Detection: ...

  @overload
  def __call__(
    self, images: list[ImageInput] | tuple[ImageInput, ...]
  ) -> list[Detection]: ...

  def __call__(self, images: Any) -> Detection | list[Detection]:
    """Score one image or several.

    Args:
      images: a path, a PIL image or a uint8 array (h, w, 3) in RGB order; or a
        list or tuple of these. Images may differ in size.

    Returns:
      A `Detection`, or a list of them for a list or tuple of images.

    Raises:
      TypeError: an input is of another type or dtype.
      ValueError: an array has another shape, an image cannot be read, a
        prediction is not finite, or the method requires references.
      FileNotFoundError: no threshold was given, and the run has none.
    """
    if isinstance(images, (list, tuple)):
      return [found for _, found in self.stream(images)]  # pyright: ignore[reportReturnType]
    inputs.check(images, "The image")
    return self([images])[0]

  def stream(
    self, images: ImageInputs, *, skip_corrupt: bool = False
  ) -> Iterator[tuple[int, Detection | str]]:
    """Score images batch by batch, with the next batch decoded in parallel.

    Args:
      images: list or tuple of images, see `__call__`.
      skip_corrupt: yield a message for an image that cannot be read, instead of
        raising it.

    Returns:
      Iterator over the position of each image and its `Detection`, or the
      message.

    Raises:
      TypeError, ValueError, FileNotFoundError: see `__call__`.
    """
    names = inputs.check_all(images)
    if self._run.method.needs_references and not self.has_references:
      raise ValueError(
        f"{self._config.name} needs references, normal images of the same "
        "class: give --references (in Python, use `with_references`)."
      )
    return self._stream(images, names, self.limits, skip_corrupt)

  def with_references(
    self, images: ImageInputs, *, class_name: str | None = None
  ) -> "Detector":
    """Return a detector that compares images with normal references.

    Nothing is trained, and this detector is unchanged.

    Args:
      images: one or more normal images of the same class, see `__call__`.
      class_name: object class in the images; None for that of this detector.

    Raises:
      TypeError, ValueError: see `__call__`; or there is no image.
    """
    names = inputs.check_all(images)
    if not names:
      raise ValueError("There is no reference image; expected at least one.")
    method = self._run.method
    if isinstance(method, types.Transductive) and method.transductive_score:
      _log.warning(
        "note: config.method.transductive_score has no effect on predictions: "
        "only an evaluation scales scores over all images of a category."
      )
    new = copy.copy(self)
    new._class_name = self._class_name if class_name is None else class_name
    model = self._few_shot_model
    if new._class_name != self._class_name:
      model = model.with_class_names([new._class_name])
    pixels = []
    for batch in self._decode(images, names, self._batch_size):
      pixels += [x.pixels for x in batch if not isinstance(x, str)]
    with self._precision():
      new._memory_bank = model.build_memory_bank(
        np.stack(pixels), 0, batch_size=self._batch_size
      )
    new._few_shot = model
    new._reference_digests = frozenset(map(_digest, pixels))
    return new

  @functools.cached_property
  def _zero_shot_model(self):
    """Predictor for images without references."""
    return self._predictor(self._run.method)

  @property
  def _few_shot_model(self):
    """Predictor for images with references, compiled once for all of them."""
    if self._few_shot is None:
      method = self._run.method
      if method.compares_references:
        self._few_shot = self._zero_shot_model
      else:
        with_bank = few_shot.with_memory_bank(method, **self._config.memory)
        self._few_shot = self._predictor(with_bank)
    return self._few_shot

  def _predictor(self, method):
    """Return the compiled functions of a method."""
    with self._precision():
      return predictor.Predictor(
        method, self._run.backbone, [self._class_name], distributed.make_mesh()
      )

  def _precision(self):
    """Set the matmul precision of the run: another run may differ."""
    return jax.default_matmul_precision(self._config.matmul_precision)

  def _decode(self, images, names, batch_size, skip_corrupt=False):
    """Decode images at the resolution of the run, batch by batch."""
    return inputs.decode_batches(
      images,
      names,
      image_size=self._config.image_size,
      batch_size=batch_size,
      skip_corrupt=skip_corrupt,
    )

  def _stream(self, images, names, limits, skip_corrupt):
    """Yield positions with detections or messages; see `stream`."""
    size = self._config.image_size
    batch_size = predictor.round_up(min(self._batch_size, max(1, len(images))))
    first = 0
    for batch in self._decode(images, names, batch_size, skip_corrupt):
      pixels = np.zeros((batch_size, size, size, 3), np.uint8)
      readable = [image for image in batch if not isinstance(image, str)]
      for row, image in enumerate(readable):
        pixels[row] = image.pixels
      # Also if none is readable: other processes may have read theirs.
      rows = zip(*self._predict(pixels))
      for i, image in enumerate(batch, first):
        if isinstance(image, str):
          yield i, image
        elif self.has_references and _digest(image.pixels) in (
          self._reference_digests
        ):
          raise ValueError(
            f"{names[i]} is one of the references: it would be compared with "
            "itself. Score other images, or leave it out of the references."
          )
        else:
          yield i, self._detection(names[i], image.size, limits, *next(rows))
      first += len(batch)

  def _predict(self, pixels):
    """Return scores, maps and zero-shot scores (or Nones) of a batch."""
    model, banks = self._zero_shot_model, (None,)
    if self.has_references:
      model, banks = self._few_shot_model, (self._memory_bank,)
      if not self._run.method.needs_references:
        banks += (None,)
    batch = {"image": pixels, "class_id": np.zeros(len(pixels), np.int32)}
    with self._precision():
      features = model.encode(distributed.local_slice(batch))
      result, *zero_shot = distributed.all_gather(
        model.predict(self._run.params, self._run.stats, features, banks)
      )
    none = [None] * len(pixels)
    zero_shot_score = zero_shot[0]["pred_score"] if zero_shot else none
    return result["pred_score"], result["anomaly_map"], zero_shot_score

  def _detection(self, name, size, limits, score, raw_map, zero_shot_score):
    """Return the result of an image.

    Raises:
      ValueError: a score or the map is not finite.
    """
    scores = [score] if zero_shot_score is None else [score, zero_shot_score]
    if not (np.isfinite(scores).all() and np.isfinite(raw_map).all()):
      raise ValueError(
        f"{name}: the score or the anomaly map is not finite (NaN or "
        "infinity). The parameters of the run may be broken: train or convert "
        "it again."
      )
    return Detection(
      score=float(score),
      limits=limits,
      raw_map=np.asarray(raw_map, np.float32),
      image_size=size,
      smooth_sigma=float(self._config.smooth_sigma),
      zero_shot_score=None if len(scores) == 1 else float(scores[1]),
    )


def _digest(pixels: np.ndarray) -> bytes:
  """Return a digest of decoded pixels, equal for copies of an image."""
  return hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
