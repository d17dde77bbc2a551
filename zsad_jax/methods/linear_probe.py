"""Linear probes of DINOv2 and SAM: baselines of AdaCLIP (arXiv:2407.15795).

  App. 3     Method.forward
  Code       Method.loss

The appendix adapts an image encoder without text "by training on auxiliary
data like AdaCLIP": learnable projection layers after the patch embeddings of
several levels, and no other parameter. "Code" is AdaCLIP's method/trainer.py,
whose losses and data are used; the code of the probes is not published. What
the appendix does not say is decided here, and a field of `Method` gives an
alternative:

  head             levels are projected to the width of CLIP's embedding and
                   compared with the text of AdaCLIP's 48 prompts; "linear2"
                   learns the logits of the two states without any text
  text_activation  erf-GELU in the text tower, as in AdaCLIP's code; CLIP was
                   trained with "quick"
  dice             one Dice per image row, as AdaCLIP's; "image"
The image score is that of one more linear layer on the encoder's embedding:
DINOv2's class token, the mean of SAM's patches. The map is the softmax of the
mean of the levels' logits, as AdaCLIP's.

The image encoder is `config.backbone`. The text is that of
`config.text_backbone`, or of the backbone itself where it is a CLIP.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax import losses, types
from zsad_jax.layers import (
  dual_path,
  linear,
  prompt_learner,
  prompts,
  ranges,
  similarity,
  text_ensemble,
)
from zsad_jax.types import ANOMALOUS, Batch, Features, Params

Aux = Mapping[str, Array]  # See `Method.prepare`.


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters, with those of the appendix's SAM as defaults.

  Attributes:
    feature_layers: layers (1-based) whose patch tokens are projected; 3, 6, 9
      and 12 for DINOv2 ViT-S/14.
    head: see above.
    cosine_scale: factor of all cosines, CLIP's own logit scale.
    text_activation: activation of the text tower, see above.
    dice: see above.
    pos_resize: how the image encoder's position table is resized.
  """

  feature_layers: tuple[int, ...] = (6, 12, 18, 24)
  head: Literal["text", "linear2"] = "text"
  cosine_scale: float = 100.0
  text_activation: types.Activation = "gelu_erf"
  dice: Literal["rows", "image"] = "rows"
  pos_resize: types.PositionResize = "bicubic"

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    ranges.check(self, counts=["feature_layers"], positive=["cosine_scale"])

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Resizing of the position table; the activation is the encoder's own."""
    return {"pos_resize": self.pos_resize}

  @property
  def needs_text(self) -> bool:
    """Whether patches are compared with text."""
    return self.head == "text"

  @property
  def uses_text_backbone(self) -> bool:
    """Whether its text can come from a second model: that of `head`."""
    return self.head == "text"

  def init(
    self, rng: jax.Array, backbone: types.ImageBackbone
  ) -> tuple[Params, Params]:
    """Initialize the linear layers as torch does."""
    dual_path.check_layers(backbone, self.feature_layers)
    width = _text_dim(backbone) if self.head == "text" else 2
    rngs = jax.random.split(rng, len(self.feature_layers) + 1)
    size = backbone.vision_width
    heads = {
      str(i): linear.init(key, size, width) for i, key in enumerate(rngs[1:])
    }
    image = linear.init(rngs[0], backbone.embed_dim, width)
    return {"patch_projection": heads, "image_projection": image}, {}

  def prepare(
    self, backbone: types.ImageBackbone, class_names: Sequence[str]
  ) -> Aux:
    """Embed the prompts of each class.

    Args:
      backbone: frozen models.
      class_names: n names.

    Returns:
      "text_units" (n, 2, d): per state the normalized mean of unit embeddings;
      nothing without text.
    """
    if self.head != "text":
      return {}
    means = text_ensemble.embed(
      prompt_learner.require_text(backbone),
      class_names,
      prompts.adaclip,
      activation=self.text_activation,
    )
    return {"text_units": similarity.unit(means)}

  def encode(self, backbone: types.ImageBackbone, batch: Batch) -> Features:
    """Return the embedding of images and patch tokens of all levels."""
    dual_path.check_layers(backbone, self.feature_layers)
    embed, out = backbone.image(batch["image"], **self.image_hooks)
    tokens = [out[f"block{layer:02d}"][:, 1:] for layer in self.feature_layers]
    return {
      "image_embed": embed,
      "patch_tokens": jnp.stack(tokens, axis=1),
      "class_id": batch["class_id"],
    }

  def forward(
    self, params: Params, aux: Aux, features: Features
  ) -> dict[str, Array]:
    """Project image and patches, and compare with the states (App. 3).

    Args:
      params: trainable parameters.
      aux: see `prepare`.
      features: see `encode`.

    Returns:
      Dict of: image_prob (b, 2); patch_logits (b, levels, l, 2).
    """

    def logits(head, tokens) -> Float[Array, "b *l 2"]:
      projected = linear.apply(head, tokens)
      if self.head != "text":
        return projected
      text_units = aux["text_units"][features["class_id"]]
      units = similarity.unit(projected)
      return self.cosine_scale * similarity.cosines(units, text_units)

    levels = [
      logits(params["patch_projection"][str(i)], features["patch_tokens"][:, i])
      for i in range(len(self.feature_layers))
    ]
    image = logits(params["image_projection"], features["image_embed"])
    return {
      "image_prob": jax.nn.softmax(image),
      "patch_logits": jnp.stack(levels, axis=1),
    }

  def loss(
    self,
    params: Params,
    stats: Params,
    backbone: types.ImageBackbone,
    aux: Aux,
    features: Features,
    batch: Batch,
    rng: jax.Array | None,
  ) -> tuple[Array, tuple[dict[str, Array], Params]]:
    """Return focal losses of image and maps, Dice losses of maps (Code)."""
    del rng, backbone  # No dropout; the text is embedded already.
    result, mask = self.forward(params, aux, features), batch["mask"]
    maps = similarity.prob_maps(result["patch_logits"], mask.shape[1:])
    terms = losses.segmentation_levels(maps, mask, dice_over=self.dice)
    image = losses.focal(result["image_prob"], batch["label"])
    weight = batch["weight"]
    masked = weight * batch["has_mask"]  # Images without mask have no map loss.
    parts = {
      "image_focal": losses.weighted_mean(image, weight),
      **losses.segmentation_parts(terms, masked),
    }
    return losses.total(parts), (parts, stats)

  def predict(
    self,
    params: Params,
    stats: Params,
    backbone: types.ImageBackbone,
    aux: Aux,
    features: Features,
  ) -> types.Prediction:
    """Return maps of the mean logits of all levels, and scores."""
    del stats
    result = self.forward(params, aux, features)
    size = similarity.image_size(backbone, features, "patch_tokens")
    mean = result["patch_logits"].mean(axis=1, keepdims=True)
    maps = similarity.prob_maps(mean, size)
    return {
      "anomaly_map": maps[:, 0, ..., ANOMALOUS],
      "pred_score": result["image_prob"][:, ANOMALOUS],
    }


def _text_dim(backbone: Any) -> int:
  """Return the width of the text embedding."""
  text = prompt_learner.require_text(backbone)
  token = jax.ShapeDtypeStruct((1, text.text_width), jnp.float32)
  return jax.eval_shape(text.project_text, token).shape[-1]


TITLE = "linear probe"
PAPER_NAME = "SAM"  # In the tables of the papers; with SAM ViT-L.
TINY = dict(feature_layers=(1, 3))  # For a backbone of three blocks.
