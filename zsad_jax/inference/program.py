"""A detector as one function of pixels, for export."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax import types
from zsad_jax.inference import folding, predictor
from zsad_jax.layers import kernels

INPUT, OUTPUTS = "image", ("pred_score", "anomaly_map")
BATCH = "batch"  # Symbol of the batch size.


@dataclasses.dataclass(frozen=True)
class Program:
  """Score and smoothed anomaly map of a batch of images.

  Attributes:
    function: of uint8 (b, s, s, 3); returns scores (b,) and maps (b, s, s),
      float32.
    image_size: s.
    matmul_precision: of matrix products, see `jax.default_matmul_precision`.
    dtype: of the backbone's matrix products.
  """

  function: Callable[[Any], tuple[jax.Array, jax.Array]]
  image_size: int
  matmul_precision: str
  dtype: str

  def fold(self, *, unroll: bool) -> tuple[folding.Folded, Any]:
    """Return the program as steps, and the symbol of the batch size.

    It contains no choice that depends on the machine. All that does not depend
    on the image is a constant.

    Args:
      unroll: see `folding.fold`.
    """
    (batch,) = jax.export.symbolic_shape(BATCH)
    side = self.image_size
    spec = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    # The choices for a GPU of any kind run everywhere.
    with (
      kernels.assume(kernels.Machine("gpu")),
      jax.default_matmul_precision(self.matmul_precision),
    ):
      return folding.fold(self.function, spec, unroll=unroll), batch


def make(
  method: types.DetectionModel,
  backbone: types.ImageBackbone,
  *,
  params: types.Params,
  stats: types.Params,
  class_name: str,
  memory_bank: Any = None,
  image_size: int,
  smooth_sigma: float,
  matmul_precision: str = "highest",
) -> Program:
  """Return the program of a method for one class.

  Args:
    method: the method; a `types.FewShotDetector` where there is a memory bank.
    backbone: frozen CLIP.
    params: trained parameters.
    stats: running statistics.
    class_name: object class in the images, for text prompts.
    memory_bank: of the references, which the program contains; None for a
      zero-shot program.
    image_size: side of the images in pixels.
    smooth_sigma: standard deviation of the Gaussian that smooths the maps, in
      pixels; scores are those of the maps before.
    matmul_precision: see `Program`.
  """
  with jax.default_matmul_precision(matmul_precision):
    aux = method.prepare(backbone, [class_name])
  fuses = isinstance(method, types.FusesZeroShot)

  def function(image):
    batch = {
      "image": image,
      "class_id": jnp.zeros(image.shape[:1], jnp.int32),
    }
    features = predictor.encode(method, backbone, batch)
    (found,) = predictor.predict(
      method,
      fuses,
      smooth_sigma,
      params,
      stats,
      backbone,
      aux,
      features,
      (memory_bank,),
    )
    return found["pred_score"], found["anomaly_map"]

  dtype = str(getattr(backbone, "dtype", "float32"))
  return Program(function, image_size, matmul_precision, dtype)
