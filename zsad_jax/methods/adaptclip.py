"""AdaptCLIP. Gao et al., AAAI 2026, arXiv:2505.09926.

  Eq. 1      Method.branches
  Eq. 2      Method.branches
  Eq. 3      visual_adapter.apply
  Eq. 4      textual_adapter.text
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
  ranges,
  score_fusion,
  similarity,
  textual_adapter,
  visual_adapter,
)
from zsad_jax.torch_io.rules import CheckpointSpec, Rule
from zsad_jax.types import ANOMALOUS, Batch, Features, ImageBackbone, Params

Aux = Mapping[str, Array]  # See `Method.prepare`.
# Per adapter: image logits (b, 2) and patch probabilities (b, l, 2).
Branches = dict[str, tuple[Array, Array]]


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
  reducible_memory_bank = True

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    counts = ["context_length", "reduction", "pool_topk", "train_shots"]
    counts += ["feature_layers", "vv_from", "head_widths"]
    ranges.check(
      self, counts=counts, positive=["temperature"], weights=["sigma"]
    )
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
      c = prompt_learner.require_text(backbone).text_width
      length = self.context_length
      params["textual"] = textual_adapter.init(rngs[0], length, c)
    if self.visual:
      sizes = d, d // self.reduction
      params["visual"], stats["visual"] = visual_adapter.init(rngs[1], *sizes)
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
    """Embed object-agnostic prompts where text is used."""
    del class_names
    if self.needs_references:  # The prompt-query adapter alone.
      return {}
    given = prompt_learner.require_text(backbone), self.prompt_templates()
    return textual_adapter.prepare(*given, self.activation)

  def prompt_templates(self) -> tuple[prompt_learner.PromptTemplate, ...]:
    """Return the prompts of both states, with placeholder words."""
    m = self.context_length
    return (prompt_learner.PromptTemplate(" ".join(["X"] * m) + ".", m),) * 2

  def encode(self, backbone: ImageBackbone, batch: Batch) -> Features:
    """Return embeddings of the image and of all tokens of each level."""
    # What the authors' code reads for the layer right before `vv_from`.
    read = dict(zip(self.feature_layers, self.feature_layers))
    if self.alias_feature_layer and self.vv_from:
      read[self.vv_from - 1] = self.feature_layers[-1]
    image, tokens = dual_path.encode(
      backbone,
      batch["image"],
      feature_layers=[read[layer] for layer in self.feature_layers],
      vv_from=self.vv_from,
      class_ln_post=self.cls_ln_post,
      **self.image_hooks,
    )
    patches = similarity.unit(jnp.stack(tokens, axis=1)[:, :, 1:])
    # The adapter takes the last level with class token, not normalized.
    return {"image": image, "tokens": tokens[-1], "patch_units": patches}

  def build_memory_bank(
    self, features: Features
  ) -> Float[Array, "n shots levels l d"]:
    """Return the patches of references."""
    return features["patch_units"]

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
      adapted, new["visual"] = visual_adapter.apply(
        params["visual"], stats["visual"], *plain, weight=weight
      )
      sides["visual"] = adapted, aux["static_units"]
    if self.textual:
      text, given = prompt_learner.require_text(backbone), params["textual"]
      learned = textual_adapter.text(given, text, aux, self.activation)
      sides["textual"] = plain, similarity.unit(learned)
    if self.joint:
      sides = {"joint": (sides["visual"][0], sides["textual"][1])}
    if not (sides or self.prompt_query):  # Plain CLIP.
      sides["clip"] = plain, aux["static_units"]
    result = {
      name: similarity.compare(image, tokens[:, 1:], units, self.temperature)
      for name, ((image, tokens), units) in sides.items()
    }
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
    weight, size = batch["weight"], batch["mask"].shape[1:]
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
    parts = {}
    for name, levels in outputs.items():
      parts |= losses.adapter_parts(levels, batch, name)
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
      raise ValueError("The prompt-query adapter alone needs references.")
    return score_fusion.fuse(
      maps, scores, distance, mode=self.fusion, sigma=self.sigma
    )


# Names in the authors' checkpoint.
TORCH_NAMES = (
  Rule(r"textual_learner\.ctx_pos", "textual/normal", "lead2"),
  Rule(r"textual_learner\.ctx_neg", "textual/anomalous", "lead2"),
  *visual_adapter.TORCH_NAMES,
  *prompt_query.TORCH_NAMES,
)
TORCH_STATS = (*visual_adapter.TORCH_STATS, *prompt_query.TORCH_STATS)
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
