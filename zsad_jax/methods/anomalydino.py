"""AnomalyDINO. Damm et al., WACV 2025, arXiv:2405.14529.

  Code       Method.augment_references
  Code       Method.encode
  Code       Method.build_memory_bank
  Code       Method.foreground
  Code       Method.predict

"Code" is the authors' src/detection.py, src/backbones.py and src/utils.py.
Nothing is trained, and no text is used: the patches of an image are compared
with all patches of rotated references. The score of an image is the mean of the
largest 1 % of the distances; patches of the background have the distance 0.

The default is the authors' setting "agnostic": all references are rotated, and
the background is masked in the classes that their masking test selects, the
objects of MVTec AD without a background texture and all of VisA.

Differences from the authors' code:
- distances are halved, to lie in [0, 1], which ranks alike;
- images are resized to squares, not by their shorter side, and references are
  rotated after that, around the centre of the pixels instead of half a pixel
  away from it;
- maps are smoothed at the resolution of the model, not of the image;
- the first component is found by power iteration, not by a randomized SVD.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from zsad_jax import types
from zsad_jax.layers import (
  dual_path,
  foreground,
  memory_bank,
  ranges,
  rotation,
  score_fusion,
  similarity,
)

# Classes whose background is masked, as the data sets spell them.
MASKED = ("capsule", "hazelnut", "pill", "screw", "toothbrush")  # MVTec AD.
MASKED += ("candle", "capsules", "cashew", "chewinggum", "fryum")  # VisA.
MASKED += ("macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4")
MASKED += ("pipe_fryum",)


@dataclasses.dataclass(frozen=True)
class Method(types.TrainingFree):
  """Settings, with the authors' values as defaults.

  Implements `types.AugmentsReferences`.

  Attributes:
    feature_layer: layer (1-based) whose patches are compared; None: the last.
    rotations: angles of the copies of references in degrees; (0.0,) for none.
    masking: "listed", the background of images of `masked_classes` is masked;
      "always" or "never".
    masked_classes: names of classes.
    mask_threshold: of the first principal component of patches, in units of the
      features: 10 is for DINOv2.
    top_share: share of the patches whose distances are averaged in the score.
  """

  feature_layer: int | None = None
  rotations: tuple[float, ...] = tuple(45.0 * i for i in range(8))
  masking: Literal["listed", "always", "never"] = "listed"
  masked_classes: tuple[str, ...] = MASKED
  mask_threshold: float = 10.0
  top_share: float = 0.01

  def __post_init__(self) -> None:
    types.TrainingFree.__post_init__(self)
    shares = ["top_share"]
    ranges.check(
      self,
      counts=["feature_layer"],
      positive=shares,
      shares=shares,
      weights=["rotations", "mask_threshold"],
    )

  @property
  def compares_references(self) -> bool:
    """Whether references are compared without `WithMemoryBank`: yes."""
    return True

  @property
  def needs_text(self) -> bool:
    """Whether the method needs a text encoder: no."""
    return False

  @property
  def needs_references(self) -> bool:
    """Whether the method requires reference images to predict: yes."""
    return True

  def augment_references(
    self, images: UInt8[np.ndarray, "k s s 3"]
  ) -> UInt8[np.ndarray, "n s s 3"]:
    """Return the rotated copies of references (Code)."""
    return rotation.rotate(images, self.rotations)

  def prepare(
    self, backbone: types.ImageBackbone, class_names: Sequence[str]
  ) -> dict[str, Array]:
    """Select the classes whose background is masked.

    Args:
      backbone: frozen image encoder.
      class_names: n names.

    Returns:
      "masked" (n,), of bool.
    """
    del backbone
    known = {"always": class_names, "never": ()}
    chosen = known.get(self.masking, self.masked_classes)
    return {"masked": jnp.array([name in chosen for name in class_names])}

  def encode(
    self, backbone: types.ImageBackbone, batch: types.Batch
  ) -> types.Features:
    """Return the patches of a layer after the last LayerNorm (Code).

    With CLIP, they are projected into its joint embedding as well.

    Args:
      backbone: frozen image encoder.
      batch: "image" (b, h, w, 3), square, and "class_id".

    Returns:
      "patch_tokens" (b, l, d), not of unit length, and "class_id".
    """
    last = backbone.vision_layers
    layer = last if self.feature_layer is None else self.feature_layer
    dual_path.check_layers(backbone, (layer,))
    _, out = backbone.image(batch["image"], last_patches=layer == last)
    tokens = out[f"block{layer:02d}"][:, 1:]
    return {
      "patch_tokens": backbone.project(tokens, ln_post=True),
      "class_id": batch["class_id"],
    }

  def build_memory_bank(
    self, features: types.Features
  ) -> Float[Array, "n shots l d"]:
    """Return the unit patches of references (Code)."""
    return similarity.unit(features["patch_tokens"])

  def foreground(
    self, aux: Mapping[str, Array], features: types.Features
  ) -> Bool[Array, "b l"]:
    """Return the patches that are compared (Code)."""
    tokens = features["patch_tokens"]
    if self.masking == "never":
      return jnp.ones(tokens.shape[:2], bool)
    found = foreground.mask(tokens, self.mask_threshold)
    return found | ~aux["masked"][features["class_id"]][:, None]

  def predict(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.ImageBackbone,
    aux: Mapping[str, Array],
    features: types.Features,
  ) -> types.Prediction:
    """Predict with features["memory_bank"] (Code).

    Raises:
      ValueError: there is none.
    """
    del params, stats
    if "memory_bank" not in features:
      raise ValueError(
        "AnomalyDINO compares images with references: give normal images of "
        "the same class."
      )
    units = similarity.unit(features["patch_tokens"])
    distance, _ = memory_bank.nearest(units, features["memory_bank"])
    # Half of a cosine distance is in [0, 1], as probabilities are.
    values = jnp.where(self.foreground(aux, features), 0.5 * distance, 0.0)
    size = similarity.image_size(backbone, features, "patch_tokens")
    anomaly_map = similarity.to_map(values[..., None], size, method="bilinear")
    return {
      "anomaly_map": anomaly_map[..., 0],
      "pred_score": score_fusion.top_mean(values, self.top_share),
    }


TITLE = "AnomalyDINO"
TINY = {}  # Settings for a backbone of three blocks, for tests.
