"""Detector without a model: the score is the mean brightness of the image."""

import threading

import numpy as np
import PIL.Image

from zsad_jax.inference import inputs, shrinking
from zsad_jax.runs import detector as detector_lib
from zsad_jax.runs import threshold as threshold_lib

LIMITS = threshold_lib.Threshold(
  image_score=0.5,
  map_low=0.0,
  map_high=1.0,
  source="given",
  pixel=0.75,
  normal_scores=(0.1, 0.2, 0.3),
)
SIDE = 8


class FakeDetector:
  """Scores images by their brightness.

  Attributes:
    sizes: number of images of each call.
    error: raised at the next calls, where it is set.
    gate: calls wait for it.
  """

  limits = LIMITS

  tiling = None

  def __init__(self):
    self._shrinking = shrinking.ShrinkWarning()
    self.sizes = []
    self.error = None
    self.gate = threading.Event()
    self.gate.set()

  def __call__(self, image):
    """Return the result of one image."""
    return next(iter(self.stream([image])))[1]

  def stream(self, images, *, skip_corrupt=False):
    """Yield positions and results, as `runs.detector.Detector.stream`."""
    self.sizes.append(len(images))
    self.gate.wait()
    if self.error:
      raise self.error
    names = inputs.check_all(list(images))
    for i, (image, name) in enumerate(zip(images, names)):
      try:
        decoded = inputs.decode(image, name, SIDE)
        self._shrinking.check(name, decoded.size, side=SIDE, patch_size=1)
        yield i, detect(decoded)
      except ValueError as error:
        if not skip_corrupt:
          raise
        yield i, str(error)


def detect(image):
  """Return the result of a decoded image."""
  values = image.pixels.mean(-1, dtype=np.float32) / np.float32(255)
  return detector_lib.Detection(
    score=float(values.mean()),
    limits=LIMITS,
    raw_map=values,
    image_size=image.size,
    smooth_sigma=0.5,
  )


def write_image(path, value, size=(24, 16)):
  """Write an image of a brightness that JPEG keeps, and a bright corner."""
  pixels = np.full((*size[::-1], 3), value, np.uint8)
  pixels[:5, :6] = 255
  PIL.Image.fromarray(pixels).save(path)
