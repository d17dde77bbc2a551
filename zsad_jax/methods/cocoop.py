"""CoCoOp for anomaly detection. Zhou et al., CVPR 2022, arXiv:2203.05557.

  Code       Method.shift
  Code       Method.text
  Code       Method.forward
  Code       Method.loss

"Code" is the authors' trainers/cocoop.py. As in CoOp a prompt is a sequence of
learned context vectors, the state and the name of the class; a small network
shifts the vectors by a function of the image, so that each image has its own
text embeddings. They are computed in one call of the text tower; the official
code encodes one image after the other, and the prompts of all classes where
those of the image's own class are needed.

The published numbers on anomaly detection are those of FAPrompt (ICCV 2025),
which counts 83,760 parameters: 12 random vectors and 16 as the reduction. Their
maps require the image side and losses of AnomalyCLIP (an inference from the
numbers), which are the defaults; a field gives the authors' own:

  initial      random vectors; "a photo of a", the released configuration,
               begins with these words and has 4 vectors
  vv_from      6, the value-value stream; None for plain CLIP
  cls_ln_post  the class token skips ln_post, unlike CLIP's own embedding
  temperature  0.07; None for CLIP's own logit scale
  map_weight   4; 0 for the cross-entropy of images alone
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from zsad_jax import losses, types
from zsad_jax.layers import (
  class_prompts,
  linear,
  ranges,
  similarity,
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
    reduction: width of the embedding divided by that of the hidden layer.
    states: phrases for a normal and an anomalous object; "{}" is the name.
    feature_layer: layer (1-based) of the patches; None for the last one.
    vv_from: first layer of the value-value stream; None for plain CLIP.
    cls_ln_post: send the class token through ln_post, as CLIP does.
    temperature: of the softmax over the states; None for that of CLIP.
    map_weight: weight of the losses on maps; 0 for none.
    activation: activation of both towers.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  context_length: int = 12
  initial: str = ""
  reduction: int = 16
  states: tuple[str, str] = ("normal {}", "anomalous {}")
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
      counts=["context_length", "reduction", "feature_layer", "vv_from"],
      positive=["temperature"],
      weights=["map_weight"],
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
    meta_net = {
      "linear1": linear.init(rngs[1], d, d // self.reduction),
      "linear2": linear.init(rngs[2], d // self.reduction, c),
    }
    return {"context": context, "meta_net": meta_net}, {}

  def prepare(
    self, backbone: types.Backbone, class_names: Sequence[str]
  ) -> dict[str, Array]:
    """Arrange the prompts of each class."""
    groups = class_prompts.phrases(class_names, self.states)
    return class_prompts.build(backbone, groups, self.words)

  @property
  def words(self) -> str:
    """Words in place of the context, one for each vector."""
    return class_prompts.placeholder_words(self.context_length, self.initial)

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

  def hidden(
    self, params: types.Params, class_unit: Float[Array, "b d"]
  ) -> Float[Array, "b h"]:
    """Return the hidden layer of the network."""
    return jax.nn.relu(linear.apply(params["meta_net"]["linear1"], class_unit))

  def shift(
    self, params: types.Params, class_unit: Float[Array, "b d"]
  ) -> Float[Array, "b c"]:
    """Compute the shift of all vectors from the image's embedding (Code)."""
    hidden = self.hidden(params, class_unit)
    return linear.apply(params["meta_net"]["linear2"], hidden)

  def vectors(
    self, params: types.Params, class_unit: Float[Array, "b d"]
  ) -> Float[Array, "b m c"]:
    """Return the context vectors of each image."""
    return params["context"] + self.shift(params, class_unit)[:, None]

  def text(
    self,
    params: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Array],
    features: types.Features,
  ) -> Float[Array, "b 2 d"]:
    """Embed both prompts of each image's class for this image (Code)."""
    return class_prompts.encode(
      backbone,
      class_prompts.select(aux, features["class_id"]),
      self.vectors(params, features["class_unit"]),
      activation=self.activation,
    )

  def forward(
    self,
    params: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Array],
    features: types.Features,
  ) -> dict[str, Array]:
    """Compare image and patches with the states of its class (Code).

    Args:
      params: trainable parameters.
      backbone: frozen CLIP.
      aux: see `prepare`.
      features: see `encode`.

    Returns:
      Dict of: text_units (b, 2, d); image_logits (b, 2); patch_prob (b, l, 2).
    """
    text = self.text(params, backbone, aux, features)
    return text_pairs.compare(backbone, features, text, self.temperature)

  def loss(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Array],
    features: types.Features,
    batch: types.Batch,
    rng: jax.Array | None,
  ) -> tuple[Array, tuple[dict[str, Array], types.Params]]:
    """Return the cross-entropy of the states, and losses on maps (Code)."""
    del rng  # No dropout.
    result = self.forward(params, backbone, aux, features)
    parts = text_pairs.loss_parts(result, batch, self.map_weight)
    return losses.total(parts), (parts, stats)

  def predict(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Array],
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
PAPER_NAME = "CoCoOp"  # In the tables of the papers.
# Settings for a backbone of three blocks of width 64, for tests.
TINY = dict(context_length=3, vv_from=2)
