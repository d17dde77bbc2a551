"""PromptAD. Li et al., CVPR 2024, arXiv:2404.05231.

  Code       Method.encode
  Code       Method.text
  Code       Method.loss
  Code       Method.distances_to_anchors
  Code       Method.forward

"Code" is the authors' PromptAD/model.py, train_seg.py and train_cls.py. Prompts
of one category are learned from a few normal images alone: normal prompts, and
anomalous ones that are the normal ones with a phrase for an anomaly (written),
or with learned vectors (learned). There is one set of parameters per category
and per branch: "seg" has patches and maps, "cls" images and scores. Layers of
the k images are the memory bank that images are compared with.

Where code and paper differ, the default is the code, which produced the
published numbers; a field of `Method` gives the other:

  scale         "raw", CLIP's logit scale without the exponential
  triplet       "tokens", the distances of "seg" are sums over patches, one for
                each channel; "features": sums over channels
  before_mlp    True: a feature layer is the stream in the middle of the next
                block, which the code writes into the tensor it has kept
The numbers of contexts depend on the branch: `branch_settings`.

Ours: the images of a category are drawn by a seed, from sorted files (the
authors' lists hold numbers in an unsorted list of files); test images are in
RGB order (the authors' are in BGR order and the references in RGB); an image is
resized once (they resize it to 1024 pixels first); float32 (they compute in
float16); the parameters are those of the last epoch (theirs are those with the
best result on the test images). A score of "seg", the maximum of the map, is
ours as well.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zsad_jax import losses, types
from zsad_jax.layers import (
  category_prompts,
  class_prompts,
  dual_path,
  memory_bank,
  prompt_learner,
  ranges,
  score_fusion,
  similarity,
)
from zsad_jax.torch_io.rules import Rule
from zsad_jax.types import ANOMALOUS

Aux = Mapping[str, Any]  # See `Method.prepare`.


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters; see above for the defaults.

  Attributes:
    branch: "seg" for maps, "cls" for image scores.
    num_normal: normal contexts.
    context_length: vectors of a normal context.
    num_anomalous: anomalous contexts.
    anomalous_length: vectors of an anomalous context.
    feature_layers: layers (1-based) that are compared with references.
    before_mlp, scale, triplet: see above.
    match_weight: weight of the distance between written and learned prompts.
    score_side: side in pixels of the map of which the maximum is taken.
    activation: activation of both towers; None for that of the weights.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  branch: Literal["seg", "cls"] = "seg"
  num_normal: int = 1
  context_length: int = 4
  num_anomalous: int = 4
  anomalous_length: int = 1
  feature_layers: tuple[int, ...] = (3, 8)
  before_mlp: bool = True
  scale: Literal["raw", "exp"] = "raw"
  triplet: Literal["tokens", "features"] = "tokens"
  match_weight: float = 0.001
  score_side: int = 400
  activation: types.Activation | None = None
  pos_resize: types.PositionResize = "bicubic"

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    counts = ["num_normal", "context_length", "num_anomalous"]
    counts += ["anomalous_length", "feature_layers", "score_side"]
    ranges.check(self, counts=counts, weights=["match_weight"])

  @property
  def learns_category(self) -> bool:
    """True: a category has parameters of its own."""
    return True

  @property
  def image_only(self) -> bool:
    """Whether maps are no result: in the branch "cls"."""
    return self.branch == "cls"

  @property
  def compares_references(self) -> bool:
    """True: the k normal images of the category."""
    return True

  @property
  def needs_references(self) -> bool:
    """True; a run has those that it was trained on."""
    return True

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(
    self, rng: jax.Array, backbone: types.TextBackbone
  ) -> tuple[types.Params, types.Params]:
    """Initialize all contexts as normal, with deviation 0.02."""
    rngs, c = jax.random.split(rng), backbone.text_width
    normal = (self.num_normal, self.context_length, c)
    anomalous = (self.num_anomalous, self.anomalous_length, c)
    return {
      "normal_context": prompt_learner.init(rngs[0], *normal),
      "anomalous_context": prompt_learner.init(rngs[1], *anomalous),
    }, {}

  @property
  def contexts(self) -> category_prompts.Contexts:
    """Numbers of contexts and of their vectors."""
    return category_prompts.Contexts(
      self.num_normal,
      self.context_length,
      self.num_anomalous,
      self.anomalous_length,
    )

  def prepare(
    self, backbone: types.ImageBackbone, class_names: Sequence[str]
  ) -> dict[str, Any]:
    """Arrange the prompts of each class; see `Contexts.arrange`."""
    text = prompt_learner.require_text(backbone)
    return self.contexts.arrange(text, class_names)

  def encode(
    self, backbone: types.ImageBackbone, batch: types.Batch
  ) -> types.Features:
    """Return unit embeddings and unit tokens of the feature layers (Code).

    Args:
      backbone: frozen CLIP.
      batch: "image" (b, h, w, 3), square, and "class_id".

    Returns:
      "class_unit" (b, d); "patch_units" (b, l, d) of the value-value stream of
      all blocks; "layer_units" (b, n, l, c).

    Raises:
      ValueError: there is no such layer.
    """
    middle, layers = self.before_mlp, self.feature_layers
    if middle:
      layers = tuple(layer + 1 for layer in layers)
    dual_path.check_layers(backbone, layers)
    last, group = backbone.vision_layers, "before_mlp/" if middle else ""
    embed, out = backbone.image(
      batch["image"],
      vv_from=1,
      last_patches=last in layers and not middle,
      before_mlp=layers if middle else (),
      **self.image_hooks,
    )
    patches = backbone.project(out[f"vv/block{last:02d}"][:, 1:], ln_post=True)
    tokens = [out[f"{group}block{layer:02d}"][:, 1:] for layer in layers]
    return {
      "class_unit": similarity.unit(embed),
      "patch_units": similarity.unit(patches),
      "layer_units": similarity.unit(jnp.stack(tokens, axis=1)),
      "class_id": batch["class_id"],
    }

  def build_memory_bank(
    self, features: types.Features
  ) -> Float[Array, "n shots m l c"]:
    """Return the unit tokens of references, by feature layer."""
    return features["layer_units"]

  def vectors(self, params: types.Params) -> Float[Array, "1 m c"]:
    """Return the vectors of all contexts, the normal ones first."""
    contexts = params["normal_context"], params["anomalous_context"]
    return jnp.concatenate([x.reshape(1, -1, x.shape[-1]) for x in contexts], 1)

  def text(
    self,
    params: types.Params,
    backbone: types.TextBackbone,
    aux: Aux,
    class_id: Int[Array, " b"],
  ) -> Float[Array, "b s d"]:
    """Embed all prompts of each image's class, not normalized (Code)."""
    given, vectors = aux["prompts"], self.vectors(params)
    embed = lambda prompts: class_prompts.encode(
      backbone, prompts, vectors, activation=self.activation
    )
    if len(aux["used"]) <= class_id.shape[0]:
      return embed(given)[class_id]
    return embed(class_prompts.select(given, class_id))

  def logit_scale(self, backbone: Any) -> Float[Array, ""]:
    """Return the factor of the cosines, see above."""
    scale = backbone.logit_scale()
    return scale if self.scale == "exp" else jnp.log(scale)

  def features_of_branch(
    self, features: types.Features
  ) -> Float[Array, "b l d"]:
    """Return the unit embeddings that the branch learns from."""
    if self.branch == "seg":
      return features["patch_units"]
    return features["class_unit"][:, None]

  def distances_to_anchors(
    self, units: Float[Array, "b l d"], anchors: Float[Array, "b 2 d"]
  ) -> Float[Array, "b n 2"]:
    """Return squared distances to both anchors, see `triplet` (Code)."""
    square = jnp.square(units[:, None] - anchors[:, :, None])  # (b, 2, l, d)
    tokens = self.branch == "seg" and self.triplet == "tokens"
    return jnp.moveaxis(square.sum(axis=2 if tokens else 3), 1, 2)

  def loss(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.Backbone,
    aux: Aux,
    features: types.Features,
    batch: types.Batch,
    rng: jax.Array | None,
  ) -> tuple[Array, tuple[dict[str, Array], types.Params]]:
    """Return the losses of images that all count as normal (Code)."""
    del rng  # No dropout.
    class_id, weight = features["class_id"], batch["weight"]
    text = self.text(params, backbone, aux, class_id)
    used, n = aux["used"][class_id], self.num_normal
    anchors = category_prompts.anchors(text, used)
    units, anomalous = self.features_of_branch(features), text[:, n:]
    negatives = similarity.unit(anomalous)
    targets = jnp.concatenate([anchors[:, :1], negatives], axis=1)
    logits = self.logit_scale(backbone) * similarity.cosines(units, targets)
    # Prompts that only fill a group are no negatives.
    absent = jnp.pad(used, ((0, 0), (1, 0)), constant_values=1.0) == 0
    logits = jnp.where(absent[:, None], -jnp.inf, logits)
    first = -jax.nn.log_softmax(logits)[..., 0].mean(axis=1)
    normal, other = jnp.moveaxis(
      self.distances_to_anchors(units, anchors), 2, 0
    )
    hinge = jax.nn.relu(normal - other).mean(axis=1)
    match = category_prompts.gap(negatives, used, self.contexts.learned)
    match = self.match_weight * match
    each = {"contrastive": first, "triplet": hinge, "match": match}
    parts = {k: losses.weighted_mean(x, weight) for k, x in each.items()}
    return losses.total(parts), (parts, stats)

  def visual(
    self, features: types.Features, bank: Array
  ) -> Float[Array, "b l"]:
    """Return the mean of half the distances to the nearest reference."""
    query, layers = features["layer_units"], range(len(self.feature_layers))
    return score_fusion.mean(
      [0.5 * memory_bank.nearest(query[:, i], bank[:, :, i])[0] for i in layers]
    )

  def forward(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.Backbone,
    aux: Aux,
    features: types.Features,
  ) -> dict[str, Array]:
    """Compute the probability t and the distance v of patches (Code).

    The memory bank is that of the features, or else that of the statistics,
    where a trained run has it; without any, v is t.

    Returns:
      "prob" (b, l), l = 1 in the branch "cls"; "visual" (b, l); and "value"
      (b, l), 1 / (1 / t + 1 / v), in the branch "cls" (b, 1) of the image.
    """
    class_id = features["class_id"]
    text = self.text(params, backbone, aux, class_id)
    anchors = category_prompts.anchors(text, aux["used"][class_id])
    units = self.features_of_branch(features)
    logits = self.logit_scale(backbone) * similarity.cosines(units, anchors)
    prob = jax.nn.softmax(logits)[..., ANOMALOUS]
    bank = features.get("memory_bank", stats.get("memory_bank"))
    visual = jnp.broadcast_to(prob, features["patch_units"].shape[:2])
    if bank is not None:
      visual = self.visual(features, bank)
    image = self.branch == "cls"
    distance = self.largest(visual)[:, None] if image else visual
    value = 0.5 * score_fusion.harmonic_mean([prob, distance])
    return {"prob": prob, "visual": visual, "value": value}

  def predict(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.Backbone,
    aux: Aux,
    features: types.Features,
  ) -> types.Prediction:
    """Return map and score; in the branch "cls" the map is of distances."""
    found = self.forward(params, stats, backbone, aux, features)
    size = similarity.image_size(backbone, features)
    if self.branch == "cls":
      anomaly_map, score = found["visual"], found["value"][:, 0]
    else:
      anomaly_map, score = found["value"], self.largest(found["value"])
    return {
      "anomaly_map": similarity.value_map(anomaly_map, size),
      "pred_score": score,
    }

  def largest(self, values: Float[Array, "b l"]) -> Float[Array, " b"]:
    """Return the maximum of the map of `score_side` pixels."""
    side = self.score_side
    return similarity.value_map(values, (side, side)).max(axis=(1, 2))


def branch_settings(branch: str) -> dict[str, Any]:
  """Return the authors' numbers of contexts of a branch."""
  return {"branch": branch, "num_normal": 3 if branch == "cls" else 1}


# Names of the parameters in the authors' code.
TORCH_NAMES = (
  Rule(r"prompt_learner\.normal_ctx", "normal_context"),
  Rule(r"prompt_learner\.abnormal_ctx", "anomalous_context"),
)
TITLE = "PromptAD"
# Settings for a backbone of three blocks of width 64, for tests.
TINY = dict(context_length=2, feature_layers=(1, 2), score_side=40)
