"""AnomalyCLIP. Zhou et al., ICLR 2024, arXiv:2310.18961.

  Sec. 3.2   Method.text
  Sec. 3.3   Method.encode
  Code       Method.forward
  Code       Method.loss

"Code" is the authors' train.py and test.py. The paper's sections: object-
agnostic prompts and tokens in the text encoder (3.2, 3.3), global and local
context with the value-value stream (3.3).

Where paper and authors' code differ, the default is the code, which made the
published numbers; a field of `Method` gives the other:

  feature_layers the last layer; (6, 12, 18, 24) is the first paper's text
  map_weight     4, for the sum over feature_layers
  deep_mode      deep tokens overwrite rows 1 ... 4; "insert" adds rows
  cls_ln_post    the class token skips ln_post, unlike CLIP's own embedding
  round_fp16     deep tokens are rounded to float16
The temperature is 0.07, not CLIP's own logit scale, in the code and here.

FAPrompt's paper compares with two ensembles, for which there is no code. The
one with `num_anomalous` = 10, "Ensemble*", learns several anomalous prompts
with FAPrompt's orthogonality loss; their mean embedding is compared. The other
one, "Ensemble", combines ten runs (`zsad evaluate --ensemble`).
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
from zsad_jax.torch_io.rules import CheckpointSpec, Rule, Table
from zsad_jax.types import ANOMALOUS, NORMAL


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters, with the authors' values as defaults.

  Attributes:
    feature_layers: layers (1-based) whose patch tokens are compared with text.
    vv_from: first layer of the value-value stream; None for plain CLIP.
    context_length: E, learned vectors per prompt.
    deep_length: M, learned tokens per text layer.
    deep_depth: text layers with learned tokens; the first one keeps its own,
      so these are layers 2 ... deep_depth.
    temperature: of the softmax over the states.
    map_weight: lambda, the weight of the losses on maps.
    activation: activation of both towers.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
    deep_mode: "overwrite" or "insert", see above.
    cls_ln_post: see above.
    round_fp16: see above.
    num_anomalous: K, anomalous prompts; more than one: Ensemble*.
    anomalous_mean: of Ensemble*, the mean of "raw" embeddings, as FAPrompt's
      code has it, or of "unit" embeddings.
    oc_weight: of Ensemble*, weight of the orthogonality loss (FAPrompt's code).
  """

  feature_layers: tuple[int, ...] = (24,)
  vv_from: int | None = 6
  context_length: int = 12
  deep_length: int = 4
  deep_depth: int = 9
  temperature: float = 0.07
  map_weight: float = 4.0
  activation: types.Activation = "quick"
  pos_resize: types.PositionResize = "bilinear"
  deep_mode: Literal["overwrite", "insert"] = "overwrite"
  cls_ln_post: bool = False
  round_fp16: bool = True
  num_anomalous: int = 1
  anomalous_mean: Literal["raw", "unit"] = "raw"
  oc_weight: float = 0.1

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    counts = ["context_length", "deep_length", "deep_depth"]
    counts += ["feature_layers", "vv_from", "num_anomalous"]
    ranges.check(
      self,
      counts=counts,
      positive=["temperature"],
      weights=["map_weight", "oc_weight"],
    )

  @property
  def torch_names(self) -> Table:
    """Names of the parameters in the authors' checkpoint."""
    if self.num_anomalous == 1:
      return TORCH_NAMES
    normal, _, *rest = TORCH_NAMES
    several = Rule(r"prompt_learner\.ctx_neg", "context/anomalous", "lead1")
    return (normal, several, *rest)

  @property
  def checkpoint_spec(self) -> CheckpointSpec:
    """Layout of the authors' checkpoint."""
    return prompt_learner.checkpoint(
      self.torch_names,
      "prompt_learner",
      templates=self.prompt_templates(),
      unused_depth=self.deep_depth,
    )

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(
    self, rng: jax.Array, backbone: types.Backbone
  ) -> tuple[types.Params, types.Params]:
    """Initialize all learned vectors, normal with deviation 0.02."""
    c, rngs = backbone.text_width, jax.random.split(rng, 3)
    vectors = lambda rng, *several: prompt_learner.init(
      rng, *several, self.context_length, c
    )
    deep = prompt_learner.init_deep(
      rngs[2], self.deep_depth, self.deep_length, c
    )
    several = () if self.num_anomalous == 1 else (self.num_anomalous,)
    anomalous = vectors(rngs[1], *several)
    context = {"normal": vectors(rngs[0]), "anomalous": anomalous}
    return {"context": context, "deep": deep}, {}

  def prepare(
    self, backbone: types.Backbone, class_names: Sequence[str]
  ) -> dict[str, Array]:
    """Embed the object-agnostic prompt templates; class names are unused."""
    del class_names
    texts = [template.text for template in self.prompt_templates()]
    return prompt_learner.placeholders(backbone, texts)

  def prompt_templates(self) -> tuple[prompt_learner.PromptTemplate, ...]:
    """Return the prompts of both states, with placeholder words."""
    m = self.context_length
    words = " ".join(["X"] * m)
    return (
      prompt_learner.PromptTemplate(f"{words} object.", m),
      prompt_learner.PromptTemplate(
        f"{words} damaged object.", m, self.num_anomalous
      ),
    )

  def encode(
    self, backbone: types.ImageBackbone, batch: types.Batch
  ) -> types.Features:
    """Return unit embeddings of the image and of patches (Sec. 3.3)."""
    image, patches = dual_path.encode_units(
      backbone,
      batch["image"],
      feature_layers=self.feature_layers,
      vv_from=self.vv_from,
      class_ln_post=self.cls_ln_post,
      **self.image_hooks,
    )
    return {"class_unit": image, "patch_units": patches}

  def prompts(
    self, params: types.Params, aux: Mapping[str, Array]
  ) -> Float[Array, "n t c"]:
    """Return token embeddings of all prompts with the learned vectors."""
    context = params["context"]
    if self.num_anomalous == 1:
      vectors = jnp.stack([context["normal"], context["anomalous"]])
    else:
      normal = context["normal"][None]
      vectors = jnp.concatenate([normal, context["anomalous"]])
    return prompt_learner.with_context(aux["embeds"][self._states()], vectors)

  def _states(self) -> Any:
    """Return the state of each prompt, to index templates."""
    if self.num_anomalous == 1:
      return slice(None)
    return jnp.array([NORMAL] + [ANOMALOUS] * self.num_anomalous)

  def text(
    self,
    params: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Array],
  ) -> Float[Array, "n d"]:
    """Embed all prompts, the normal one first, not normalized (Sec. 3.2)."""
    embed, _ = backbone.text(
      self.prompts(params, aux),
      aux["end"][self._states()],
      activation=self.activation,
      prompts=prompt_learner.deep_prompts(params["deep"]),
      prompt_mode=self.deep_mode,
      round_fp16=self.round_fp16,
    )
    return embed

  def text_units(self, text: Float[Array, "n d"]) -> Float[Array, "2 d"]:
    """Return unit embeddings of both states from those of all prompts."""
    if self.num_anomalous == 1:
      return similarity.unit(text)
    if self.anomalous_mean == "unit":
      text = similarity.unit(text)
    return compound_prompts.prototypes(text[:ANOMALOUS], text[ANOMALOUS:])

  def forward(
    self,
    params: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Array],
    features: types.Features,
  ) -> dict[str, Array]:
    """Compare image and patches with the two states (Code).

    Args:
      params: trainable parameters.
      backbone: frozen CLIP.
      aux: see `prepare`.
      features: see `encode`.

    Returns:
      Dict of: text (1 + K, d), text_units (2, d); image_logits (b, 2);
      patch_prob (b, layers, l, 2).
    """
    text = self.text(params, backbone, aux)
    text_units = self.text_units(text)
    cosines = similarity.cosines(features["class_unit"], text_units)
    patch_prob = similarity.state_prob(
      features["patch_units"], text_units, self.temperature
    )
    return {
      "text": text,
      "text_units": text_units,
      "image_logits": cosines / self.temperature,
      "patch_prob": patch_prob,
    }

  def loss_terms(
    self, result: Mapping[str, Array], batch: types.Batch
  ) -> tuple[Float[Array, " b"], Float[Array, "b layers 3"]]:
    """Return losses per image, and per image and layer."""
    image = losses.cross_entropy(result["image_logits"], batch["label"])
    mask, prob = batch["mask"], result["patch_prob"]
    maps = similarity.to_maps(prob, mask.shape[1:], method="bilinear")
    return image, losses.segmentation_levels(maps, mask, dice_over="image")

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
    """Return cross-entropy + lambda (focal + Dice) of all layers (Code).

    Ensemble* adds the orthogonality of its anomalous prompts.
    """
    del rng  # No dropout.
    result = self.forward(params, backbone, aux, features)
    image, pixel = self.loss_terms(result, batch)
    weight = batch["weight"]
    masked = weight * batch["has_mask"]  # Images without mask have no map loss.
    pixel_parts = losses.segmentation_parts(pixel, masked)
    parts = {
      "image_ce": losses.weighted_mean(image, weight),
      **{name: self.map_weight * x for name, x in pixel_parts.items()},
    }
    if self.num_anomalous > 1:
      parts["orthogonality"] = self.oc_weight * compound_prompts.orthogonality(
        result["text"][ANOMALOUS:], ordered=False
      )
    return losses.total(parts), (parts, stats)

  def predict(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.Backbone,
    aux: Mapping[str, Array],
    features: types.Features,
  ) -> types.Prediction:
    """Return the mean map of all layers; the authors' sum ranks alike."""
    del stats
    result = self.forward(params, backbone, aux, features)
    return self.to_prediction(result, similarity.image_size(backbone, features))

  def to_prediction(
    self, result: Mapping[str, Array], size: tuple[int, int]
  ) -> types.Prediction:
    """Convert the result of `forward` to a prediction of h x w pixels."""
    prob = result["patch_prob"][..., ANOMALOUS:].mean(axis=1)
    score = jax.nn.softmax(result["image_logits"])[:, ANOMALOUS]
    anomaly_map = similarity.to_map(prob, size, method="bilinear")
    return {"anomaly_map": anomaly_map[..., 0], "pred_score": score}


# Names of the parameters in the authors' checkpoint.
TORCH_NAMES = (
  Rule(r"prompt_learner\.ctx_pos", "context/normal", "lead2"),
  Rule(r"prompt_learner\.ctx_neg", "context/anomalous", "lead2"),
  prompt_learner.DEEP_RULE,
)
PAPER_NAME = "AnomalyCLIP"  # In the tables of the papers.
PAPER_VARIANTS = {"ensemble": "AnomalyCLIP Ensemble*"}
PAPER_ENSEMBLES = {"AnomalyCLIP Ensemble": 10}
# Settings for a backbone of three blocks of width 64, for tests.
TINY = dict(
  feature_layers=(2, 3),
  vv_from=2,
  context_length=3,
  deep_length=2,
  deep_depth=3,
  round_fp16=False,
)
