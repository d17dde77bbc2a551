"""FAPrompt. Zhu et al., ICCV 2025, arXiv:2410.10289.

  Eq. 1      Method.prompts
  Eq. 2      Method.orthogonality
  Eq. 3      Method.compare
  Eq. 4      Method.refined_prompts
  Eq. 5      Method.prior_loss
  Eq. 6      Method.pixel_terms
  Eq. 7      Method.pixel_terms
  Eq. 8      Method.forward
  Eq. 9      Method.forward
  Eq. 10     Method.image_terms
  Eq. 11     Method.loss
  Eq. 12     Method.to_prediction

Numbers are those of the paper's review version. Where it and the authors' code
differ, the default is the code, which made the published numbers; a field of
`Method` gives the paper's text:

  prior_select   the first M patches in raster order; "topk": the most abnormal
  prior_reduce   the prior loss is a mean over channels; "sum"
  oc_weight      0.1, over unordered pairs; 1.0 with oc_ordered=True
  map_weights    (1, 0.5) of the two passes; (1, 1)
  image_loss     cross-entropy, and a focal loss that takes the score for a
                 logit; "paper" takes it for a probability, alone
  max_weights    (2, 1) of the two passes' largest values; (1, 1)
  damaged_word   "damaged" stands before "object"
  round_fp16     deep tokens are rounded to float16
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from zsad_jax import losses, types
from zsad_jax.layers import dual_path, linear, prompt_learner, similarity
from zsad_jax.torch_io.rules import Rule
from zsad_jax.torch_io.rules import linear as linear_rules
from zsad_jax.types import ANOMALOUS, NORMAL

PRIOR_REDUCTION = 16  # Of the prior network's hidden layer (authors' code).

# Names in the authors' checkpoint.
TORCH_NAMES = (
  Rule(r"prompt_learner\.ctx_pos", "context/normal", "lead2"),
  Rule(r"prompt_learner\.ctx_neg", "context/anomalous", "lead1"),
  prompt_learner.DEEP_RULE,
  *linear_rules(r"prompt_learner\.patch_meta_net\.linear([12])", r"prior/\1"),
)
CHECKPOINT = prompt_learner.checkpoint(
  TORCH_NAMES, "prompt_learner", unused=prompt_learner.unused
)


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters, with the authors' values as defaults.

  Attributes:
    feature_layer: layer (1-based) whose patch tokens are compared with the text.
    vv_from: first layer of the value-value stream; None for plain CLIP.
    num_prompts: K, abnormal prompts.
    normal_length: E, learned vectors of the normal prompt, shared by all.
    abnormal_length: E', own vectors of each abnormal prompt.
    num_patches: M, patches that the prior is made of.
    prior: whether there is a data-dependent prior (DAP); without it the
      second pass is the first.
    deep_length: learned tokens per text layer.
    deep_depth: text layers with learned tokens, see AnomalyCLIP.
    temperature: of the softmax over the states.
    prior_weight: weight of the prior loss.
    prior_select: "first" or "topk", see above.
    prior_reduce: "mean" or "sum", see above.
    oc_weight: weight of the orthogonality loss.
    oc_ordered: count each pair twice, see above.
    image_loss: "official" or "paper", see above.
    map_weights, max_weights, damaged_word, round_fp16: see above.
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

  @property
  def image_hooks(self):
    """The activation and the resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(self, rng, backbone):
    """Vectors are normal, the prior network as torch initialises it."""
    c, rngs = backbone.text_width, jax.random.split(rng, 5)
    shape = (self.num_prompts, self.abnormal_length, c)
    context = {
      "normal": prompt_learner.init(rngs[0], self.normal_length, c),
      "anomalous": prompt_learner.init(rngs[1], *shape),
    }
    depth, m = self.deep_depth, self.deep_length
    deep = prompt_learner.init_deep(rngs[2], depth, m, c)
    params = {"context": context, "deep": deep}
    if self.prior:
      c_in = self.num_patches * backbone.embed_dim
      hidden = c_in // PRIOR_REDUCTION
      params["prior"] = {
        "1": linear.init(rngs[3], c_in, hidden),
        "2": linear.init(rngs[4], hidden, c),
      }
    return params, {}

  def prepare(self, backbone, class_names):
    """Placeholder sentences about an object; class names are not used."""
    del class_names
    texts = [sentence.text for sentence in self.sentences()]
    aux = prompt_learner.placeholders(backbone, texts)
    shape = self.num_prompts, aux["embeds"].shape[1]
    tree = prompt_learner.branches(*shape, shared=1 + self.normal_length)
    return {**aux, "abnormal": tree}

  def sentences(self):
    """What the learned vectors of the two states stand in."""
    m, k = self.normal_length, self.num_prompts
    own, rest = self.abnormal_length, "damaged " * self.damaged_word + "object."
    return (
      prompt_learner.Sentence("N " * m + "object.", m),
      prompt_learner.Sentence("N " * m + "A " * own + rest, m + own, k),
    )

  def encode(self, backbone, batch):
    """Unit embeddings of the image and of its patches."""
    image, patches = dual_path.encode(
      backbone,
      batch["image"],
      feature_layers=(self.feature_layer,),
      vv_from=self.vv_from,
      class_ln_post=False,
      **self.image_hooks,
    )
    return {
      "class_unit": similarity.unit(image),
      "patch_units": similarity.unit(patches[0][:, 1:]),
    }

  def prompts(self, params, aux):
    """Embeddings of the prompts: (1, t, c) and (K, t, c) (Eq. 1)."""
    (normal, abnormal), k = aux["embeds"][:, None], self.num_prompts
    shared = params["context"]["normal"][None]
    own = [jnp.repeat(shared, k, axis=0), params["context"]["anomalous"]]
    own = jnp.concatenate(own, axis=1)
    return (
      prompt_learner.with_context(normal, shared),
      prompt_learner.with_context(jnp.repeat(abnormal, k, axis=0), own),
    )

  def refined_prompts(self, abnormal, prior):
    """Adds each image's prior to all own vectors: (b, K, t, c) (Eq. 4).

    Args:
      abnormal: (K, t, c), see `prompts`.
      prior: (b, c).
    """
    first = 1 + self.normal_length  # After the start token.
    row = jnp.arange(abnormal.shape[1])
    own = (row >= first) & (row < first + self.abnormal_length)
    return abnormal[None] + prior[:, None, None] * own[:, None]

  def text(self, params, backbone, prompts, end, **hooks):
    """Embeddings of prompts, not normalised: (*end.shape, d)."""
    return backbone.text(
      prompts,
      end,
      activation=self.activation,
      prompts=prompt_learner.deep_prompts(params["deep"]),
      round_fp16=self.round_fp16,
      **hooks,
    )[0]

  def first_pass(self, params, backbone, aux):
    """Text that no image enters: normal (1, d) and abnormal (K, d)."""
    prompts = jnp.concatenate(self.prompts(params, aux))
    end = aux["end"][jnp.array([0] + [1] * self.num_prompts)]
    embed = self.text(params, backbone, prompts, end)
    return embed[:1], embed[1:]

  def compare(self, features, text_units):
    """Patches against the states: (b, l, 2), largest value (b,) (Eq. 3)."""
    prob = similarity.state_prob(
      features["patch_units"], text_units, self.temperature
    )
    return prob, prob[..., ANOMALOUS].max(axis=1)

  def select(self, features, patch_prob):
    """The M patches that the prior is made of: (b, M, d)."""
    patches = features["patch_units"]
    if self.prior_select == "first":
      return patches[:, : self.num_patches]
    _, top = jax.lax.top_k(patch_prob[..., ANOMALOUS], self.num_patches)
    return jnp.take_along_axis(patches, top[..., None], axis=1)

  def forward(self, params, backbone, aux, features):
    """Both passes, image probability and score (Eq. 8) (Eq. 9).

    Returns:
      Dict of: abnormal_text (K, d); text_units (2, d); patch_prob and
      refined_prob (b, l, 2); selected (b, M, d); prior (b, c);
      refined_text (b, K, d); refined_units (b, 2, d); image_logits (b, 2);
      maxima (b, 2), of the two passes; score (b,).
    """
    normal, abnormal = self.first_pass(params, backbone, aux)
    text_units = _prototypes(normal, abnormal)
    patch_prob, first = self.compare(features, text_units)
    result = {"normal_text": normal, "abnormal_text": abnormal}
    result |= {"text_units": text_units, "patch_prob": patch_prob}
    b = patch_prob.shape[0]
    if self.prior:
      selected = self.select(features, patch_prob)
      hidden = linear.apply(params["prior"]["1"], selected.reshape(b, -1))
      prior = linear.apply(params["prior"]["2"], jax.nn.relu(hidden))
      refined = self.refined_prompts(self.prompts(params, aux)[1], prior)
      # The text of all images in one call, the beginning once an image.
      nodes, end, hooks = prompt_learner.nodes(aux["abnormal"], refined)
      refined = self.text(params, backbone, nodes, end, **hooks)
      result |= {"selected": selected, "prior": prior}
    else:
      refined = jnp.broadcast_to(abnormal, (b, *abnormal.shape))
    refined_units = jax.vmap(_prototypes, in_axes=(None, 0))(normal, refined)
    refined_prob, second = self.compare(features, refined_units)
    cosines = similarity.cosines(features["class_unit"], refined_units)
    image_logits = cosines / self.temperature
    maxima = jnp.stack([first, second], axis=1)
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

  def orthogonality(self, abnormal):
    """Sum of |cosine| over pairs of abnormal prompts, first pass (Eq. 2)."""
    units = similarity.unit(abnormal)
    pairs = jnp.triu(jnp.abs(units @ units.T), k=1).sum()
    return 2 * pairs if self.oc_ordered else pairs

  def prior_loss(self, prior, batch):
    """Squared prior of normal images, summed over images (Eq. 5)."""
    reduce = {"mean": jnp.mean, "sum": jnp.sum}[self.prior_reduce]
    size = reduce(jnp.square(prior), axis=-1)
    return jnp.sum(size * batch["weight"] * (batch["label"] == NORMAL))

  def pixel_terms(self, result, batch):
    """Focal and Dice of the maps of both passes: (b, 2) (Eq. 6) (Eq. 7)."""
    mask = batch["mask"]
    prob = jnp.stack([result["patch_prob"], result["refined_prob"]], axis=1)
    maps = similarity.to_maps(prob, mask.shape[1:], method="bilinear")
    terms = lambda m: losses.segmentation(m, mask, dice_over="image").sum(-1)
    return jax.vmap(terms, in_axes=1, out_axes=1)(maps)

  def image_terms(self, result, batch):
    """Losses of the image score, each (b,) (Eq. 10)."""
    score, label = result["score"], batch["label"]
    target = label.astype(score.dtype)
    if self.image_loss == "paper":
      return {"image_focal": losses.binary_focal(score, target)}
    return {
      "image_ce": losses.cross_entropy(result["image_logits"], label),
      "image_focal": losses.binary_focal_with_logits(score, target),
    }

  def parts(self, result, batch):
    """The weighted summands of the loss, each a scalar."""
    weight = batch["weight"]
    pixel = self.pixel_terms(result, batch)
    masked = weight * batch["has_mask"]  # No masks, no pixel terms.
    parts = {
      f"map{i + 1}": w * losses.weighted_mean(pixel[:, i], masked)
      for i, w in enumerate(self.map_weights)
    }
    for name, values in self.image_terms(result, batch).items():
      parts[name] = losses.weighted_mean(values, weight)
    if self.oc_weight:
      pairs = self.orthogonality(result["abnormal_text"])
      parts["orthogonality"] = self.oc_weight * pairs
    if self.prior:
      prior = self.prior_loss(result["prior"], batch)
      parts["prior"] = self.prior_weight * prior
    return parts

  def loss(self, params, stats, backbone, aux, features, batch, rng):
    """Local, global, prior and orthogonality losses (Eq. 11)."""
    del rng  # No dropout.
    result = self.forward(params, backbone, aux, features)
    parts = self.parts(result, batch)
    return sum(parts.values()), (parts, stats)

  def predict(self, params, stats, backbone, aux, features):
    """Maps of both passes averaged."""
    del stats
    result = self.forward(params, backbone, aux, features)
    return self.to_prediction(result, similarity.image_size(backbone, features))

  def to_prediction(self, result, size):
    """`forward`'s result as a prediction of h x w pixels (Eq. 12)."""
    # With two states, 1 - normal = abnormal; interpolation is linear.
    prob = 0.5 * (result["patch_prob"] + result["refined_prob"])
    maps = similarity.to_map(prob[..., ANOMALOUS:], size, method="bilinear")
    return {"anomaly_map": maps[..., 0], "pred_score": result["score"]}


def _prototypes(normal, abnormal):
  """Unit embeddings (2, d) of the normal and the mean abnormal prompt."""
  mean = abnormal.mean(axis=0, keepdims=True)
  return similarity.unit(jnp.concatenate([normal, mean]))


SUMMED_LOSSES = ("prior",)  # Over images, as in the authors' code.
PAPER_NAME = "FAPrompt"  # In the tables of the papers.
# Ablation of the configuration -> its name in the tables of the papers.
PAPER_VARIANTS = {
  "k1": "FAPrompt [CAP K=1, + DAP]",
  "no_dap": "FAPrompt [AnomalyCLIP + CAP]",
  "no_cap": "FAPrompt [AnomalyCLIP + DAP]",
}
# Settings for a backbone of three blocks of width 64, for tests.
TINY = dict(
  feature_layer=3,
  vv_from=2,
  num_prompts=3,
  num_patches=4,
  deep_length=2,
  deep_depth=3,
  round_fp16=False,
)
