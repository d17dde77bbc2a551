"""VCP-CLIP. Qu et al., ECCV 2024, arXiv:2407.12276.

  Code       Method.text
  Code       Method.forward
  Code       Method.loss

"Code" is the authors' train.py, test.py and models/. The class name in the
prompts is replaced by vectors that depend on the image (Pre-VCP); every text
block has learned tokens. Projected patches are compared with this text (base
branch), raw patches with text that has attended to them (Post-VCP).

The default is the authors' code; a field of `Method` gives the alternative:

  activation        erf-GELU in both towers; CLIP was trained with "quick"
  use_global        class vectors that depend on no image
  scaled_attention  Post-VCP's logits are not divided by sqrt(width of a head)
  dice              one Dice per image; "rows" is that of a batch of one image
The authors scale maps and scores by the least and the largest one of all test
images of a category, which changes no metric of a category and is left out.
They add up the scores of both branches, which are averaged here. Two parameters
have no effect: the biases of "conv" and "key".
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from zsad_jax import losses, types
from zsad_jax.layers import (
  dual_path,
  linear,
  ranges,
  similarity,
  visual_context,
)
from zsad_jax.torch_io import rules
from zsad_jax.types import ANOMALOUS, Backbone, Batch, Features, Params

# The last word is replaced by the class vectors.
PROMPTS = ("a photo of a good X", "a photo of a damaged X")
NUM_WORDS = 7  # Their other tokens, start and end included.
MAX_TOKENS = 77  # Of CLIP's text tower.
INITIAL_SCALE = math.log(1 / 0.07)  # Of both branches; its exponential is used.


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters, with the authors' values as defaults.

  Attributes:
    feature_layers: layers (1-based) whose patch tokens are compared with text.
    num_class_vectors: r, vectors in place of the class name.
    deep_length: n, learned tokens per text block.
    dropout: of the learned tokens, in training.
    token_norm_epsilon: of the LayerNorm after the last text block; CLIP's own
      LayerNorm, which follows, has 1e-5.
    use_global: whether class vectors depend on the image.
    num_heads: attention heads of Post-VCP.
    scaled_attention: see above.
    base_weight: weight of the base branch's map; Post-VCP's has the rest.
    top_pixels: the score is the mean of this many largest values of the maps.
    dice: see above.
    activation: activation of both towers, see above.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  feature_layers: tuple[int, ...] = (6, 12, 18, 24)
  num_class_vectors: int = 2
  deep_length: int = 1
  dropout: float = 0.1
  token_norm_epsilon: float = 1e-6
  use_global: bool = True
  num_heads: int = 8
  scaled_attention: bool = False
  base_weight: float = 0.2
  top_pixels: int = 2000
  dice: Literal["image", "rows"] = "image"
  activation: types.Activation = "gelu_erf"
  pos_resize: types.PositionResize = "bicubic_antialias"

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    counts = "feature_layers num_class_vectors deep_length num_heads top_pixels"
    shares, positive = ["dropout", "base_weight"], ["token_norm_epsilon"]
    ranges.check(self, counts.split(), positive, shares)
    if self.dropout == 1:
      raise ValueError("config.method.dropout has to be less than 1, got 1.")
    tokens = NUM_WORDS + self.num_class_vectors + self.deep_length
    if tokens > MAX_TOKENS:
      raise ValueError(
        "config.method.num_class_vectors and deep_length have to leave room in "
        f"CLIP's {MAX_TOKENS} tokens, got prompts of {tokens}."
      )

  @property
  def checkpoint_spec(self) -> rules.CheckpointSpec:
    """Layout of the authors' checkpoint."""
    return rules.CheckpointSpec(
      TORCH_NAMES,
      groups=("trainable_linearlayer", "New_Lan_Embed", "Zero_try"),
      unused=lambda _, backbone: {
        "prompt_text_projection": (backbone.text_width, backbone.embed_dim)
      },
    )

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(self, rng: jax.Array, backbone: Backbone) -> tuple[Params, Params]:
    """Initialize all parameters as the authors do."""
    c, d = backbone.vision_width, backbone.embed_dim
    width = backbone.text_width
    if c % self.num_heads:
      raise ValueError(
        f"config.method.num_heads has to divide the {c} channels of the vision "
        f"tower, got {self.num_heads}."
      )
    rngs = jax.random.split(rng, 4)
    heads = jax.random.split(rngs[0], len(self.feature_layers))
    init = visual_context.init_class_vectors
    return {
      "class_vectors": init(rngs[1], self.num_class_vectors, width),
      "deep": visual_context.init_deep(
        rngs[2], backbone.text_layers, self.deep_length, width
      ),
      "base": {str(i): linear.init(key, c, d) for i, key in enumerate(heads)},
      "post": visual_context.init_post(rngs[3], d, c),
      "log_scale": {x: jnp.float32(INITIAL_SCALE) for x in ("base", "post")},
    }, {}

  def prepare(
    self, backbone: Backbone, class_names: Sequence[str]
  ) -> dict[str, Array]:
    """Embed the words of the prompts; class names are unused.

    Args:
      backbone: frozen CLIP.
      class_names: unused.

    Returns:
      "embeds" (2, t, c), of normal and anomalous prompt, the end token last.
    """
    del class_names
    ids, end = backbone.tokenize(PROMPTS)
    assert (end == ids.shape[1] - 1).all(), "Both prompts are equally long."
    return {"embeds": backbone.embed_tokens(ids)}

  def encode(self, backbone: types.ImageBackbone, batch: Batch) -> Features:
    """Return embeddings of images and raw patch tokens of the layers."""
    dual_path.check_layers(backbone, self.feature_layers)
    embed, out = backbone.image(
      batch["image"],
      last_patches=backbone.vision_layers in self.feature_layers,
      **self.image_hooks,
    )
    tokens = [out[f"block{layer:02d}"][:, 1:] for layer in self.feature_layers]
    return {"image_embed": embed, "patch_tokens": jnp.stack(tokens, axis=1)}

  def text(
    self,
    params: Params,
    backbone: Backbone,
    aux: Mapping[str, Array],
    image_embed: Float[Array, "b d"],
    keep: Bool[Array, "_ 2 j n c"] | None = None,
  ) -> Float[Array, "_ 2 d"]:
    """Embed both states for all images in one call (Code).

    Args:
      params: trainable parameters.
      backbone: frozen CLIP.
      aux: see `prepare`.
      image_embed: see `encode`.
      keep: see `visual_context.draw_kept`.

    Returns:
      Unit embeddings; the leading axis is 1 where no image is used.
    """
    used = image_embed if self.use_global else None
    vectors = visual_context.class_vectors(params["class_vectors"], used)
    if keep is not None:
      vectors = jnp.broadcast_to(vectors, (keep.shape[0], *vectors.shape[1:]))
    hole = aux["embeds"].shape[1] - 2  # The word before the end token.
    embeds = visual_context.with_class_vectors(aux["embeds"], vectors, hole)
    b, s, t, c = embeds.shape
    end = jnp.full(b * s, t - 1, jnp.int32)
    _, out = backbone.text(
      embeds.reshape(b * s, t, c),
      end,
      activation=self.activation,
      prompts=visual_context.deep_tokens(params["deep"], keep, self.dropout),
      prompt_mode="insert",
    )
    last = out[f"block{backbone.text_layers:02d}"][:, -1]  # The end token.
    last = visual_context.token_norm(
      params["deep"]["norm"], last, self.token_norm_epsilon
    )
    return similarity.unit(backbone.project_text(last)).reshape(b, s, -1)

  def forward(
    self,
    params: Params,
    backbone: Backbone,
    aux: Mapping[str, Array],
    features: Features,
    keep: Bool[Array, "_ 2 j n c"] | None = None,
  ) -> dict[str, Array]:
    """Compare patches with the text, in both branches (Code).

    Args:
      params: trainable parameters.
      backbone: frozen CLIP.
      aux: see `prepare`.
      features: see `encode`.
      keep: see `visual_context.draw_kept`.

    Returns:
      Dict of: text_units (b, 2, d); post_units (b, n, 2, c); logits "base" and
      "post" (b, n, l, 2).
    """
    image_embed, tokens = features["image_embed"], features["patch_tokens"]
    text_units = self.text(params, backbone, aux, image_embed, keep)
    shape = (image_embed.shape[0], *text_units.shape[1:])
    text_units = jnp.broadcast_to(text_units, shape)
    scale = {k: jnp.exp(x) for k, x in params["log_scale"].items()}
    base = []
    for i in range(len(self.feature_layers)):
      units = similarity.unit(
        linear.apply(params["base"][str(i)], tokens[:, i])
      )
      base.append(similarity.cosines(units, text_units))
    patch_units = similarity.unit(tokens)
    post_units = visual_context.post_text(
      params["post"],
      text_units,
      patch_units,
      num_heads=self.num_heads,
      scaled=self.scaled_attention,
    )
    post = [
      similarity.cosines(patch_units[:, i], post_units[:, i])
      for i in range(len(self.feature_layers))
    ]
    return {
      "text_units": text_units,
      "post_units": post_units,
      "base": scale["base"] * jnp.stack(base, axis=1),
      "post": scale["post"] * jnp.stack(post, axis=1),
    }

  def loss(
    self,
    params: Params,
    stats: Params,
    backbone: Backbone,
    aux: Mapping[str, Array],
    features: Features,
    batch: Batch,
    rng: jax.Array | None,
  ) -> tuple[Array, tuple[dict[str, Array], Params]]:
    """Return focal loss + Dice loss of anomalies, both branches (Code)."""
    number = features["image_embed"].shape[0] if self.use_global else 1
    keep = visual_context.draw_kept(
      params["deep"], (number, len(PROMPTS)), rng, self.dropout
    )
    result = self.forward(params, backbone, aux, features, keep)
    parts = self.loss_parts(result, batch)
    return losses.total(parts), (parts, stats)

  def loss_parts(
    self, result: Mapping[str, Array], batch: Batch
  ) -> dict[str, Array]:
    """Return the losses of each branch, summed over layers."""
    mask, parts = binarize(batch["mask"]), {}
    size = (mask.shape[1], mask.shape[2])
    # Images without mask have no loss.
    weight = batch["weight"] * batch["has_mask"]
    for branch in ("base", "post"):
      maps = similarity.prob_maps(result[branch], size)
      terms = losses.segmentation_levels(maps, mask, dice_over=self.dice)
      found = losses.segmentation_parts(terms, weight)
      parts[f"{branch}_focal"] = found["pixel_focal"]
      parts[f"{branch}_dice"] = found["dice_anomalous"]
    return parts

  def predict(
    self,
    params: Params,
    stats: Params,
    backbone: Backbone,
    aux: Mapping[str, Array],
    features: Features,
  ) -> types.Prediction:
    """Return the weighted mean of both branches' maps, and scores."""
    del stats
    result = self.forward(params, backbone, aux, features)
    size = similarity.image_size(backbone, features, "patch_tokens")
    return self.to_prediction(result, size)

  def to_prediction(
    self, result: Mapping[str, Array], size: tuple[int, int]
  ) -> types.Prediction:
    """Convert the result of `forward` to a prediction of h x w pixels."""
    base, post = (
      similarity.prob_maps(result[branch], size)[..., ANOMALOUS].mean(axis=1)
      for branch in ("base", "post")
    )
    score = 0.5 * (self.top_mean(base) + self.top_mean(post))
    anomaly_map = self.base_weight * base + (1 - self.base_weight) * post
    return {"anomaly_map": anomaly_map, "pred_score": score}

  def top_mean(self, maps: Float[Array, "b h w"]) -> Float[Array, " b"]:
    """Return the mean of the largest values of each map."""
    flat = maps.reshape(maps.shape[0], -1)
    count = min(self.top_pixels, flat.shape[1])
    return jax.lax.top_k(flat, count)[0].mean(axis=1)


def binarize(mask: Shaped[Array, "b h w"]) -> Shaped[Array, "b h w"]:
  """Round a mask to 0 and 1; 0.5 remains, as in the authors' code."""
  one, zero = jnp.ones_like(mask), jnp.zeros_like(mask)
  return jnp.where(mask > 0.5, one, jnp.where(mask < 0.5, zero, mask))


# Names of the parameters in the authors' checkpoint.
TORCH_NAMES = (
  *rules.linear(r"trainable_linearlayer\.fc\.(\d+)", r"base/\1"),
  rules.Rule(r"New_Lan_Embed\.prompt_query", "class_vectors/query", "lead1"),
  *rules.conv1d(r"New_Lan_Embed\.prompt_linear1\.fc", "class_vectors/conv"),
  rules.Rule(r"New_Lan_Embed\.prompt_temp", "log_scale/base"),
  rules.Rule(r"Zero_try\.prompt_temp_l1", "log_scale/post"),
  *rules.pointwise(r"Zero_try\.q_proj_pre", "post/query"),
  *rules.pointwise(r"Zero_try\.k_proj_pre_1", "post/key"),
  *rules.pointwise(r"Zero_try\.v_proj_pre_1", "post/value"),
  *rules.pointwise(r"Zero_try\.proj_post_t", "post/output"),
  rules.Rule(r"prompt_embeddings", "deep/first", "lead1"),
  rules.Rule(r"deep_prompt_embeddings", "deep/rest"),
  *rules.linear(r"prompt_proj", "deep/projection"),
  *rules.norm(r"prompt_norm", "deep/norm"),
)
PAPER_NAME = "VCP-CLIP"
# Settings for a backbone of three blocks of width 64, for tests.
TINY = dict(feature_layers=(1, 3), dropout=0.0, top_pixels=50)
