"""AdaptCLIP. Gao et al., AAAI 2026, arXiv:2505.09926.

  Eq. 1      Method.branches
  Eq. 2      Method.branches
  Eq. 3      residual_mlp.apply
  Eq. 4      Method.text
  Eq. 5      prompt_query.align
  Eq. 6      prompt_query.joint
  Eq. 7      prompt_query.local_head
  Eq. 8      prompt_query.pool
  Eq. 8      prompt_query.global_head
  Code       Method.loss
  Code       Method.predict

Where paper and authors' code differ, the default is the code, which made the
published numbers; a field of `Method` gives the paper's text:

  fusion         the score includes the map's maximum and, with references,
                 maps and scores are harmonic means with the distance to the
                 references; "paper" averages the adapters
  vv_from        patches come from the value-value stream; None for plain CLIP
  pool_topk      mean of the 10 largest values; 1 is max pooling
  share_heads    one pair of heads for all levels; False gives each its own
  alias_feature_layer   False; True reproduces an effect of the authors' code:
                 the tokens of the layer right before `vv_from` are overwritten
                 in place
  context        query and residual; False for the residual alone (ablation)
  joint          separate visual and textual adapters; True compares the
                 outputs of both with each other (ablation)
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
  prompt_learner,
  prompt_query,
  prompts,
  ranges,
  residual_mlp,
  score_fusion,
  similarity,
)
from zsad_jax.torch_io.rules import CheckpointSpec, Rule
from zsad_jax.types import ANOMALOUS, Batch, Features, ImageBackbone, Params

Aux = Mapping[str, Array]  # See `Method.prepare`.
# Per adapter: image logits (b, 2) and patch probabilities (b, l, 2).
Branches = dict[str, tuple[Array, Array]]
STATIC = prompts.adaptclip()


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters, with the authors' values as defaults.

  Attributes:
    feature_layers: layers (1-based) that are compared with references; the
      last one is also compared with text.
    vv_from: first layer of the value-value stream; None for plain CLIP.
    visual: use the visual adapter.
    textual: use the textual adapter.
    prompt_query: use the prompt-query adapter.
    joint: see above; needs both of the first two adapters.
    context_length: r, learned vectors per prompt.
    reduction: of the visual adapter's hidden layer.
    head_widths: of the two stages of the prompt-query adapter's heads.
    train_shots: references per training image.
    temperature: of the softmax over the states.
    sigma: of the Gaussian, in pixels, before a map's maximum is taken.
    activation: activation of both towers.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
    cls_ln_post: send the class token through ln_post.
    alias_feature_layer, context, pool_topk, share_heads, fusion: see above.
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

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    counts = ["context_length", "reduction", "pool_topk", "train_shots"]
    ranges.check(self, counts=counts, positive=["temperature"])
    if self.joint and not (self.visual and self.textual):
      raise ValueError("config.method.joint needs visual and textual.")

  @property
  def num_references(self) -> int:
    """Number of reference images per training image."""
    return self.train_shots if self.prompt_query else 0

  @property
  def needs_references(self) -> bool:
    """Tell if no adapter predicts without references."""
    return self.prompt_query and not (self.visual or self.textual)

  @property
  def checkpoint_spec(self) -> CheckpointSpec:
    """Layout of the authors' checkpoint."""
    levels = len(self.feature_layers) if self.share_heads else 1
    return prompt_learner.checkpoint(
      TORCH_NAMES,
      *("textual_learner", "visual_learner", "pq_learner"),
      templates=self.prompt_templates(),
      stats=TORCH_STATS,
      copies=lambda _, name: prompt_query.copies(name, levels),
    )

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(
    self, rng: jax.Array, backbone: ImageBackbone
  ) -> tuple[Params, Params]:
    """Initialize prompts as normal, all layers as torch does."""
    rngs = jax.random.split(rng, 3)
    params, stats, d = {}, {}, backbone.embed_dim
    if self.textual:
      width = prompt_learner.require_text(backbone).text_width
      shape = (self.context_length, width)
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
          key, d, d // self.reduction
        )
    if self.prompt_query:
      params["prompt_query"], stats["prompt_query"] = prompt_query.init(
        rngs[2],
        d,
        levels=len(self.feature_layers),
        widths=self.head_widths,
        share_heads=self.share_heads,
      )
    return params, stats

  def prepare(self, backbone: ImageBackbone, class_names: Sequence[str]) -> Aux:
    """Embed templates and static prompts, where text is used.

    They are object-agnostic: class names are unused.
    """
    del class_names
    if self.needs_references:  # The prompt-query adapter alone.
      return {}
    text = prompt_learner.require_text(backbone)
    texts = [template.text for template in self.prompt_templates()]
    static = jax.jit(self.static_text)(
      text, prompt_learner.placeholders(text, sum(STATIC, []))
    )
    return {
      **prompt_learner.placeholders(text, texts),
      "static_units": similarity.unit(static),
    }

  def prompt_templates(self) -> tuple[prompt_learner.PromptTemplate, ...]:
    """Return the prompts of both states, with placeholder words."""
    m = self.context_length
    return (prompt_learner.PromptTemplate(" ".join(["X"] * m) + ".", m),) * 2

  def static_text(
    self, backbone: types.TextBackbone, static: Mapping[str, Array]
  ) -> Float[Array, "2 d"]:
    """Return the mean embedding of the fixed prompts of each state."""
    embed, _ = backbone.text(
      static["embeds"], static["end"], activation=self.activation
    )
    normal = len(STATIC[0])
    return jnp.stack([embed[:normal].mean(0), embed[normal:].mean(0)])

  def encode(self, backbone: ImageBackbone, batch: Batch) -> Features:
    """Return embeddings of the image and of all tokens of each level."""
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
    # The adapter takes the last level with class token, not normalized.
    return {"image": image, "tokens": tokens[-1], "patch_units": patches}

  def _overwritten(self, layer):
    return self.alias_feature_layer and layer + 1 == self.vv_from

  def build_memory_bank(
    self, features: Features
  ) -> Float[Array, "n shots levels l d"]:
    """Return the patches of references."""
    return features["patch_units"]

  def learned_prompts(self, params: Params, aux: Aux) -> Float[Array, "2 t c"]:
    """Return token embeddings of both prompts with the learned vectors."""
    vectors = [params["textual"][name] for name in ("normal", "anomalous")]
    return prompt_learner.with_context(aux["embeds"], jnp.stack(vectors))

  def text(
    self, params: Params, backbone: types.TextBackbone, aux: Aux
  ) -> Float[Array, "2 d"]:
    """Embed the learned states, without normalization (Eq. 4)."""
    embeds = self.learned_prompts(params, aux)
    embed, _ = backbone.text(embeds, aux["end"], activation=self.activation)
    return embed

  def branches(
    self,
    params: Params,
    stats: Params,
    backbone: ImageBackbone,
    aux: Aux,
    features: Features,
    weight: Array | None,
  ) -> tuple[Branches, dict[str, Any]]:
    """Compare image and patches with the states (Eq. 1) (Eq. 2).

    Args:
      params: trainable parameters.
      stats: running statistics.
      backbone: frozen CLIP.
      aux: see `prepare`.
      features: see `encode`.
      weight: weight of the images in the batch's statistics (training), or
        None for the running statistics.

    Returns:
      Image logits and patch probabilities of the visual and the textual
      adapter, and the new statistics.
    """
    plain = features["image"], features["tokens"]
    sides, new = {}, dict(stats)
    if self.visual:
      adapted, new["visual"] = {}, {}
      for name, key in (("global", "image"), ("local", "tokens")):
        adapted[key], new["visual"][name] = residual_mlp.apply(
          params["visual"][name],
          stats["visual"][name],
          features[key],
          weight=weight,
        )
      sides["visual"] = tuple(adapted.values()), aux["static_units"]
    if self.textual:
      text = prompt_learner.require_text(backbone)
      sides["textual"] = plain, similarity.unit(self.text(params, text, aux))
    if self.joint:
      sides = {"joint": (sides["visual"][0], sides["textual"][1])}
    if not (sides or self.prompt_query):  # Plain CLIP.
      sides["clip"] = plain, aux["static_units"]
    result = {}
    for name, ((image, tokens), text_units) in sides.items():
      cosines = similarity.cosines(similarity.unit(image), text_units)
      prob = similarity.state_prob(
        similarity.unit(tokens[:, 1:]), text_units, self.temperature
      )
      result[name] = cosines / self.temperature, prob
    return result, new

  def compare(
    self,
    params: Params,
    stats: Params,
    features: Features,
    size: tuple[int, int],
    weight: Array | None,
  ) -> tuple[list[dict[str, Array]], Params]:
    """Compare each level with the references; see `prompt_query.forward`."""
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

  def loss(
    self,
    params: Params,
    stats: Params,
    backbone: ImageBackbone,
    aux: Aux,
    features: Features,
    batch: Batch,
    rng: jax.Array | None,
  ) -> tuple[Array, tuple[dict[str, Array], Params]]:
    """Return cross-entropy, focal and Dice of all adapters, levels (Code)."""
    del rng  # No dropout.
    weight, mask = batch["weight"], batch["mask"]
    size = mask.shape[1:]
    found, new = self.branches(params, stats, backbone, aux, features, weight)
    outputs = {
      name: [(logits, similarity.to_map(prob, size, method="bilinear"))]
      for name, (logits, prob) in found.items()
    }
    if self.prompt_query:
      levels, new["prompt_query"] = self.compare(
        params, stats, features, size, weight
      )
      outputs["prompt_query"] = [(x["logits"], x["maps"]) for x in levels]
    masked = weight * batch["has_mask"]  # Images without mask have no map loss.
    parts = {}
    for name, pairs in outputs.items():
      image = [losses.cross_entropy(x, batch["label"]) for x, _ in pairs]
      pixel = [
        losses.segmentation(maps, mask, dice_over="image").sum(axis=-1)
        for _, maps in pairs
      ]
      parts[f"{name}_global"] = losses.weighted_mean(
        sum(image[1:], image[0]), weight
      )
      parts[f"{name}_local"] = losses.weighted_mean(
        sum(pixel[1:], pixel[0]), masked
      )
    return losses.total(parts), (parts, new)

  def predict(
    self,
    params: Params,
    stats: Params,
    backbone: ImageBackbone,
    aux: Aux,
    features: Features,
  ) -> types.Prediction:
    """Predict zero-shot, or few-shot with features["memory_bank"] (Code)."""
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
    return score_fusion.fuse(
      maps, scores, distance, mode=self.fusion, sigma=self.sigma
    )


# Names in the authors' checkpoint ("adater" is its spelling).
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
TINY = dict(  # Settings for a backbone of three blocks of width 64, for tests.
  feature_layers=(2, 3),
  vv_from=2,
  context_length=3,
  head_widths=(8, 4),
  pool_topk=3,
  sigma=1.0,
)
