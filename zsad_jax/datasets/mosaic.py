"""Mosaic augmentation of AdaCLIP's and VCP-CLIP's training on MVTec AD.

With a given probability a sample is replaced by four test images of its class,
two by two, and its mask by theirs, which varies scale and context. AdaCLIP's
are distinct; VCP-CLIP's are anomalous and drawn with replacement (authors' code
of both).
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

NUM_CELLS = 4

# Separates these draws from the order of the images, drawn from (seed,
# epoch): NumPy pads seeds with zeros, so sample 0 alone would not differ.
_STREAM = 1


def draw(
  siblings: Sequence[int],
  *,
  prob: float,
  seed: int,
  epoch: int,
  sample: int,
  distinct: bool = True,
) -> tuple[int, ...] | None:
  """Return the samples of a mosaic, or None for the sample itself.

  Args:
    siblings: the images of the sample's class to draw from.
    prob: probability of a mosaic.
    seed: of the run.
    epoch: from 0.
    sample: number of the sample in the run's list.
    distinct: draw without replacement.

  Returns:
    Four elements of `siblings`, a function of the arguments alone; None also
    if there are too few.
  """
  if prob == 0 or len(siblings) < (NUM_CELLS if distinct else 1):
    return None
  rng = np.random.default_rng([seed, epoch, sample, _STREAM])
  if rng.random() >= prob:
    return None
  cells = rng.choice(len(siblings), NUM_CELLS, replace=not distinct)
  return tuple(siblings[i] for i in cells)


def paste(images: Sequence[Image.Image]) -> Image.Image:
  """Paste four images, or masks, two by two, without resizing.

  The canvas is twice as wide and high as the first image, whose size is that
  of a cell. A larger image extends into the following cells, which are pasted
  over it, and is cropped at the canvas; around a smaller one remains black.
  """
  width, height = images[0].size
  canvas = Image.new(images[0].mode, (2 * width, 2 * height))
  for i, image in enumerate(images):
    canvas.paste(image, (i % 2 * width, i // 2 * height))
  return canvas
