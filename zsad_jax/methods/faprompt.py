"""FAPrompt. Zhu et al., ICCV 2025, arXiv:2410.10289.

  Eq. 1      Method.prompts
  Eq. 2      compound_prompts.orthogonality
  Eq. 3      Method.compare
  Eq. 4      compound_prompts.refine
  Eq. 5      compound_prompts.prior_loss
  Eq. 6      Method.pixel_terms
  Eq. 7      Method.pixel_terms
  Eq. 8      Method.forward
  Eq. 9      Method.forward
  Eq. 10     losses.image_score
  Eq. 11     Method.loss
  Eq. 12     Method.to_prediction

Numbers are those of the paper's review version. Where it and the authors' code
differ, the default is the code, which made the published numbers; a field of
`Method` gives the paper's text:

  prior_select   the first M patches in raster order; "topk": the most abnormal
  prior_reduce   the prior loss is a mean over channels; "sum"
  oc_weight      0.1, over unordered pairs; 1.0 with oc_ordered=True
  map_weights    (1, 0.5) of the two passes; (1, 1)
  image_loss     cross-entropy plus a focal loss of the score as a logit;
                 "paper": focal loss of the score as a probability
  max_weights    (2, 1) of the two passes' largest values; (1, 1)
  damaged_word   the word "damaged" before "object"; False for none
  round_fp16     deep tokens are rounded to float16
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax import losses, types
from zsad_jax.layers import (
  compound_prompts,
  dual_path,
  prompt_learner,
  ranges,
  similarity,
)
from zsad_jax.torch_io.rules import CheckpointSpec, Rule
from zsad_jax.torch_io.rules import linear as linear_rules
from zsad_jax.types import ANOMALOUS, Backbone, Batch, Features, Params

Aux = Mapping[str, Any]  # See `Method.prepare`.
Result = Mapping[str, Array]  # See `Method.forward`.


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters, with the authors' values as defaults.

  Attributes:
    feature_layer: layer (1-based) whose patch tokens are compared with text.
    vv_from: first layer of the value-value stream; None for plain CLIP.
    num_prompts: K, abnormal prompts.
    normal_length: E, learned vectors of the normal prompt, shared by all.
    abnormal_length: E', own vectors of each abnormal prompt.
    num_patches: M, patches that the prior is computed from.
    prior: use the data-dependent prior (DAP), otherwise both passes are equal.
    deep_length: learned tokens per text layer.
    deep_depth: text layers with learned tokens, see AnomalyCLIP.
    temperature: of the softmax over the states.
    prior_weight: weight of the prior loss.
    oc_weight: weight of the orthogonality loss.
    prior_select, prior_reduce, oc_ordered, map_weights, image_loss,
      max_weights, damaged_word, round_fp16: see above.
    activation: activation of both towers.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  feature_layer: int = 24
  vv_from: int | None = 6
  num_prompts: int = 10
  normal_length: int = 5
  abnormal_length: int = 2
  num_patches: int = 10
  prior: bool = True
  deep_length: int = 4
  deep_depth: int = 9
  temperature: float = 0.07
  prior_weight: float = 1.0
  prior_select: Literal["first", "topk"] = "first"
  prior_reduce: Literal["mean", "sum"] = "mean"
  oc_weight: float = 0.1
  oc_ordered: bool = False
  map_weights: tuple[float, float] = (1.0, 0.5)
  image_loss: Literal["official", "paper"] = "official"
  max_weights: tuple[float, float] = (2.0, 1.0)
  damaged_word: bool = True
  activation: types.Activation = "quick"
  pos_resize: types.PositionResize = "bilinear"
  round_fp16: bool = True

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    counts = "num_prompts num_patches feature_layer vv_from".split()
    counts += "normal_length abnormal_length deep_length deep_depth".split()
    weights = "prior_weight oc_weight map_weights max_weights".split()
    ranges.check(self, counts, ["temperature"], weights=weights)

  @property
  def checkpoint_spec(self) -> CheckpointSpec:
    """Layout of the authors' checkpoint."""
    templates, depth = self.prompt_templates(), self.deep_depth
    return prompt_learner.checkpoint(
      TORCH_NAMES, "prompt_learner", templates=templates, unused_depth=depth
    )

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(self, rng: jax.Array, backbone: Backbone) -> tuple[Params, Params]:
    """Initialize vectors as normal, the prior network as torch does."""
    c, rngs = backbone.text_width, jax.random.split(rng, 5)
    k, m = self.num_prompts, self.abnormal_length
    context = {
      "normal": prompt_learner.init(rngs[0], self.normal_length, c),
      "anomalous": prompt_learner.init(rngs[1], k, m, c),
    }
    sizes = self.deep_depth, self.deep_length, c
    deep = prompt_learner.init_deep(rngs[2], *sizes)
    params: dict[str, Any] = {"context": context, "deep": deep}
    if self.prior:
      c_in = self.num_patches * backbone.embed_dim
      params["prior"] = compound_prompts.init_prior((rngs[3], rngs[4]), c_in, c)
    return params, {}

  def prepare(self, backbone: Backbone, class_names: Sequence[str]) -> Aux:
    """Embed the object-agnostic prompt templates; class names are unused."""
    del class_names
    texts = [template.text for template in self.prompt_templates()]
    aux = prompt_learner.placeholders(backbone, texts)
    trie = prompt_learner.shared_prefix_trie(
      self.num_prompts, aux["embeds"].shape[1], shared=1 + self.normal_length
    )
    return {**aux, "abnormal": trie}

  def prompt_templates(self) -> tuple[prompt_learner.PromptTemplate, ...]:
    """Return the prompts of both states, with placeholder words."""
    m, k = self.normal_length, self.num_prompts
    own, rest = self.abnormal_length, "damaged " * self.damaged_word + "object."
    return (
      prompt_learner.PromptTemplate("N " * m + "object.", m),
      prompt_learner.PromptTemplate("N " * m + "A " * own + rest, m + own, k),
    )

  def encode(self, backbone: types.ImageBackbone, batch: Batch) -> Features:
    """Return unit embeddings of the image and of its patches."""
    image, patches = dual_path.encode_units(
      backbone,
      batch["image"],
      feature_layers=(self.feature_layer,),
      vv_from=self.vv_from,
      class_ln_post=False,
      **self.image_hooks,
    )
    return {"class_unit": image, "patch_units": patches[:, 0]}

  def prompts(self, params: Params, aux: Aux) -> tuple[Array, Array]:
    """Embed normal (1, t, c) and abnormal (K, t, c) prompts (Eq. 1)."""
    normal, abnormal = aux["embeds"][:, None]
    shared = params["context"]["normal"][None]
    repeat = lambda x: jnp.repeat(x, self.num_prompts, axis=0)
    own = jnp.concatenate([repeat(shared), params["context"]["anomalous"]], 1)
    return (
      prompt_learner.with_context(normal, shared),
      prompt_learner.with_context(repeat(abnormal), own),
    )

  def text(
    self, params: Params, backbone: Backbone, embed: Any, end: Any, **hooks: Any
  ) -> Float[Array, "*b d"]:
    """Encode token embeddings, without normalization: (*end.shape, d)."""
    return backbone.text(
      embed,
      end,
      activation=self.activation,
      prompts=prompt_learner.deep_prompts(params["deep"]),
      round_fp16=self.round_fp16,
      **hooks,
    )[0]

  def first_pass(
    self, params: Params, backbone: Backbone, aux: Aux
  ) -> tuple[Float[Array, "1 d"], Float[Array, "k d"]]:
    """Embed normal and abnormal prompts without the prior of an image."""
    prompts = jnp.concatenate(self.prompts(params, aux))
    end = aux["end"][jnp.array([0] + [1] * self.num_prompts)]
    embed = self.text(params, backbone, prompts, end)
    return embed[:1], embed[1:]

  def compare(
    self, features: Features, text_units: Float[Array, "*b 2 d"]
  ) -> tuple[Float[Array, "b l 2"], Float[Array, " b"]]:
    """Return patch probabilities and the largest anomalous one (Eq. 3)."""
    prob = similarity.state_prob(
      features["patch_units"], text_units, self.temperature
    )
    return prob, prob[..., ANOMALOUS].max(axis=1)

  def forward(
    self, params: Params, backbone: Backbone, aux: Aux, features: Features
  ) -> dict[str, Array]:
    """Run both passes; compute image probability and score (Eq. 8) (Eq. 9).

    Returns:
      Dict of: abnormal_text (K, d); text_units (2, d); patch_prob and
      refined_prob (b, l, 2); selected (b, M, d); prior (b, c);
      refined_text (b, K, d); refined_units (b, 2, d); image_logits (b, 2);
      maxima (b, 2), of the two passes; score (b,).
    """
    normal, abnormal = self.first_pass(params, backbone, aux)
    text_units = compound_prompts.prototypes(normal, abnormal)
    patch_prob, max_first = self.compare(features, text_units)
    result = {"normal_text": normal, "abnormal_text": abnormal}
    result |= {"text_units": text_units, "patch_prob": patch_prob}
    if self.prior:
      patches = features["patch_units"]
      selected = compound_prompts.select(
        patches, patch_prob, mode=self.prior_select, count=self.num_patches
      )
      prior = compound_prompts.prior(params["prior"], selected)
      first, length = 1 + self.normal_length, self.abnormal_length
      refined = compound_prompts.refine(
        self.prompts(params, aux)[1], prior, first=first, length=length
      )
      # The prompts of all images in one call, the prefix once per image.
      nodes, end, hooks = prompt_learner.trie_inputs(aux["abnormal"], refined)
      refined = self.text(params, backbone, nodes, end, **hooks)
      result |= {"selected": selected, "prior": prior}
    else:
      refined = jnp.broadcast_to(abnormal, max_first.shape[:1] + abnormal.shape)
    prototypes = jax.vmap(compound_prompts.prototypes, in_axes=(None, 0))
    refined_units = prototypes(normal, refined)
    refined_prob, max_second = self.compare(features, refined_units)
    cosines = similarity.cosines(features["class_unit"], refined_units)
    image_logits = cosines / self.temperature
    maxima = jnp.stack([max_first, max_second], axis=1)
    weights = jnp.array(self.max_weights) / sum(self.max_weights)
    image_prob = jax.nn.softmax(image_logits)[:, ANOMALOUS]
    return result | {
      "refined_text": refined,
      "refined_units": refined_units,
      "refined_prob": refined_prob,
      "image_logits": image_logits,
      "image_prob": image_prob,
      "maxima": maxima,
      "score": 0.5 * (image_prob + maxima @ weights),
    }

  def pixel_terms(self, result: Result, batch: Batch) -> Float[Array, "b 2"]:
    """Return focal + Dice of the maps of both passes (Eq. 6) (Eq. 7)."""
    mask = batch["mask"]
    prob = jnp.stack([result["patch_prob"], result["refined_prob"]], axis=1)
    maps = similarity.to_maps(prob, mask.shape[1:], method="bilinear")
    return losses.segmentation_levels(maps, mask, dice_over="image").sum(-1)

  def parts(self, result: Result, batch: Batch) -> dict[str, Array]:
    """Return the weighted terms of the loss."""
    weight = batch["weight"]
    pixel = self.pixel_terms(result, batch)
    masked = weight * batch["has_mask"]  # Images without mask have no map loss.
    parts = {
      f"map{i + 1}": w * losses.weighted_mean(pixel[:, i], masked)
      for i, w in enumerate(self.map_weights)
    }
    given = result["score"], result["image_logits"], batch["label"]
    image = losses.image_score(*given, mode=self.image_loss)
    for name, values in image.items():
      parts[name] = losses.weighted_mean(values, weight)
    if self.oc_weight:
      parts["orthogonality"] = self.oc_weight * compound_prompts.orthogonality(
        result["abnormal_text"], ordered=self.oc_ordered
      )
    if self.prior:
      parts["prior"] = self.prior_weight * compound_prompts.prior_loss(
        result["prior"], batch["label"], weight, reduce=self.prior_reduce
      )
    return parts

  def loss(
    self,
    params: Params,
    stats: Params,
    backbone: Backbone,
    aux: Aux,
    features: Features,
    batch: Batch,
    rng: jax.Array | None,
  ) -> tuple[Array, tuple[dict[str, Array], Params]]:
    """Return local, global, prior and orthogonality losses (Eq. 11)."""
    del rng  # No dropout.
    parts = self.parts(self.forward(params, backbone, aux, features), batch)
    return losses.total(parts), (parts, stats)

  def predict(
    self,
    params: Params,
    stats: Params,
    backbone: Backbone,
    aux: Aux,
    features: Features,
  ) -> types.Prediction:
    """Return the mean map of both passes and the score."""
    del stats
    result = self.forward(params, backbone, aux, features)
    return self.to_prediction(result, similarity.image_size(backbone, features))

  def to_prediction(
    self, result: Result, size: tuple[int, int]
  ) -> types.Prediction:
    """Convert the result of `forward` to h x w pixels (Eq. 12)."""
    # With two states, 1 - normal = abnormal; interpolation is linear.
    prob = 0.5 * (result["patch_prob"] + result["refined_prob"])
    maps = similarity.to_map(prob[..., ANOMALOUS:], size, method="bilinear")
    return {"anomaly_map": maps[..., 0], "pred_score": result["score"]}


# Names of the parameters in the authors' checkpoint.
TORCH_NAMES = (
  Rule(r"prompt_learner\.ctx_pos", "context/normal", "lead2"),
  Rule(r"prompt_learner\.ctx_neg", "context/anomalous", "lead1"),
  prompt_learner.DEEP_RULE,
  *linear_rules(r"prompt_learner\.patch_meta_net\.linear([12])", r"prior/\1"),
)
SUMMED_LOSSES = ("prior",)  # Over images, as in the authors' code.
PAPER_NAME = "FAPrompt"  # In the tables of the papers.
PAPER_VARIANTS = {
  "k1": "FAPrompt [CAP K=1, + DAP]",
  "no_dap": "FAPrompt [AnomalyCLIP + CAP]",
  "no_cap": "FAPrompt [AnomalyCLIP + DAP]",
}
TINY = dict(  # Settings for a backbone of three blocks of width 64, for tests.
  feature_layer=3,
  vv_from=2,
  num_prompts=3,
  num_patches=4,
  deep_length=2,
  deep_depth=3,
  round_fp16=False,
)
