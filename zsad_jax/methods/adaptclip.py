"""AdaptCLIP. Gao et al., AAAI 2026, arXiv:2505.09926.

  Eq. 1      Method.branches
  Eq. 2      Method.branches
  Eq. 3      Method.adapted
  Eq. 4      Method.text
  Eq. 5      prompt_query.align
  Eq. 6      prompt_query.joint
  Eq. 7      prompt_query.local_head
  Eq. 8      prompt_query.global_head
  Code       Method.loss
  Code       Method.predict

Where paper and authors' code differ, the default is the code, which made the
published numbers; a field of `Method` gives the paper's text:

  fusion         the score looks at the map's maximum and, with references,
                 maps and scores are harmonic means with the distance to the
                 references; "paper" averages the adapters
  vv_from        patches come from the value-value stream; None for plain CLIP
  pool_topk      mean of the 10 largest values; 1 is max pooling
  share_heads    one pair of heads for all levels; False gives each its own
  alias_feature_layer      False; True for what the authors' code does to a layer right
                 before `vv_from`, whose tokens it overwrites in place
  context        query and residual; False for the residual alone (ablation)
  joint          visual and textual adapter apart; True compares the outputs
                 of both with each other (ablation)
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from zsad_jax import losses, types
from zsad_jax.layers import (
  dual_path,
  prompt_learner,
  prompt_query,
  prompts,
  residual_mlp,
  similarity,
  smoothing,
)
from zsad_jax.torch_io.rules import Rule
from zsad_jax.types import ANOMALOUS

# Names in the authors' checkpoint, "adater" being theirs.
_LOCAL = r"visual_learner\.local_adater", "visual/local"
_GLOBAL = r"visual_learner\.global_adapter", "visual/global"
TORCH_NAMES = (
  Rule(r"textual_learner\.ctx_pos", "textual/normal", "lead2"),
  Rule(r"textual_learner\.ctx_neg", "textual/anomalous", "lead2"),
  *residual_mlp.rules(*_LOCAL),
  *residual_mlp.rules(*_GLOBAL),
  *prompt_query.TORCH_NAMES,
)
TORCH_STATS = (
  *residual_mlp.stats_rules(*_LOCAL),
  *residual_mlp.stats_rules(*_GLOBAL),
  *prompt_query.TORCH_STATS,
)
CHECKPOINT = prompt_learner.checkpoint(
  TORCH_NAMES,
  *("textual_learner", "visual_learner", "pq_learner"),
  stats=TORCH_STATS,
  copies=prompt_query.copies,
)
STATIC = prompts.adaptclip()


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters, with the authors' values as defaults.

  Attributes:
    feature_layers: layers (1-based) that are compared with references; the last one is
      also compared with the text.
    vv_from: first layer of the value-value stream; None for plain CLIP.
    alias_feature_layer: read the last layer where the layer before `vv_from` is meant.
    visual: whether there is the visual adapter.
    textual: whether there is the textual adapter.
    prompt_query: whether there is the prompt-query adapter.
    joint: see above; needs both of the first two adapters.
    context: see above.
    context_length: r, learned vectors per prompt.
    reduction: of the visual adapter's hidden layer.
    head_widths: of the two stages of the prompt-query adapter's heads.
    pool_topk: see above.
    share_heads: see above.
    train_shots: references per training image.
    temperature: of the softmax over the states.
    fusion: "official" or "paper", see above.
    sigma: of the Gaussian, in pixels, before a map's maximum is taken.
    activation: activation of both towers.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
    cls_ln_post: send the class token through ln_post.
  """

  feature_layers: tuple[int, ...] = (6, 12, 18, 24)
  vv_from: int | None = 6
  alias_feature_layer: bool = False
  visual: bool = True
  textual: bool = True
  prompt_query: bool = True
  joint: bool = False
  context: bool = True
  context_length: int = 12
  reduction: int = 4
  head_widths: tuple[int, int] = (128, 64)
  pool_topk: int = 10
  share_heads: bool = True
  train_shots: int = 1
  temperature: float = 0.07
  fusion: Literal["official", "paper"] = "official"
  sigma: float = 4.0
  activation: types.Activation = "quick"
  pos_resize: types.PositionResize = "bilinear"
  cls_ln_post: bool = False

  def __post_init__(self):
    types.Method.__post_init__(self)
    if self.joint and not (self.visual and self.textual):
      raise ValueError("config.method.joint needs visual and textual.")

  @property
  def num_references(self):
    return self.train_shots if self.prompt_query else 0

  @property
  def needs_references(self):
    return self.prompt_query and not (self.visual or self.textual)

  @property
  def image_hooks(self):
    """The activation and the resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(self, rng, backbone):
    """Prompts are normal, all layers as torch initialises them."""
    rngs = jax.random.split(rng, 3)
    params, stats = {}, {}
    if self.textual:
      shape = (self.context_length, backbone.text_width)
      params["textual"] = {
        state: prompt_learner.init(key, *shape)
        for state, key in zip(
          ("normal", "anomalous"), jax.random.split(rngs[0])
        )
      }
    if self.visual:
      params["visual"], stats["visual"] = {}, {}
      for name, key in zip(("global", "local"), jax.random.split(rngs[1])):
        params["visual"][name], stats["visual"][name] = residual_mlp.init(
          key, backbone.embed_dim, backbone.embed_dim // self.reduction
        )
    if self.prompt_query:
      params["prompt_query"], stats["prompt_query"] = prompt_query.init(
        rngs[2],
        backbone.embed_dim,
        levels=len(self.feature_layers),
        widths=self.head_widths,
        share_heads=self.share_heads,
      )
    return params, stats

  def prepare(self, backbone, class_names):
    """Placeholders and static text about an object; class names are unused."""
    del class_names
    texts = [sentence.text for sentence in self.prompt_templates()]
    static = jax.jit(self.static_text)(
      backbone, prompt_learner.placeholders(backbone, sum(STATIC, []))
    )
    return {
      **prompt_learner.placeholders(backbone, texts),
      "static_units": similarity.unit(static),
    }

  def prompt_templates(self):
    """What the learned vectors of the two states stand in."""
    m = self.context_length
    return (prompt_learner.PromptTemplate(" ".join(["X"] * m) + ".", m),) * 2

  def static_text(self, backbone, sentences):
    """Mean embedding of the fixed sentences of each state: (2, d)."""
    embed, _ = backbone.text(
      sentences["embeds"], sentences["end"], activation=self.activation
    )
    normal = len(STATIC[0])
    return jnp.stack([embed[:normal].mean(0), embed[normal:].mean(0)])

  def encode(self, backbone, batch):
    """Embeddings of the image and of all tokens of each level."""
    read = lambda layer: (
      self.feature_layers[-1] if self._overwritten(layer) else layer
    )
    image, tokens = dual_path.encode(
      backbone,
      batch["image"],
      feature_layers=[read(layer) for layer in self.feature_layers],
      vv_from=self.vv_from,
      class_ln_post=self.cls_ln_post,
      **self.image_hooks,
    )
    patches = similarity.unit(jnp.stack(tokens, axis=1)[:, :, 1:])
    # The last level is kept with its class token and length, for the adapter.
    return {"image": image, "tokens": tokens[-1], "patch_units": patches}

  def _overwritten(self, layer):
    return self.alias_feature_layer and layer + 1 == self.vv_from

  def build_memory_bank(self, features):
    """Patches of references: (n, shots, levels, l, d) as they are."""
    return features["patch_units"]

  def learned_prompts(self, params, aux):
    """Embeddings of the two sentences, learned vectors in place: (2, t, c)."""
    vectors = [params["textual"][name] for name in ("normal", "anomalous")]
    return prompt_learner.with_context(aux["embeds"], jnp.stack(vectors))

  def text(self, params, backbone, aux):
    """Embeddings of the learned states, not normalised: (2, d) (Eq. 4)."""
    prompts_ = self.learned_prompts(params, aux)
    embed, _ = backbone.text(prompts_, aux["end"], activation=self.activation)
    return embed

  def adapted(self, params, stats, features, weight):
    """Adds the visual adapter's MLP to both kinds of tokens (Eq. 3).

    Returns:
      The image (b, d), all tokens (b, 1 + l, d), not normalised, and the new
      statistics.
    """
    new, result = {}, []
    for name, key in (("global", "image"), ("local", "tokens")):
      x, new[name] = residual_mlp.apply(
        params[name], stats[name], features[key], weight=weight
      )
      result.append(x)
    return (*result, new)

  def branches(self, params, stats, backbone, aux, features, weight):
    """What the first two adapters say (Eq. 1) (Eq. 2).

    Args:
      weight: of the images in the batch's statistics (training), or None for
        the running statistics.

    Returns:
      Per branch the logits (b, 2) and the patch probabilities (b, l, 2), and
      the new statistics.
    """
    plain = features["image"], features["tokens"]
    sides, new = {}, dict(stats)
    if self.visual:
      image, tokens, new["visual"] = self.adapted(
        params["visual"], stats["visual"], features, weight
      )
      sides["visual"] = (image, tokens), aux["static_units"]
    if self.textual:
      learned = similarity.unit(self.text(params, backbone, aux))
      sides["textual"] = plain, learned
    if self.joint:
      sides = {"joint": (sides["visual"][0], learned)}
    if not (sides or self.prompt_query):  # CLIP as it is.
      sides["clip"] = plain, aux["static_units"]
    result = {}
    for name, ((image, tokens), text_units) in sides.items():
      cosines = similarity.cosines(similarity.unit(image), text_units)
      prob = similarity.state_prob(
        similarity.unit(tokens[:, 1:]), text_units, self.temperature
      )
      result[name] = cosines / self.temperature, prob
    return result, new

  def compare(self, params, stats, features, size, weight):
    """What the prompt-query adapter says of each level; see prompt_query."""
    return prompt_query.forward(
      params["prompt_query"],
      stats["prompt_query"],
      features["patch_units"],
      features["memory_bank"],
      size,
      context=self.context,
      topk=self.pool_topk,
      weight=weight,
    )

  def loss(self, params, stats, backbone, aux, features, batch, rng):
    """Cross-entropy, focal and Dice of every adapter and level (Code)."""
    del rng  # No dropout.
    weight, mask = batch["weight"], batch["mask"]
    size = mask.shape[1:]
    found, stats = self.branches(params, stats, backbone, aux, features, weight)
    outputs = {
      name: [(logits, similarity.to_map(prob, size, method="bilinear"))]
      for name, (logits, prob) in found.items()
    }
    if self.prompt_query:
      levels, stats["prompt_query"] = self.compare(
        params, stats, features, size, weight
      )
      outputs["prompt_query"] = [(x["logits"], x["maps"]) for x in levels]
    masked = weight * batch["has_mask"]  # No masks, no pixel terms.
    parts = {}
    for name, pairs in outputs.items():
      image = [losses.cross_entropy(x, batch["label"]) for x, _ in pairs]
      pixel = [
        losses.segmentation(maps, mask, dice_over="image").sum(axis=-1)
        for _, maps in pairs
      ]
      parts[f"{name}_global"] = losses.weighted_mean(sum(image), weight)
      parts[f"{name}_local"] = losses.weighted_mean(sum(pixel), masked)
    return sum(parts.values()), (parts, stats)

  def predict(self, params, stats, backbone, aux, features):
    """Zero-shot, or few-shot where there is a memory (Code)."""
    size = similarity.image_size(backbone, features)
    found, _ = self.branches(params, stats, backbone, aux, features, None)
    probs = [prob for _, prob in found.values()]
    scores = [jax.nn.softmax(x)[:, ANOMALOUS] for x, _ in found.values()]
    maps = [
      similarity.to_map(p[..., ANOMALOUS:], size, method="bilinear")[..., 0]
      for p in probs
    ]
    distance = None
    if self.prompt_query and "memory_bank" in features:
      levels, _ = self.compare(params, stats, features, size, None)
      pq_maps, pq_scores, distance = prompt_query.summary(levels)
      maps, scores = [*maps, pq_maps], [*scores, pq_scores]
    if not maps:
      raise ValueError(
        "AdaptCLIP with the prompt-query adapter alone needs references."
      )
    return self.fuse(maps, scores, distance)

  def fuse(self, maps, scores, distance):
    """Map (b, h, w) and score (b,) of the adapters and the distance."""
    mean = lambda xs: sum(xs) / len(xs)
    if self.fusion == "paper":
      return {"anomaly_map": mean(maps), "pred_score": mean(scores)}
    anomaly_map = mean(maps)
    if distance is not None:
      anomaly_map = prompt_query.harmonic_mean([anomaly_map, distance])
    peak = smoothing.gaussian(anomaly_map, self.sigma).max(axis=(1, 2))
    if distance is None:
      score = mean([*scores, peak])
    else:
      score = prompt_query.harmonic_mean([mean(scores), peak])
    return {"anomaly_map": anomaly_map, "pred_score": score}


PAPER_NAME = "AdaptCLIP"  # In the tables of the papers.
# Ablation of the configuration -> its name in the tables of the papers.
PAPER_VARIANTS = {
  "clip": "naive CLIP",
  "ta": "AdaptCLIP [TA only]",
  "va": "AdaptCLIP [VA only]",
  "joint": "AdaptCLIP [TA+VA, joint learning]",
  "zero": "AdaptCLIP [TA+VA, alternating learning]",
  "pqa_residual": "AdaptCLIP [PQA only, w/o context]",
  "pqa": "AdaptCLIP [PQA only, w context]",
}
# Settings for a backbone of three blocks of width 64, for tests.
TINY = dict(
  feature_layers=(2, 3),
  vv_from=2,
  context_length=3,
  head_widths=(8, 4),
  pool_topk=3,
  sigma=1.0,
)
