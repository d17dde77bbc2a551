"""Public Python API: score images with a trained run.

detector = zsad_jax.load("runs/adaclip")
detection = detector("photo.png")
few_shot = detector.with_references(["good/0.png", "good/1.png"])
detections = few_shot(["photo.png", array])
"""

import copy
import functools
from collections.abc import Iterator
from typing import Any, overload

import jax
import numpy as np

from zsad_jax.inference import (
  few_shot,
  inputs,
  predictor,
  sets,
  shrinking,
  tile_stream,
)
from zsad_jax.inference.inputs import ImageInput, ImageInputs
from zsad_jax.inference.tiling import Tiling
from zsad_jax.layers import coreset as coreset_lib
from zsad_jax.runs import categories, set_scores
from zsad_jax.runs import run as run_lib
from zsad_jax.runs import threshold as threshold_lib
from zsad_jax.runs.detection import Detection
from zsad_jax.runtime import distributed


def check_works_alone(run: run_lib.Run) -> None:
  """Check that a run scores images without references.

  Raises:
    ValueError: its method compares images with references only.
  """
  config: Any = run.config
  if run.method.needs_references and not categories.is_used(config):
    raise ValueError(
      f"{config.name} needs references, normal images of the same class: give "
      "--references (in Python, use `with_references`)."
    )


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
    tiling: Tiling | None = None,
  ):
    """Wrap a run that is loaded already.

    Args:
      run: the run.
      class_name: object class in the images, as text prompts contain it.
      threshold: decision threshold; None for the one of `limits`.
      batch_size: largest number of images, or of tiles, per call of the model.
      limits: of a calibration; None for those stored with the run.
      tiling: score overlapping tiles of images and references: the maps of the
        tiles are merged, and the score of an image is the largest one of its
        tiles. None for whole images.

    Raises:
      ValueError: the threshold is NaN, the batch size is not positive, or the
        method does not score tiles.
    """
    set_scores.check_tiling(run, tiling)
    if threshold is not None:
      threshold_lib.check_image_score(threshold)
    if batch_size < 1:
      raise ValueError(f"batch_size is at least 1, got {batch_size}.")
    self._run, class_name = run_lib.of_class(run, class_name)
    self._config: Any = run.config
    self._class_name = class_name
    self._threshold = threshold
    self._batch_size = batch_size
    self._given_limits = limits
    self._tiling = tiling
    self._shrinking = shrinking.ShrinkWarning()  # Also of its copies.
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
  def tiling(self) -> Tiling | None:
    """Size and overlap of tiles; None where whole images are scored."""
    return self._tiling

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
    if not self.has_references:
      check_works_alone(self._run)
    sets.check_count(self._run.method, len(names), self._config.name)
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
    categories.check_takes_references(self._config)
    set_scores.check_references(self._run)
    new = copy.copy(self)
    new._class_name = self._class_name if class_name is None else class_name
    model = self._few_shot_model
    if new._class_name != self._class_name:
      model = model.with_class_names([new._class_name])
    with self._precision():
      new._memory_bank, digests = self._build_memory_bank(model, images, names)
    new._few_shot = model
    new._reference_digests = frozenset(digests)
    return new

  def _build_memory_bank(self, model, images, names):
    """Return the memory bank of references, and the digest of each."""
    if self._tiling is not None:
      return tile_stream.build_memory_bank(
        model,
        self._open(images, names),
        0,
        tiling=self._tiling,
        side=self._config.image_size,
        batch_size=self._batch_size,
      )
    pixels = []
    for batch in self._decode(images, names, self._batch_size):
      pixels += [x.pixels for x in batch if not isinstance(x, str)]
    bank = model.build_memory_bank(
      np.stack(pixels), 0, batch_size=self._batch_size
    )
    return bank, list(map(inputs.digest, pixels))

  @functools.cached_property
  def _zero_shot_model(self):
    """Predictor for images without references."""
    return self._predictor(self._run.method)

  @property
  def _few_shot_model(self):
    """Predictor for images with references, compiled once for all of them."""
    if self._few_shot is None:
      method = self._run.method
      with_bank = few_shot.with_memory_bank(method, **self._config.memory)
      if with_bank is method:
        self._few_shot = self._zero_shot_model
      else:
        self._few_shot = self._predictor(with_bank)
    return self._few_shot

  def _predictor(self, method):
    """Return the compiled functions of a method."""
    with self._precision():
      return predictor.Predictor(
        method,
        self._run.backbone,
        [self._class_name],
        distributed.make_mesh(),
        coreset=coreset_lib.from_settings(**self._config.memory),
      )

  def _precision(self):
    """Set the matmul precision of the run: another run may differ."""
    return jax.default_matmul_precision(self._config.matmul_precision)

  def _decode(self, images, names, batch_size, skip_corrupt=False):
    """Decode images at the resolution of the run, batch by batch."""
    unnamed = iter(names)
    for batch in inputs.decode_batches(
      images,
      names,
      image_size=self._config.image_size,
      batch_size=batch_size,
      skip_corrupt=skip_corrupt,
    ):
      for name, image in zip([next(unnamed) for _ in batch], batch):
        if not isinstance(image, str):
          self._check_size(name, image.size)
      yield batch

  def _open(self, images, names, skip_corrupt=False):
    """Open images in their own size, one by one."""
    for opened in inputs.open_ahead(images, names, skip_corrupt=skip_corrupt):
      if not isinstance(opened, str):
        size = opened.image.height, opened.image.width
        self._check_size(opened.name, size)
      yield opened
      del opened  # Not kept while the next one is opened.

  def _check_size(self, name, size):
    """Warn once if an image is shrunk by a large factor."""
    self._shrinking.check(
      name,
      size,
      side=self._config.image_size,
      patch_size=self._run.backbone.patch_size,
      tiling=self._tiling,
    )

  def _stream(self, images, names, limits, skip_corrupt):
    """Yield positions with detections or messages; see `stream`."""
    if sets.scores_sets(self._run.method):
      batches = self._decode(images, names, self._batch_size, skip_corrupt)
      scored = set_scores.score(
        self._run, self._zero_shot_model, batches, self._batch_size
      )
    elif self._tiling is None:
      scored = self._score_images(images, names, skip_corrupt)
    else:
      scored = self._score_tiles(images, names, skip_corrupt, self._tiling)
    for i, found in enumerate(scored):
      if isinstance(found, str):
        yield i, found
        continue
      if self.has_references and found.digest in self._reference_digests:
        raise ValueError(
          f"{names[i]} is one of the references: it would be compared with "
          "itself. Score other images, or leave it out of the references."
        )
      yield i, self._detection(names[i], found.size, limits, found.predictions)

  def _score_images(self, images, names, skip_corrupt):
    """Yield the prediction of each image, resized as a whole, or a message."""
    size = self._config.image_size
    batch_size = predictor.round_up(min(self._batch_size, max(1, len(images))))
    for batch in self._decode(images, names, batch_size, skip_corrupt):
      pixels = np.zeros((batch_size, size, size, 3), np.uint8)
      readable = [image for image in batch if not isinstance(image, str)]
      for row, image in enumerate(readable):
        pixels[row] = image.pixels
      # Also if none is readable: other processes may have read theirs.
      rows = tile_stream.rows(self._predict(pixels))
      for image in batch:
        if isinstance(image, str):
          yield image
        else:
          yield tile_stream.Predicted(
            image.size, next(rows), inputs.digest(image.pixels)
          )

  def _score_tiles(self, images, names, skip_corrupt, tiling):
    """Yield the prediction of each image from its tiles, or a message."""

    def run(tiles):
      found, *zero_shot = self._predict(tiles)
      scores = [{"pred_score": each["pred_score"]} for each in zero_shot]
      return [found, *scores]

    return tile_stream.predict(
      self._open(images, names, skip_corrupt),
      run,
      tiling=tiling,
      side=self._config.image_size,
      batch_size=predictor.round_up(self._batch_size),
    )

  def _predict(self, pixels):
    """Return predictions of a batch, with references and without."""
    model, banks = self._zero_shot_model, (None,)
    if self.has_references:
      model, banks = self._few_shot_model, (self._memory_bank,)
      if not self._run.method.needs_references:
        banks += (None,)
    batch = {"image": pixels, "class_id": np.zeros(len(pixels), np.int32)}
    with self._precision():
      features = model.encode(distributed.local_slice(batch))
      return distributed.all_gather(
        model.predict(self._run.params, self._run.stats, features, banks)
      )

  def _detection(self, name, size, limits, predictions):
    """Return the result of an image.

    Raises:
      ValueError: a score or the map is not finite.
    """
    score, *zero_shot = [each["pred_score"] for each in predictions]
    raw_map = predictions[0]["anomaly_map"]
    if not (
      np.isfinite([score, *zero_shot]).all() and np.isfinite(raw_map).all()
    ):
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
      image_only=bool(getattr(self._run.method, "image_only", False)),
      zero_shot_score=float(zero_shot[0]) if zero_shot else None,
    )
