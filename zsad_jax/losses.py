"""Losses of the methods: pure functions, one value per item.

The official implementations share these definitions exactly; see "References"
in each docstring.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from zsad_jax import types

GAMMA = 2.0  # Focusing exponent; all official trainers.
SMOOTH = 1e-5  # Label smoothing of the focal loss; FocalLoss(smooth=1e-5).
DICE_SMOOTH = 1.0  # BinaryDiceLoss(smooth=1).


def focal(
  prob: Float[Array, "*b 2"],
  target: Shaped[Array, "*b"],
  *,
  gamma: int | float = GAMMA,
  smooth: float = SMOOTH,
  state_weights: Sequence[float] = (1.0, 1.0),
) -> Float[Array, "*b"]:
  """Compute the focal loss of the probabilities of the two states.

  The one-hot target is clipped to [smooth, 1 - smooth], and `smooth` is added
  to the probability of the target, so that exact zeros stay finite.

  Args:
    prob: probabilities in [0, 1], states (normal, anomalous) last.
    target: state per item, 0 or 1, of any dtype; a fraction counts as 0, as
      the authors' conversion to integers has it.
    gamma: focusing exponent; 0 gives cross-entropy. Pass integers as int.
    smooth: label smoothing, also added to the probability of the target.
    state_weights: factor of each state.

  Returns:
    One non-negative value per item.

  References:
    Lin et al., ICCV 2017 (Eq. 4); `FocalLoss` of AdaCLIP, AnomalyCLIP,
    FAPrompt, AdaptCLIP and APRIL-GAN.
  """
  normal, anomalous = prob[..., types.NORMAL], prob[..., types.ANOMALOUS]
  positive = target >= 1
  # No one-hot sum: XLA on CPU (jax 0.10.2) miscompiles a sum over the two
  # states of a vmapped one-hot product.
  right = jnp.where(positive, anomalous, normal)
  wrong = jnp.where(positive, normal, anomalous)
  pt = (1.0 - smooth) * right + smooth * wrong + smooth
  # At saturated inputs `pt` exceeds 1 by rounding; an int exponent keeps value
  # and gradient finite there.
  loss = -((1.0 - pt) ** gamma) * jnp.log(pt)
  return loss * jnp.where(positive, *reversed(state_weights))


def binary_focal(
  prob: Float[Array, "*b"],
  target: Float[Array, "*b"],
  *,
  gamma: int | float = GAMMA,
) -> Float[Array, "*b"]:
  """Compute the focal loss of one probability per item.

  Args:
    prob: anomalous probability in [0, 1].
    target: 0 or 1.
    gamma: focusing exponent.

  Returns:
    One non-negative value per item.

  References:
    `BinaryFocalLoss(alpha=1, logits=False)` of FAPrompt and WinCLIP. The log
    of 0 is -100, as in torch's binary_cross_entropy.
  """
  tiny = jnp.finfo(prob.dtype).tiny  # Inside the log, or its gradient is NaN.
  bounded_log = lambda p: jnp.where(p > 0, jnp.log(jnp.maximum(p, tiny)), -100)
  bce = -(target * bounded_log(prob) + (1 - target) * bounded_log(1 - prob))
  return (1.0 - jnp.exp(-bce)) ** gamma * bce


def binary_focal_with_logits(
  logits: Float[Array, "*b"],
  target: Float[Array, "*b"],
  *,
  gamma: int | float = GAMMA,
) -> Float[Array, "*b"]:
  """Compute the focal loss of one logit per item.

  Args:
    logits: of the anomalous state.
    target: 0 or 1.
    gamma: focusing exponent.

  Returns:
    One non-negative value per item.

  References:
    `BinaryFocalLoss(alpha=1, logits=True)` of FAPrompt and WinCLIP.
  """
  # softplus(x) - x t has the right gradient at x = 0; max(x, 0) has not.
  bce = jax.nn.softplus(logits) - logits * target
  return (1.0 - jnp.exp(-bce)) ** gamma * bce


def cross_entropy(
  logits: Float[Array, "*b s"], target: Shaped[Array, "*b"]
) -> Float[Array, "*b"]:
  """Compute the cross-entropy of the states' logits.

  Args:
    logits: states (normal, anomalous) last.
    target: state per item, 0 or 1, of any dtype.

  Returns:
    One non-negative value per item.
  """
  log_prob = jax.nn.log_softmax(logits)
  # Not a one-hot sum, for the reason given in `focal`.
  return -jnp.where(
    target > 0, log_prob[..., types.ANOMALOUS], log_prob[..., types.NORMAL]
  )


def weighted_mean(
  values: Float[Array, " b"], weight: Float[Array, " b"]
) -> Float[Array, ""]:
  """Return the weighted mean; 0 where all weights are 0."""
  return jnp.sum(values * weight) / jnp.maximum(jnp.sum(weight), 1.0)


def total(parts: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
  """Return the sum of named loss terms."""
  return sum(parts.values(), start=jnp.zeros(()))


def dice(
  prob: Float[Array, "*b n"],
  target: Float[Array, "*b n"],
) -> Float[Array, "*b"]:
  """Compute the soft Dice loss over the last axis, without squares.

  The shape defines an item: all pixels of an image in one axis, or one row of
  pixels as in AdaCLIP's official trainer.

  Args:
    prob: probabilities in [0, 1].
    target: 0 or 1.

  Returns:
    One value in [0, 1) per item.

  References:
    Milletari et al., 3DV 2016; `BinaryDiceLoss` of all official trainers.
  """
  overlap = jnp.sum(prob * target, axis=-1)
  total = jnp.sum(prob, axis=-1) + jnp.sum(target, axis=-1)
  return 1.0 - (2.0 * overlap + DICE_SMOOTH) / (total + DICE_SMOOTH)


def segmentation(
  prob: Float[Array, "b h w 2"],
  mask: Shaped[Array, "b h w"],
  *,
  dice_over: str,
) -> Float[Array, "b 3"]:
  """Compute focal loss and Dice losses of a two-channel map per image.

  Args:
    prob: probabilities in [0, 1], states (normal, anomalous) last.
    mask: 1 = anomalous, of any dtype.
    dice_over: "image", or "rows": the mean of one Dice per image row.

  Returns:
    Focal loss, Dice loss of the anomalous and of the normal channel.

  Raises:
    ValueError: unknown `dice_over`.
  """
  if dice_over not in ("image", "rows"):
    raise ValueError(f'dice_over is "image" or "rows", got {dice_over!r}.')
  b, h, w = mask.shape
  # Two axes: a sum over the last of three takes a CPU twenty times as long.
  items = (b * h, w) if dice_over == "rows" else (b, h * w)
  target = mask.astype(prob.dtype).reshape(items)
  normal, anomalous = prob[..., types.NORMAL], prob[..., types.ANOMALOUS]
  values = [
    focal(prob, mask),
    dice(anomalous.reshape(items), target),
    dice(normal.reshape(items), 1.0 - target),
  ]
  return jnp.stack([x.reshape(b, -1).mean(axis=1) for x in values], axis=-1)


def segmentation_levels(
  prob: Float[Array, "b n h w 2"],
  mask: Shaped[Array, "b h w"],
  *,
  dice_over: str,
) -> Float[Array, "b n 3"]:
  """Compute `segmentation` of n maps per image."""
  return jax.vmap(
    lambda m: segmentation(m, mask, dice_over=dice_over),
    in_axes=1,
    out_axes=1,
  )(prob)


def image_score(
  score: Float[Array, " b"],
  logits: Float[Array, "b 2"],
  label: Shaped[Array, " b"],
  *,
  mode: Literal["official", "paper"],
) -> dict[str, Float[Array, " b"]]:
  """Compute FAPrompt's losses of the image score (Eq. 10).

  Args:
    score: anomaly score in [0, 1].
    logits: of the states.
    label: state of each image.
    mode: "paper", focal loss of the score; "official", cross-entropy of the
      logits, and focal loss with the score as a logit.

  Returns:
    Losses by name, one value per image.
  """
  target = label.astype(score.dtype)
  if mode == "paper":
    return {"image_focal": binary_focal(score, target)}
  return {
    "image_ce": cross_entropy(logits, label),
    "image_focal": binary_focal_with_logits(score, target),
  }


def segmentation_parts(
  terms: Float[Array, "b n 3"], weight: Float[Array, " b"]
) -> dict[str, Float[Array, ""]]:
  """Name and average the terms of `segmentation`, summed over n maps.

  Args:
    terms: focal and both Dice losses per image and map.
    weight: of the images; 0 for images without mask.

  Returns:
    "pixel_focal", "dice_anomalous" and "dice_normal".
  """
  names = ("pixel_focal", "dice_anomalous", "dice_normal")
  return {
    name: weighted_mean(terms[..., i].sum(axis=1), weight)
    for i, name in enumerate(names)
  }


def adapter_parts(
  outputs: Sequence[tuple[Float[Array, "b 2"], Float[Array, "b h w 2"]]],
  batch: types.Batch,
  name: str,
) -> dict[str, Float[Array, ""]]:
  """Compute AdaptCLIP's losses of one adapter, summed over its levels.

  Args:
    outputs: image logits and maps of each level.
    batch: label, mask, has_mask and weight of the images.
    name: of the adapter.

  Returns:
    "<name>_global", cross-entropy, and "<name>_local", focal + Dice losses.
  """
  label, mask, weight = batch["label"], batch["mask"], batch["weight"]
  image = [cross_entropy(x, label) for x, _ in outputs]
  pixel = [
    segmentation(maps, mask, dice_over="image").sum(axis=-1)
    for _, maps in outputs
  ]
  # Images without mask have no map loss.
  masked = weight * batch["has_mask"]
  return {
    f"{name}_global": weighted_mean(sum(image[1:], image[0]), weight),
    f"{name}_local": weighted_mean(sum(pixel[1:], pixel[0]), masked),
  }
