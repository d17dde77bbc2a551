"""Comparison of images with text: a normal and an anomalous prompt for each.

CoOp, CoCoOp and TCP differ in their prompts, not in what follows.
"""

from collections.abc import Mapping

import jax
from jaxtyping import Array, Float

from zsad_jax import losses
from zsad_jax.layers import dual_path, similarity
from zsad_jax.types import (
  ANOMALOUS,
  Activation,
  Backbone,
  Batch,
  Features,
  ImageBackbone,
  PositionResize,
  Prediction,
)


def encode(
  backbone: ImageBackbone,
  batch: Batch,
  *,
  feature_layer: int | None,
  vv_from: int | None,
  class_ln_post: bool,
  activation: Activation | None,
  pos_resize: PositionResize,
) -> Features:
  """Embed images and the patches of one layer.

  Args:
    backbone: frozen image encoder.
    batch: normalized images and their classes.
    feature_layer: layer (1-based) of the patches; None for the last one.
    vv_from: see `dual_path.encode`.
    class_ln_post: see `dual_path.encode`.
    activation: see `dual_path.encode`.
    pos_resize: see `dual_path.encode`.

  Returns:
    "class_unit" (b, d) and "patch_units" (b, l, d), unit embeddings, and
    "class_id" (b,).
  """
  image, patches = dual_path.encode_units(
    backbone,
    batch["image"],
    feature_layers=(feature_layer or backbone.vision_layers,),
    vv_from=vv_from,
    class_ln_post=class_ln_post,
    activation=activation,
    pos_resize=pos_resize,
  )
  return {
    "class_unit": image,
    "patch_units": patches[:, 0],
    "class_id": batch["class_id"],
  }


def compare(
  backbone: Backbone,
  features: Features,
  text: Float[Array, "b 2 d"],
  temperature: float | None,
) -> dict[str, Array]:
  """Compare images and patches with the two prompts of each image.

  Args:
    backbone: frozen CLIP.
    features: see `encode`.
    text: embeddings of the prompts, of any length.
    temperature: of the softmax over the states; None for that of CLIP.

  Returns:
    "text_units" (b, 2, d), "image_logits" (b, 2) and "patch_prob" (b, l, 2).
  """
  scale = 1 / temperature if temperature else backbone.logit_scale()
  units = similarity.unit(text)
  image, patches = (
    scale * similarity.cosines(features[name], units)
    for name in ("class_unit", "patch_units")
  )
  return {
    "text_units": units,
    "image_logits": image,
    "patch_prob": jax.nn.softmax(patches),
  }


def loss_parts(
  result: Mapping[str, Array], batch: Batch, map_weight: float
) -> dict[str, Array]:
  """Compute cross-entropy and, where they have a weight, losses on maps.

  Args:
    result: see `compare`.
    batch: labels, masks and weights of the images.
    map_weight: of focal and Dice losses; 0 for none.

  Returns:
    Named terms of the loss.
  """
  image = losses.cross_entropy(result["image_logits"], batch["label"])
  parts = {"image_ce": losses.weighted_mean(image, batch["weight"])}
  if not map_weight:
    return parts
  mask = batch["mask"]
  maps = similarity.to_map(
    result["patch_prob"], mask.shape[1:], method="bilinear"
  )
  pixel = losses.segmentation(maps, mask, dice_over="image")[:, None]
  masked = batch["weight"] * batch["has_mask"]
  pixel_parts = losses.segmentation_parts(pixel, masked)
  return parts | {name: map_weight * x for name, x in pixel_parts.items()}


def to_prediction(
  result: Mapping[str, Array], size: tuple[int, int]
) -> Prediction:
  """Convert the result of `compare` to a prediction of h x w pixels."""
  prob = result["patch_prob"][..., ANOMALOUS:]
  anomaly_map = similarity.to_map(prob, size, method="bilinear")
  score = jax.nn.softmax(result["image_logits"])[:, ANOMALOUS]
  return {"anomaly_map": anomaly_map[..., 0], "pred_score": score}
