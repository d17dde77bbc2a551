"""AdaCLIP. Cao et al., ECCV 2024, arXiv:2407.15795.

  App. 2.1   Method.prompts
  App. 2.2   semantic_fusion.fuse
  Code       Method.forward
  Code       Method.loss

"App." is the paper's appendix, "Code" the authors' method/adaclip.py and
method/trainer.py, which are the source where the appendix is silent.

Where paper and authors' code differ, the default is the code, which made the
published numbers; a field of `Method` gives the paper's text:

  act           erf-GELU in both towers; "quick" is what CLIP was trained with
  hsf           the 100 most anomalous patches are clustered and all centres
                averaged; "paper" clusters all patches, takes the best cluster
  text_prompt_first_layer   the first text block receives no prompt
  text_prompt_mode          prompts overwrite the template's first words
  dice          one Dice per image row, as batch 1 makes of it; "image"
  train_map     one loss per level; "mean" trains the map that is tested
The rest of the list (data, selection, mosaics) stands in configs/adaclip.py.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax import losses, types
from zsad_jax.layers import (
  linear,
  prompt_trie,
  prompts,
  semantic_fusion,
  similarity,
)
from zsad_jax.torch_io.rules import CheckpointSpec, Rule, prefixed
from zsad_jax.torch_io.rules import linear as linear_rules
from zsad_jax.types import ANOMALOUS

PROMPT_STD = 0.02  # Authors' code, static prompts.

# Names in the authors' checkpoint, without its prefix "clip_model.".
TORCH_NAMES = (
  Rule(
    r"(text|visual)_prompter\.static_prompts\.(\d+)",
    r"static_\1_prompts/\2",
  ),
  *linear_rules(r"patch_token_layer\.head\.(\d+)", r"patch_projection/\1"),
  *linear_rules(r"cls_token_layer\.head\.(\d+)", r"class_projection/\1"),
  *linear_rules(
    r"dynamic_(visual|text)_prompt_generator\.head\.(\d+)",
    r"dynamic_\1_prompts/\2",
  ),
)
CHECKPOINT = CheckpointSpec(prefixed("clip_model.", TORCH_NAMES))


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters, with the authors' values as defaults.

  Attributes:
    feature_layers: layers (1-based) whose patch tokens are compared with the text.
    prompt_length: M, tokens per prompted layer.
    prompt_depth: J, first layers that are prompted.
    prompt_branches: "V", "L" or "VL": towers that are prompted.
    prompt_types: "S" static, "D" dynamic, or "SD", their sum.
    hsf: "official", "paper", "topk_mean" (the mean of the same 100 patches)
      or "none".
    num_clusters: K of hybrid semantic fusion.
    hsf_top_factor: HSF looks at this many times K patches.
    hsf_mix: share of HSF in the image embedding.
    hsf_seed: seed of k-means, the same for every image.
    cosine_scale: factor of all cosines, CLIP's own logit scale.
    activation: activation in both towers, see above.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
    round_fp16: round text prompts to float16, as autocast does on a GPU.
    text_prompt_first_layer: prompt text block 1 as well, see above.
    text_prompt_mode: "overwrite" or "insert", see above.
    dice: "rows" or "image", see above.
    train_map: "levels" or "mean", see above.
    remat: recompute the vision MLPs in the backward pass, for memory.
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

  @property
  def image_hooks(self):
    """The activation and the resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(self, rng, backbone):
    """Static prompts are normal, linear layers as torch initialises them."""
    m, rngs = self.prompt_length, iter(jax.random.split(rng, 6))
    width, text, d = (
      backbone.vision_width,
      backbone.text_width,
      backbone.embed_dim,
    )
    static = lambda c: {
      str(j): PROMPT_STD * jax.random.normal(key, (m, c))
      for j, key in enumerate(jax.random.split(next(rngs), self.prompt_depth))
    }
    heads = lambda n, c_in, c_out: {
      str(i): linear.init(key, c_in, c_out)
      for i, key in enumerate(jax.random.split(next(rngs), n))
    }
    params = {
      "static_text_prompts": static(text),
      "static_visual_prompts": static(width),
      "patch_projection": heads(len(self.feature_layers), width, d),
      "class_projection": heads(1, d, d),
      "dynamic_visual_prompts": heads(m, d, width),
      "dynamic_text_prompts": heads(m, d, text),
    }
    return params, {}

  def trainable_mask(self, params):
    """The authors' optimiser skips what gets no gradient, decay included."""
    tower = {"V": "visual", "L": "text"}
    kind = {"S": "static", "D": "dynamic"}
    used = {
      f"{kind[k]}_{tower[t]}_prompts"
      for k in self.prompt_types
      for t in self.prompt_branches
    }
    tree = {}
    for name, part in params.items():
      read = name in used or not name.endswith("_prompts")
      tree[name] = jax.tree.map(lambda _, read=read: read, part)
    if not self.text_prompt_first_layer:
      tree["static_text_prompts"]["0"] = False
    return tree

  def prepare(self, backbone, class_names):
    """Each class's sentences as a tree: ids (classes, n) and its parts."""
    found = [
      backbone.tokenize(sum(prompts.adaclip(name), [])) for name in class_names
    ]
    tree = prompt_trie.stack([prompt_trie.build(*pair) for pair in found])
    ids = [pair[0].ravel()[at] for pair, at in zip(found, tree.source)]
    parts = {
      "ids": np.stack(ids),
      "positions": tree.position,
      "attention_mask": tree.attention_mask,
      "end": tree.end,
    }
    return jax.tree.map(jnp.asarray, parts)

  def encode(self, backbone, batch):
    """The un-prompted embedding g0, which the dynamic prompts are made of."""
    image = batch["image"]
    features = {"pixels": image, "class_id": batch["class_id"]}
    if "D" in self.prompt_types:
      features["image_embed"], _ = self._image(
        backbone, image, last_patches=False
      )
    return features

  def prompts(self, params, features, tower):
    """Prompts per image and layer, static plus dynamic (App. 2.1).

    Args:
      params: trainable parameters.
      features: `encode`'s; only "image_embed" is read, for type D.
      tower: "visual" or "text".

    Returns:
      (b, J, M, c); batch axis 1 when the prompts are the same for all images.
    """
    result = 0.0
    if "S" in self.prompt_types:
      static = params[f"static_{tower}_prompts"]
      result += jnp.stack([static[str(j)] for j in range(len(static))])[None]
    if "D" in self.prompt_types:
      heads = params[f"dynamic_{tower}_prompts"]
      dynamic = [
        linear.apply(heads[str(m)], features["image_embed"])
        for m in range(len(heads))
      ]
      result += jnp.stack(dynamic, axis=1)[:, None]
    depth = (result.shape[0], self.prompt_depth, *result.shape[2:])
    return jnp.broadcast_to(result, depth)

  def text(self, params, backbone, aux, features):
    """Unit embeddings of the states of each image's class: (b, 2, d)."""
    tree = jax.tree.map(lambda x: x[features["class_id"]], aux)
    ids, end = tree.pop("ids"), tree.pop("end")
    hooks = {key: tree[key] for key in ("positions", "attention_mask")}
    if "L" in self.prompt_branches:
      layers = self.prompts(params, features, "text")
      first = 0 if self.text_prompt_first_layer else 1
      hooks["prompt_mode"] = self.text_prompt_mode
      hooks["round_fp16"] = self.round_fp16
      hooks["prompts"] = {
        j: layers[:, j] for j in range(first, self.prompt_depth)
      }
    embed, _ = backbone.text(
      backbone.embed_tokens(ids), end, activation=self.activation, **hooks
    )
    embed = similarity.unit(embed)
    normal = prompts.ADACLIP_NUM_NORMAL_PROMPTS
    means = [embed[:, :normal].mean(1), embed[:, normal:].mean(1)]
    return similarity.unit(jnp.stack(means, axis=1))

  def forward(self, params, backbone, aux, features, hsf_labels=None):
    """Both towers, prompted, and what is read from them (Code).

    Args:
      params: trainable parameters.
      backbone: frozen CLIP.
      aux: `prepare`'s.
      features: `encode`'s.
      hsf_labels: (b, 5 K) cluster of each selected patch, instead of k-means.

    Returns:
      Dict of: patch_units, one (b, l, d) per level; class_unit (b, d);
      text_units (b, 2, d); patch_logits (b, levels, l, 2); image_prob (b, 2);
      with fusion also fused (b, d).
    """
    hooks = {"remat": self.remat}
    image = features["pixels"]
    if "V" in self.prompt_branches:
      layers = self.prompts(params, features, "visual")
      hooks["prompts"] = jnp.broadcast_to(
        layers, (image.shape[0], *layers.shape[1:])
      )
    embed, out = self._image(backbone, image, **hooks)
    project = lambda head, x: similarity.unit(linear.apply(head, x))
    class_unit = project(params["class_projection"]["0"], embed)
    levels = [
      params["patch_projection"][str(i)]
      for i in range(len(self.feature_layers))
    ]
    patch_units = [
      project(head, out[f"block{layer:02d}"][:, 1:])
      for head, layer in zip(levels, self.feature_layers)
    ]
    text_units = self.text(params, backbone, aux, features)
    patch_logits = self.cosine_scale * jnp.stack(
      [jnp.einsum("bld,bsd->bls", p, text_units) for p in patch_units], axis=1
    )
    result = {
      "patch_units": patch_units,
      "class_unit": class_unit,
      "text_units": text_units,
      "patch_logits": patch_logits,
    }
    image_unit = class_unit
    if self.hsf != "none":
      result["fused"] = self.fuse(patch_units, patch_logits, hsf_labels)
      image_unit = similarity.unit(
        self.hsf_mix * result["fused"] + (1 - self.hsf_mix) * class_unit
      )
    image_logits = jnp.einsum("bd,bsd->bs", image_unit, text_units)
    result["image_prob"] = jax.nn.softmax(self.cosine_scale * image_logits)
    return result

  def level_maps(self, result, size):
    """Probabilities of the states per pixel: (b, levels, h, w, 2)."""
    logits = result["patch_logits"]
    if self.train_map == "mean":
      logits = logits.mean(axis=1, keepdims=True)
    b, levels, l, states = logits.shape
    maps = _map_prob(logits.reshape(b * levels, l, states), size)
    return maps.reshape(b, levels, *maps.shape[1:])

  def loss_terms(self, result, batch):
    """Losses per image: (b,) and (b, levels, 3); see losses.segmentation."""
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

  def loss(self, params, stats, backbone, aux, features, batch, rng):
    """Focal on image and maps, Dice on both channels of maps (Code)."""
    del rng  # No dropout.
    result = self.forward(params, backbone, aux, features)
    image, pixel = self.loss_terms(result, batch)
    weight = batch["weight"]
    masked = weight * batch["has_mask"]  # No masks, no pixel terms.
    focal, anomalous, normal = (
      losses.weighted_mean(pixel[..., i].sum(axis=1), masked) for i in range(3)
    )
    parts = {
      "image_focal": losses.weighted_mean(image, weight),
      "pixel_focal": focal,
      "dice_anomalous": anomalous,
      "dice_normal": normal,
    }
    return sum(parts.values()), (parts, stats)

  def predict(self, params, stats, backbone, aux, features):
    """Levels are averaged as logits, then softmax: one interpolation."""
    del stats
    result = self.forward(params, backbone, aux, features)
    return self.to_prediction(result, features["pixels"].shape[1:3])

  def to_prediction(self, result, size):
    """`forward`'s result as a prediction of h x w pixels."""
    prob = _map_prob(result["patch_logits"].mean(axis=1), size)
    return {
      "anomaly_map": prob[..., ANOMALOUS],
      "pred_score": result["image_prob"][:, ANOMALOUS],
    }

  def _image(self, backbone, image, **hooks):
    return backbone.image(
      image, activation=self.activation, pos_resize=self.pos_resize, **hooks
    )

  def fuse(self, patch_units, patch_logits, labels):
    """Semantic fusion of each image: (b, d)."""
    units = jnp.stack(patch_units, axis=1)
    prob = semantic_fusion.patch_anomaly_prob(patch_logits)
    fuse = functools.partial(
      semantic_fusion.fuse,
      mode=self.hsf,
      k=self.num_clusters,
      count=self.hsf_top_factor * self.num_clusters,
      seed=self.hsf_seed,
    )
    if labels is None:
      return jax.vmap(fuse)(units, prob)
    return jax.vmap(lambda u, p, l: fuse(u, p, labels=l))(units, prob, labels)


def _map_prob(patch_logits, size):
  """(b, l, 2) -> (b, h, w, 2): logits are interpolated, then softmax."""
  logits = similarity.to_map(patch_logits, size, method="bilinear_corners")
  return jax.nn.softmax(logits)


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
# Settings for a backbone of three blocks of width 64, for tests.
TINY = dict(
  feature_layers=(1, 3),
  prompt_length=2,
  prompt_depth=2,
  num_clusters=3,
  hsf_top_factor=2,
)
