"""AdaCLIP. Cao et al., ECCV 2024, arXiv:2407.15795.

  App. 2.1   hybrid_prompts.combine
  App. 2.2   semantic_fusion.fuse
  Code       Method.forward
  Code       Method.loss

"App." is the paper's appendix, "Code" the authors' method/adaclip.py and
method/trainer.py, which are the source where the appendix is silent.

Where paper and authors' code differ, the default is the code, which made the
published numbers; a field of `Method` gives the paper's text:

  activation    erf-GELU in both towers; CLIP was trained with "quick"
  hsf           the 100 most anomalous patches are clustered and all centres
                averaged; "paper" clusters all patches, takes the best cluster
  text_prompt_first_layer   the first text block receives no prompt
  text_prompt_mode          prompts overwrite the template's first words
  dice          one Dice per image row, a result of batch size 1; "image"
  train_map     one loss per level; "mean" trains the map that is tested
The other differences (data, selection, mosaics) are in configs/adaclip.py.
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
  hybrid_prompts,
  linear,
  prompt_trie,
  prompts,
  ranges,
  semantic_fusion,
  similarity,
)
from zsad_jax.torch_io.rules import CheckpointSpec, Rule, prefixed
from zsad_jax.torch_io.rules import linear as linear_rules
from zsad_jax.types import ANOMALOUS, Backbone, Batch, Features, Params

Aux = Mapping[str, Array]  # See `Method.prepare`.
Result = Mapping[str, Any]  # See `Method.forward`.


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters, with the authors' values as defaults.

  Attributes:
    feature_layers: layers (1-based) whose patch tokens are compared with text.
    prompt_length: M, tokens per prompted layer.
    prompt_depth: J, first layers that are prompted.
    prompt_branches: towers that are prompted, visual and language.
    prompt_types: "S" static, "D" dynamic, or "SD", their sum.
    hsf: see above; "topk_mean" is the mean of the same 100 patches.
    num_clusters: K of hybrid semantic fusion.
    hsf_top_factor: HSF selects this many times K patches.
    hsf_mix: weight of HSF in the image embedding.
    hsf_seed: seed of k-means, the same for every image.
    cosine_scale: factor of all cosines, CLIP's own logit scale.
    activation: activation in both towers, see above.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
    round_fp16: round text prompts to float16, as autocast does on a GPU.
    text_prompt_first_layer, text_prompt_mode, dice, train_map: see above.
    remat: recompute the vision MLPs in the backward pass to save memory.
  """

  feature_layers: tuple[int, ...] = (6, 12, 18, 24)
  prompt_length: int = 5
  prompt_depth: int = 4
  prompt_branches: Literal["V", "L", "VL"] = "VL"
  prompt_types: Literal["S", "D", "SD"] = "SD"
  hsf: Literal["official", "paper", "topk_mean", "none"] = "official"
  num_clusters: int = 20
  hsf_top_factor: int = 5
  hsf_mix: float = 0.2
  hsf_seed: int = 111
  cosine_scale: float = 100.0
  activation: types.Activation = "gelu_erf"
  pos_resize: types.PositionResize = "bicubic"
  round_fp16: bool = False
  text_prompt_first_layer: bool = False
  text_prompt_mode: Literal["overwrite", "insert"] = "overwrite"
  dice: Literal["rows", "image"] = "rows"
  train_map: Literal["levels", "mean"] = "levels"
  remat: bool = True

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    counts = "prompt_length prompt_depth num_clusters hsf_top_factor"
    counts = [*counts.split(), "feature_layers"]
    ranges.check(self, counts, ["cosine_scale"], ["hsf_mix"], ["hsf_seed"])

  @property
  def checkpoint_spec(self) -> CheckpointSpec:
    """Layout of the authors' checkpoint."""
    return CheckpointSpec(prefixed("clip_model.", TORCH_NAMES))

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(self, rng: jax.Array, backbone: Backbone) -> tuple[Params, Params]:
    """Initialize static prompts as normal, linear layers as torch does."""
    depth, m, d = self.prompt_depth, self.prompt_length, backbone.embed_dim
    width, text = backbone.vision_width, backbone.text_width
    static, heads = hybrid_prompts.init_static, hybrid_prompts.init_heads
    rngs = jax.random.split(rng, 6)
    params = {
      "static_text_prompts": static(rngs[0], depth, m, text),
      "static_visual_prompts": static(rngs[1], depth, m, width),
      "patch_projection": heads(rngs[2], len(self.feature_layers), width, d),
      "class_projection": heads(rngs[3], 1, d, d),
      "dynamic_visual_prompts": heads(rngs[4], m, d, width),
      "dynamic_text_prompts": heads(rngs[5], m, d, text),
    }
    return params, {}

  def trainable_mask(self, params: Params) -> Params:
    """Mask unused prompts, on which the authors use no weight decay."""
    return hybrid_prompts.trainable_mask(
      params,
      kinds=self.prompt_types,
      towers=self.prompt_branches,
      first_text_layer=self.text_prompt_first_layer,
    )

  def prepare(self, backbone: Backbone, class_names: Sequence[str]) -> Aux:
    """Join each class's prompts to a trie, see `prompt_trie.tokenize`."""
    texts = [sum(prompts.adaclip(name), []) for name in class_names]
    return prompt_trie.tokenize(backbone, texts)

  def encode(self, backbone: types.ImageBackbone, batch: Batch) -> Features:
    """Return the image and, for dynamic prompts, its un-prompted embedding."""
    dual_path.check_layers(backbone, self.feature_layers)
    image = batch["image"]
    features = {"pixels": image, "class_id": batch["class_id"]}
    if "D" in self.prompt_types:
      features["image_embed"], _ = backbone.image(
        image, last_patches=False, **self.image_hooks
      )
    return features

  def prompts(
    self, params: Params, features: Features, tower: Literal["visual", "text"]
  ) -> Float[Array, "_ j m c"]:
    """Return the prompts of a tower, see `hybrid_prompts.combine`."""
    return hybrid_prompts.combine(
      params,
      features.get("image_embed"),
      tower,
      kinds=self.prompt_types,
      depth=self.prompt_depth,
    )

  def text(
    self, params: Params, backbone: Backbone, aux: Aux, features: Features
  ) -> Float[Array, "b 2 d"]:
    """Return unit embeddings of the states of each image's class."""
    hooks = jax.tree.map(lambda x: x[features["class_id"]], dict(aux))
    ids, end = hooks.pop("ids"), hooks.pop("end")
    if "L" in self.prompt_branches:
      layers = self.prompts(params, features, "text")
      first = 0 if self.text_prompt_first_layer else 1
      hooks["prompt_mode"] = self.text_prompt_mode
      hooks["round_fp16"] = self.round_fp16
      depth = range(first, self.prompt_depth)
      hooks["prompts"] = {j: layers[:, j] for j in depth}
    embed, _ = backbone.text(
      backbone.embed_tokens(ids), end, activation=self.activation, **hooks
    )
    embed = similarity.unit(embed)
    normal = prompts.ADACLIP_NUM_NORMAL_PROMPTS
    means = [embed[:, :normal].mean(1), embed[:, normal:].mean(1)]
    return similarity.unit(jnp.stack(means, axis=1))

  def forward(
    self,
    params: Params,
    backbone: Backbone,
    aux: Aux,
    features: Features,
    hsf_labels: Array | None = None,
  ) -> dict[str, Any]:
    """Run both prompted towers and compare patches and image (Code).

    Args:
      params: trainable parameters.
      backbone: frozen CLIP.
      aux: see `prepare`.
      features: see `encode`.
      hsf_labels: (b, 5 K) cluster of each selected patch, instead of k-means.

    Returns:
      Dict of: patch_units, one (b, l, d) per level; class_unit (b, d);
      text_units (b, 2, d); patch_logits (b, levels, l, 2); image_prob (b, 2);
      with fusion also fused (b, d).
    """
    hooks: dict[str, Any] = {"remat": self.remat, **self.image_hooks}
    image = features["pixels"]
    if "V" in self.prompt_branches:
      layers = self.prompts(params, features, "visual")
      shape = (image.shape[0], *layers.shape[1:])
      hooks["prompts"] = jnp.broadcast_to(layers, shape)
    embed, out = backbone.image(image, **hooks)
    project = lambda head, x: similarity.unit(linear.apply(head, x))
    class_unit = project(params["class_projection"]["0"], embed)
    heads = params["patch_projection"]
    patch_units = [
      project(heads[str(i)], out[f"block{layer:02d}"][:, 1:])
      for i, layer in enumerate(self.feature_layers)
    ]
    text_units = self.text(params, backbone, aux, features)
    patch_logits = self.cosine_scale * jnp.stack(
      [similarity.cosines(p, text_units) for p in patch_units], axis=1
    )
    result = {
      "patch_units": patch_units,
      "class_unit": class_unit,
      "text_units": text_units,
      "patch_logits": patch_logits,
    }
    image_unit = class_unit
    if self.hsf != "none":
      result["fused"] = semantic_fusion.fuse_images(
        jnp.stack(patch_units, axis=1),
        patch_logits,
        hsf_labels,
        mode=self.hsf,
        k=self.num_clusters,
        count=self.hsf_top_factor * self.num_clusters,
        seed=self.hsf_seed,
      )
      image_unit = similarity.unit(
        self.hsf_mix * result["fused"] + (1 - self.hsf_mix) * class_unit
      )
    image_logits = similarity.cosines(image_unit, text_units)
    result["image_prob"] = jax.nn.softmax(self.cosine_scale * image_logits)
    return result

  def level_maps(
    self, result: Result, size: tuple[int, int]
  ) -> Float[Array, "b levels h w 2"]:
    """Return probabilities of the states per pixel."""
    logits = result["patch_logits"]
    if self.train_map == "mean":
      logits = logits.mean(axis=1, keepdims=True)
    maps = similarity.to_maps(logits, size, method="bilinear_corners")
    return jax.nn.softmax(maps)

  def loss_terms(
    self, result: Result, batch: Batch
  ) -> tuple[Float[Array, " b"], Float[Array, "b levels 3"]]:
    """Return losses per image, and per image and level."""
    mask = batch["mask"]
    maps = self.level_maps(result, mask.shape[1:])
    b, levels = maps.shape[:2]
    pixel = losses.segmentation(
      maps.reshape(b * levels, *maps.shape[2:]),
      jnp.repeat(mask, levels, axis=0),
      dice_over=self.dice,
    )
    image = losses.focal(result["image_prob"], batch["label"])
    return image, pixel.reshape(b, levels, 3)

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
    """Return focal losses of image and maps, Dice losses of maps (Code)."""
    del rng  # No dropout.
    result = self.forward(params, backbone, aux, features)
    image, pixel = self.loss_terms(result, batch)
    weight = batch["weight"]
    masked = weight * batch["has_mask"]  # Images without mask have no map loss.
    parts = {
      "image_focal": losses.weighted_mean(image, weight),
      **losses.segmentation_parts(pixel, masked),
    }
    return losses.total(parts), (parts, stats)

  def predict(
    self,
    params: Params,
    stats: Params,
    backbone: Backbone,
    aux: Aux,
    features: Features,
  ) -> types.Prediction:
    """Return maps of the mean logits of all levels, and scores."""
    del stats
    result = self.forward(params, backbone, aux, features)
    return self.to_prediction(result, features["pixels"].shape[1:3])

  def to_prediction(
    self, result: Result, size: tuple[int, int]
  ) -> types.Prediction:
    """Convert the result of `forward` to a prediction of h x w pixels."""
    logits = result["patch_logits"].mean(axis=1)
    # Logits are interpolated, then softmax is applied.
    logits = similarity.to_map(logits, size, method="bilinear_corners")
    return {
      "anomaly_map": jax.nn.softmax(logits)[..., ANOMALOUS],
      "pred_score": result["image_prob"][:, ANOMALOUS],
    }


# Names in the authors' checkpoint, without its prefix "clip_model.".
TORCH_NAMES = (
  Rule(
    r"(text|visual)_prompter\.static_prompts\.(\d+)", r"static_\1_prompts/\2"
  ),
  *linear_rules(r"patch_token_layer\.head\.(\d+)", r"patch_projection/\1"),
  *linear_rules(r"cls_token_layer\.head\.(\d+)", r"class_projection/\1"),
  *linear_rules(
    r"dynamic_(visual|text)_prompt_generator\.head\.(\d+)",
    r"dynamic_\1_prompts/\2",
  ),
)
PAPER_NAME = "AdaCLIP"  # In the tables of the papers.
# Ablation of the configuration -> its name in the tables of the papers.
PAPER_VARIANTS = {
  "k10": "AdaCLIP [HSF K=10]",
  "k20": "AdaCLIP [HSF K=20]",
  "k40": "AdaCLIP [HSF K=40]",
  "k80": "AdaCLIP [HSF K=80]",
  "hsf_none": "AdaCLIP [w/o HSF, max value]",
  "v": "AdaCLIP [prompt image encoder only]",
  "l": "AdaCLIP [prompt text encoder only]",
}
TINY = dict(  # Settings for a backbone of three blocks of width 64, for tests.
  feature_layers=(1, 3),
  prompt_length=2,
  prompt_depth=2,
  num_clusters=3,
  hsf_top_factor=2,
)
