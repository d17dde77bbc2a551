"""TCP for anomaly detection. Yao et al., CVPR 2024, arXiv:2311.18231.

  Code       Method.fixed_units
  Code       Method.class_tokens
  Code       Method.text
  Code       Method.forward
  Code       Method.loss

"Code" is the authors' trainers/tcp.py. A small network turns CLIP's embeddings
of written prompts into class tokens, which replace the learned context vectors
at the input of a block of the text tower; a loss keeps the text embeddings near
those of the written prompts. FAPrompt (ICCV 2025) compares with two variants:

  fixed_prompts       "pair", one written prompt for each state (TCP_V1), or
                      "winclip", those of WinCLIP (TCP_V2)
Where code and configuration differ, the default is the code; a field of
`Method` gives the other:

  class_token_weight  1, the class tokens overwrite the context; the code
                      ignores the weight in its configuration
The published maps require the image side and losses of AnomalyCLIP (an
inference from the numbers), which are the defaults; the authors' own are plain
CLIP with the cross-entropy of images:

  vv_from             6, the value-value stream; None for plain CLIP
  cls_ln_post         the class token skips ln_post, unlike CLIP's own embedding
  temperature         0.07; None for CLIP's own logit scale
  map_weight          4; 0 for no losses on maps
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zsad_jax import losses, types
from zsad_jax.layers import (
  class_prompts,
  linear,
  prompts,
  ranges,
  similarity,
  text_ensemble,
  text_pairs,
)
from zsad_jax.torch_io.rules import Rule
from zsad_jax.torch_io.rules import linear as linear_rules


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters; see above for the defaults.

  Attributes:
    context_length: learned vectors of a prompt, where `initial` is "".
    initial: words whose token embeddings the context begins with, one vector
      for each; "" for random vectors.
    num_class_tokens: tokens that replace the first tokens after the start.
    class_token_block: block (0-based) of the text tower at whose input they
      replace them.
    class_token_weight: share of the class tokens; the rest is the tokens that
      they replace.
    reduction: width of the embedding divided by that of the hidden layer.
    fixed_prompts: written prompts, see above.
    states: phrases for a normal and an anomalous object; "{}" is the name.
    fixed_weight: weight of the distance to the written prompts; 0 for none.
    feature_layer: layer (1-based) of the patches; None for the last one.
    vv_from: first layer of the value-value stream; None for plain CLIP.
    cls_ln_post: send the class token through ln_post, as CLIP does.
    temperature: of the softmax over the states; None for that of CLIP.
    map_weight: weight of the losses on maps; 0 for none.
    activation: activation of both towers.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  context_length: int = 4
  initial: str = ""
  num_class_tokens: int = 4
  class_token_block: int = 8
  class_token_weight: float = 1.0
  reduction: int = 4
  fixed_prompts: Literal["pair", "winclip"] = "pair"
  states: tuple[str, str] = ("{}", "damaged {}")
  fixed_weight: float = 8.0
  feature_layer: int | None = None
  vv_from: int | None = 6
  cls_ln_post: bool = False
  temperature: float | None = 0.07
  map_weight: float = 4.0
  activation: types.Activation = "quick"
  pos_resize: types.PositionResize = "bilinear"

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    ranges.check(
      self,
      counts=["context_length", "num_class_tokens", "reduction"]
      + ["feature_layer", "vv_from"],
      positive=["temperature"],
      shares=["class_token_weight"],
      weights=["class_token_block", "fixed_weight", "map_weight"],
    )
    class_prompts.check(self.states)

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(
    self, rng: jax.Array, backbone: types.Backbone
  ) -> tuple[types.Params, types.Params]:
    """Initialize the context as CoOp does, and two linear layers as torch."""
    rngs = jax.random.split(rng, 3)
    d, c = backbone.embed_dim, backbone.text_width
    context = class_prompts.init_context(
      rngs[0], backbone, self.context_length, self.initial
    )
    hidden, width = d // self.reduction, self.num_class_tokens * c
    meta_net = {
      "linear1": linear.init(rngs[1], d, hidden),
      "linear2": linear.init(rngs[2], hidden, width),
    }
    return {"context": context, "meta_net": meta_net}, {}

  def prepare(
    self, backbone: types.Backbone, class_names: Sequence[str]
  ) -> dict[str, Any]:
    """Embed the written prompts, and arrange the learned ones.

    Returns:
      "fixed_units" (n, 2, d), see `fixed_units`, and "prompts", 2 n groups of
      one prompt each: their class tokens differ.
    """
    groups = class_prompts.phrases(class_names, self.states)
    each = [[phrase] for group in groups for phrase in group]
    return {
      "fixed_units": self.fixed_units(backbone, class_names),
      "prompts": class_prompts.build(backbone, each, self.words),
    }

  @property
  def words(self) -> str:
    """Words in place of the context, one for each vector."""
    return class_prompts.placeholder_words(self.context_length, self.initial)

  def written_prompts(self, name: str) -> Sequence[Sequence[str]]:
    """Return the written prompts of each state of a class."""
    if self.fixed_prompts == "winclip":
      return prompts.winclip(name.replace("_", " "))
    (states,) = class_prompts.phrases([name], self.states)
    return [[f"This is a photo of {phrase}."] for phrase in states]

  def fixed_units(
    self, backbone: types.Backbone, class_names: Sequence[str]
  ) -> Float[Array, "n 2 d"]:
    """Return the normalized mean of the written prompts' embeddings (Code)."""
    means = text_ensemble.embed(
      backbone, class_names, self.written_prompts, activation=self.activation
    )
    return similarity.unit(means)

  def encode(
    self, backbone: types.ImageBackbone, batch: types.Batch
  ) -> types.Features:
    """Return unit embeddings of the image and of patches."""
    return text_pairs.encode(
      backbone,
      batch,
      feature_layer=self.feature_layer,
      vv_from=self.vv_from,
      class_ln_post=self.cls_ln_post,
      **self.image_hooks,
    )

  def class_tokens(
    self, params: types.Params, fixed_units: Float[Array, "k d"]
  ) -> Float[Array, "k m c"]:
    """Compute the class tokens of k prompts (Code)."""
    net = params["meta_net"]
    hidden = linear.apply(net["linear1"], fixed_units)
    hidden = hidden * jax.nn.sigmoid(1.702 * hidden)
    tokens = linear.apply(net["linear2"], hidden)
    return tokens.reshape(tokens.shape[0], self.num_class_tokens, -1)

  def text(
    self,
    params: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Any],
    class_id: Int[Array, " n"],
  ) -> Float[Array, "n 2 d"]:
    """Embed both prompts of n classes, without normalization (Code)."""
    fixed = aux["fixed_units"][class_id]
    rows = (2 * class_id[:, None] + jnp.arange(2)).ravel()
    tokens = self.class_tokens(params, fixed.reshape(rows.shape[0], -1))
    embeds = class_prompts.encode(
      backbone,
      class_prompts.select(aux["prompts"], rows),
      params["context"][None],
      activation=self.activation,
      prompts={self.class_token_block: tokens},
      prompt_weight=self.class_token_weight,
    )
    return embeds.reshape(fixed.shape)

  def forward(
    self,
    params: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Any],
    features: types.Features,
    *,
    all_classes: bool = False,
  ) -> dict[str, Array]:
    """Compare image and patches with the states of its class (Code).

    Args:
      params: trainable parameters.
      backbone: frozen CLIP.
      aux: see `prepare`.
      features: see `encode`.
      all_classes: embed the prompts of all n classes, as the loss needs, and
        not only those of the images.

    Returns:
      Dict of: text_units (b, 2, d); image_logits (b, 2); patch_prob (b, l, 2);
      all_text_units (n, 2, d) where `all_classes`.
    """
    class_id, count = features["class_id"], len(aux["fixed_units"])
    if not all_classes and class_id.shape[0] < count:
      text = self.text(params, backbone, aux, class_id)
      return text_pairs.compare(backbone, features, text, self.temperature)
    text = self.text(params, backbone, aux, jnp.arange(count))
    result = text_pairs.compare(
      backbone, features, text[class_id], self.temperature
    )
    return result | {"all_text_units": similarity.unit(text)}

  def loss(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Any],
    features: types.Features,
    batch: types.Batch,
    rng: jax.Array | None,
  ) -> tuple[Array, tuple[dict[str, Array], types.Params]]:
    """Return losses of images and maps, and the distance of texts (Code).

    The distance is the mean over the prompts of all training classes, of those
    without an image in the batch, too.
    """
    del rng  # No dropout.
    needed = self.fixed_weight > 0
    result = self.forward(params, backbone, aux, features, all_classes=needed)
    parts = text_pairs.loss_parts(result, batch, self.map_weight)
    if needed:
      cosines = jnp.sum(result["all_text_units"] * aux["fixed_units"], axis=-1)
      parts["fixed_text"] = self.fixed_weight * (1 - cosines.mean())
    return losses.total(parts), (parts, stats)

  def predict(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Any],
    features: types.Features,
  ) -> types.Prediction:
    """Return maps of the patches and scores of the class token."""
    del stats
    result = self.forward(params, backbone, aux, features)
    size = similarity.image_size(backbone, features)
    return text_pairs.to_prediction(result, size)


# Names of the parameters in the authors' code.
TORCH_NAMES = (
  Rule(r"ctx", "context"),
  *linear_rules(r"meta_net\.linear(\d)", r"meta_net/linear\1"),
)
PAPER_NAME = "TCP_V1"  # In the tables of the papers.
PAPER_VARIANTS = {"v2": "TCP_V2"}
# Settings for a backbone of three blocks of width 64, for tests.
TINY = dict(context_length=2, class_token_block=1, vv_from=2)
