"""APRIL-GAN. Chen et al., VAND challenge at CVPR 2023, arXiv:2305.17382.

  Code       Method.forward
  Code       Method.loss
  Code       Method.fuse_with_references
  Code       Method.category_scores

"Code" is the authors' train.py, test.py and few_shot.py. Linear layers, one for
each feature layer, map patch tokens into CLIP's joint embedding, where they are
compared with the mean embeddings of 245 normal and 175 anomalous prompts; the
image score is that of plain CLIP. With references, the distance of each raw
token to the nearest one of the references is added to the map.

The default is the authors' code; a field of `Method` gives the alternative:

  activation          erf-GELU in both towers; CLIP was trained with "quick"
  transductive_score  with references, the authors' image score depends on all
                      test images of a category; this is off
  dice                one Dice per image; "rows" is that of a batch of one image
The authors add up the maps of all layers; here they are averaged, and divided
so that those with references are in [0, 1], which ranks alike.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax import losses, types
from zsad_jax.layers import (
  dual_path,
  linear,
  memory_bank,
  prompts,
  ranges,
  score_fusion,
  similarity,
  text_ensemble,
)
from zsad_jax.torch_io import rules
from zsad_jax.types import ANOMALOUS, Batch, Features, Params

Aux = Mapping[str, Array]  # See `Method.prepare`.


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters, with the authors' values as defaults.

  Implements `types.FusesZeroShot` and `types.Transductive`.

  Attributes:
    feature_layers: layers (1-based) whose patch tokens are compared with text.
    memory_layers: layers whose patch tokens are compared with references.
    cosine_scale: factor of all cosines, CLIP's own logit scale.
    transductive_score: in evaluations with references, the score of an image is
      the mean of the text score and of the largest value of its map, which is
      scaled by the least and the largest one of all images of the category.
      Otherwise, and in predictions, that value is not scaled.
    dice: see above.
    activation: activation of both towers, see above.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  feature_layers: tuple[int, ...] = (6, 12, 18, 24)
  memory_layers: tuple[int, ...] = (6, 12, 18, 24)
  cosine_scale: float = 100.0
  transductive_score: bool = False
  dice: Literal["image", "rows"] = "image"
  activation: types.Activation = "gelu_erf"
  pos_resize: types.PositionResize = "bicubic_antialias"
  reducible_memory_bank = True

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    counts = ["feature_layers", "memory_layers"]
    ranges.check(self, counts=counts, positive=["cosine_scale"])

  @property
  def checkpoint_spec(self) -> rules.CheckpointSpec:
    """Layout of the authors' checkpoint."""
    return rules.CheckpointSpec(TORCH_NAMES, groups=("trainable_linearlayer",))

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  @property
  def compares_references(self) -> bool:
    """Whether references are compared without `WithMemoryBank`: yes."""
    return True

  @property
  def token_layers(self) -> tuple[int, ...]:
    """All layers (1-based) whose patch tokens are compared, in order."""
    return tuple(sorted({*self.feature_layers, *self.memory_layers}))

  def init(
    self, rng: jax.Array, backbone: types.ImageBackbone
  ) -> tuple[Params, Params]:
    """Initialize the linear layers as torch does."""
    sizes = backbone.vision_width, backbone.embed_dim
    rngs = jax.random.split(rng, len(self.feature_layers))
    heads = {str(i): linear.init(key, *sizes) for i, key in enumerate(rngs)}
    return {"patch_projection": heads}, {}

  def prepare(
    self, backbone: types.Backbone, class_names: Sequence[str]
  ) -> dict[str, Array]:
    """Embed the prompts of each class.

    Args:
      backbone: frozen CLIP.
      class_names: n names.

    Returns:
      "text_units" (n, 2, d): per state the normalized mean of unit embeddings.
    """
    means = text_ensemble.embed(
      backbone, class_names, prompts.april_gan, activation=self.activation
    )
    return {"text_units": similarity.unit(means)}

  def encode(self, backbone: types.ImageBackbone, batch: Batch) -> Features:
    """Return the unit embedding of images and raw patch tokens of layers."""
    layers = self.token_layers
    dual_path.check_layers(backbone, layers)
    embed, out = backbone.image(
      batch["image"],
      last_patches=backbone.vision_layers in layers,
      **self.image_hooks,
    )
    tokens = [out[f"block{layer:02d}"][:, 1:] for layer in layers]
    return {
      "class_unit": similarity.unit(embed),
      "patch_tokens": jnp.stack(tokens, axis=1),
      "class_id": batch["class_id"],
    }

  def forward(
    self, params: Params, aux: Aux, features: Features
  ) -> dict[str, Array]:
    """Compare image and projected patches with the states (Code).

    Args:
      params: trainable parameters.
      aux: see `prepare`.
      features: see `encode`.

    Returns:
      Dict of: image_prob (b, 2); patch_logits (b, levels, l, 2).
    """
    text_units = aux["text_units"][features["class_id"]]
    cosines = similarity.cosines(features["class_unit"], text_units)
    logits = []
    for i, layer in enumerate(self.feature_layers):
      tokens = features["patch_tokens"][:, self.token_layers.index(layer)]
      head = params["patch_projection"][str(i)]
      units = similarity.unit(linear.apply(head, tokens))
      logits.append(similarity.cosines(units, text_units))
    return {
      "image_prob": jax.nn.softmax(self.cosine_scale * cosines),
      "patch_logits": self.cosine_scale * jnp.stack(logits, axis=1),
    }

  def loss(
    self,
    params: Params,
    stats: Params,
    backbone: types.Backbone,
    aux: Aux,
    features: Features,
    batch: Batch,
    rng: jax.Array | None,
  ) -> tuple[Array, tuple[dict[str, Array], Params]]:
    """Return focal loss + Dice loss of anomalies of all layers (Code)."""
    del rng, backbone  # No dropout; the text is embedded already.
    result, mask = self.forward(params, aux, features), batch["mask"]
    maps = similarity.prob_maps(result["patch_logits"], mask.shape[1:])
    terms = losses.segmentation_levels(maps, mask, dice_over=self.dice)
    # Images without mask have no loss.
    weight = batch["weight"] * batch["has_mask"]
    parts = losses.segmentation_parts(terms, weight)
    del parts["dice_normal"]
    return losses.total(parts), (parts, stats)

  def predict(
    self,
    params: Params,
    stats: Params,
    backbone: types.ImageBackbone,
    aux: Aux,
    features: Features,
  ) -> types.Prediction:
    """Return maps and scores, with references where there is a memory bank."""
    del stats
    result = self.forward(params, aux, features)
    size = similarity.image_size(backbone, features, "patch_tokens")
    maps = similarity.prob_maps(result["patch_logits"], size)
    zero_shot: types.Prediction = {
      "anomaly_map": maps[..., ANOMALOUS].mean(axis=1),
      "pred_score": result["image_prob"][:, ANOMALOUS],
    }
    if "memory_bank" not in features:
      return zero_shot
    return self.fuse_with_references(zero_shot, features)

  def memory_units(
    self, patch_tokens: Float[Array, "*b n l c"]
  ) -> Float[Array, "*b m l c"]:
    """Return unit patch tokens of the memory layers."""
    rows = [self.token_layers.index(layer) for layer in self.memory_layers]
    return similarity.unit(patch_tokens[..., jnp.array(rows), :, :])

  def build_memory_bank(
    self, features: Features
  ) -> Float[Array, "n shots m l c"]:
    """Return the unit patch tokens of references, by memory layer."""
    return self.memory_units(features["patch_tokens"])

  def fuse_with_references(
    self, zero_shot: types.Prediction, features: Features
  ) -> types.Prediction:
    """Add the distances to the nearest patches of the references (Code).

    Args:
      zero_shot: prediction without references.
      features: see `encode`, and "memory_bank".

    Returns:
      The prediction, with the `score_terms` of `category_scores`.
    """
    bank = features["memory_bank"]
    query = self.memory_units(features["patch_tokens"])
    n, m = len(self.feature_layers), len(self.memory_layers)
    distances = [
      memory_bank.nearest(query[:, i], bank[:, :, i])[0] for i in range(m)
    ]
    distance = sum(distances[1:], distances[0])[..., None]
    _, *size = zero_shot["anomaly_map"].shape
    few_shot = similarity.to_map(
      distance, (size[0], size[1]), method="bilinear_corners"
    )
    # The authors' sum, divided by its largest value: distances are up to 2.
    total = n * zero_shot["anomaly_map"] + few_shot[..., 0]
    anomaly_map = total / (n + 2 * m)
    terms = zero_shot["pred_score"], anomaly_map.max(axis=(1, 2))
    return {
      "anomaly_map": anomaly_map,
      "pred_score": 0.5 * (terms[0] + terms[1]),
      "score_terms": jnp.stack(terms, axis=-1),
    }

  def category_scores(
    self, terms: Float[np.ndarray, "b 2"]
  ) -> Float[np.ndarray, " b"]:
    """Return the authors' scores of all images of a category (Code).

    Args:
      terms: text score and largest value of the map of each image.

    Returns:
      The mean of both, with the second scaled to [0, 1] over all images.
    """
    return 0.5 * (terms[:, 0] + score_fusion.min_max(terms[:, 1]))


# Names of the parameters in the authors' checkpoint.
TORCH_NAMES = rules.linear(
  r"trainable_linearlayer\.fc\.(\d+)", r"patch_projection/\1"
)
PAPER_NAME = "APRIL-GAN"  # In the tables of the papers.
# Settings for a backbone of three blocks of width 64, for tests.
TINY = dict(feature_layers=(1, 3), memory_layers=(2, 3))
