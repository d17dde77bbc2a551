"""CoOp for anomaly detection. Zhou et al., IJCV 2022, arXiv:2109.01134.

  Code       Method.prepare
  Code       Method.contexts
  Code       Method.text
  Code       Method.forward
  Code       Method.loss

"Code" is the authors' trainers/coop.py. A prompt is a sequence of learned
context vectors, the state and the name of the class; all prompts share the
context. The published numbers on anomaly detection (AnomalyCLIP, ICLR 2024)
compare each image with the two prompts of its own class.

The defaults are the authors' code with the size that FAPrompt (ICCV 2025)
counts, 9,216 parameters. Fields give the other settings of the code, and the
image side and losses of AnomalyCLIP:

  context_length  12; the released configurations have 16 and 4
  initial         random vectors; "a photo of a" begins with these words
  class_contexts  one context for all prompts; C gives each prompt of C classes
                  its own (CSC), which other classes cannot use
  class_position  the class at the end of the prompt, "middle" or "front"
  vv_from, cls_ln_post, temperature, map_weight
                  plain CLIP with its own logit scale and an image-level loss;
                  6, False, 0.07 and 4 are those of AnomalyCLIP
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from zsad_jax import losses, types
from zsad_jax.layers import (
  class_prompts,
  ranges,
  similarity,
  text_pairs,
)
from zsad_jax.torch_io.rules import Rule


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters, with the authors' values as defaults.

  Attributes:
    context_length: learned vectors of a prompt, where `initial` is "".
    initial: words whose token embeddings the context begins with, one vector
      for each; "" for random vectors.
    class_contexts: number of classes whose prompts have contexts of their own;
      0 for a context that all prompts share.
    class_position: of state and class in the prompt.
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
  class_contexts: int = 0
  class_position: class_prompts.Position = "end"
  states: tuple[str, str] = ("normal {}", "anomalous {}")
  feature_layer: int | None = None
  vv_from: int | None = None
  cls_ln_post: bool = True
  temperature: float | None = None
  map_weight: float = 0.0
  activation: types.Activation = "quick"
  pos_resize: types.PositionResize = "bilinear"

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    ranges.check(
      self,
      counts=["context_length", "feature_layer", "vv_from"],
      positive=["temperature"],
      weights=["class_contexts", "map_weight"],
    )
    class_prompts.check(self.states)
    if self.initial and self.class_contexts:
      raise ValueError(
        "config.method.initial is of one context for all classes: set "
        "config.method.class_contexts to 0, or initial to ''."
      )

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(
    self, rng: jax.Array, backbone: types.Backbone
  ) -> tuple[types.Params, types.Params]:
    """Initialize the context: words, or normal with deviation 0.02."""
    count = 2 * self.class_contexts * self.context_length
    context = class_prompts.init_context(
      rng, backbone, count or self.context_length, self.initial
    )
    if self.class_contexts:
      context = context.reshape(2 * self.class_contexts, -1, context.shape[-1])
    return {"context": context}, {}

  def prepare(
    self, backbone: types.Backbone, class_names: Sequence[str]
  ) -> dict[str, Any]:
    """Arrange the prompts (Code): those of each class, and all together.

    Raises:
      ValueError: each class has its own context, and these are other classes.
    """
    if self.class_contexts not in (0, len(class_names)):
      raise ValueError(
        f"config.method.class_contexts is {self.class_contexts}: this context "
        f"is of as many classes, and cannot be used for {len(class_names)} "
        "others. Set it to 0 for a context that all classes share."
      )
    groups = class_prompts.phrases(class_names, self.states)
    build = lambda groups: class_prompts.build(
      backbone,
      groups,
      self.words,
      position=self.class_position,
      own_vectors=bool(self.class_contexts),
    )
    return {"each": build(groups), "joint": build([sum(groups, [])])}

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

  def contexts(
    self, params: types.Params, num_groups: int
  ) -> Float[Array, "_ m c"]:
    """Return the vectors of each group of prompts, or of all (Code).

    Args:
      params: trainable parameters.
      num_groups: number of groups, all of the same number of prompts.
    """
    context = params["context"]
    groups = num_groups if self.class_contexts else 1
    return context.reshape(groups, -1, context.shape[-1])

  def text(
    self,
    params: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Any],
    class_id: Array,
  ) -> Float[Array, "b 2 d"]:
    """Embed both prompts of each image's class (Code).

    Either the prompts of all classes are embedded once, or those of each image:
    the choice that has fewer tokens.
    """
    each, joint = aux["each"], aux["joint"]
    num_each, num_joint = map(class_prompts.num_tokens, (each, joint))
    if num_joint <= class_id.shape[0] * num_each:
      embeds = class_prompts.encode(
        backbone, joint, self.contexts(params, 1), activation=self.activation
      )
      return embeds.reshape(-1, 2, embeds.shape[-1])[class_id]
    vectors = self.contexts(params, len(each["end"]))
    vectors = vectors[class_id] if self.class_contexts else vectors
    return class_prompts.encode(
      backbone,
      class_prompts.select(each, class_id),
      vectors,
      activation=self.activation,
    )

  def forward(
    self,
    params: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Any],
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
    text = self.text(params, backbone, aux, features["class_id"])
    return text_pairs.compare(backbone, features, text, self.temperature)

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
    aux: Mapping[str, Any],
    features: types.Features,
  ) -> types.Prediction:
    """Return maps of the patches and scores of the class token."""
    del stats
    result = self.forward(params, backbone, aux, features)
    size = similarity.image_size(backbone, features)
    return text_pairs.to_prediction(result, size)


TORCH_NAMES = (Rule(r"ctx", "context"),)  # Of the authors' code.
PAPER_NAME = "CoOp"  # In the tables of the papers.
TINY = dict(context_length=3)  # For a backbone of three blocks, for tests.
