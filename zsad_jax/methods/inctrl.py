"""InCTRL. Zhu and Pang, CVPR 2024, arXiv:2403.06495.

  Code       Method.encode
  Code       Method.residual_map
  Code       Method.forward
  Code       Method.loss
  Code       mixed

"Code" is the authors' open_clip/model.py and engine_IC.py. Trained once on
auxiliary images, it compares an image with k normal references of its class:
patches with the nearest ones, and the embedding with those of the references,
by small networks. With CLIP's probability of prompts they give one score.

Where code and paper differ, or the code has an error, the default is:

  loss_input    "logits", the focal loss takes the two probabilities as logits,
                as the code does; "probabilities" is the paper's
  grouping      "image", each image is compared with its own references; "mixed"
                repeats a reshape of the code that exchanges images, layers and
                references within a batch of training. Which one the published
                numbers have is not known
  maps          "none", scores are the only result; "residual", the distances of
                patches are a map, as AdaptCLIP's authors use it
BatchNorm follows each hidden ReLU; that of the inputs has parameters that
nothing reads.

Ours: images are resized to squares (the authors crop the longer side); a batch
is drawn from the test images of the auxiliary sets, and its references, with
replacement, from their training images (authors: as many normal as anomalous
images, normal ones of both parts, of which one may be its own reference).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax import losses, types
from zsad_jax.layers import (
  dual_path,
  linear,
  memory_bank,
  prompt_learner,
  prompts,
  ranges,
  score_fusion,
  score_head,
  similarity,
  text_ensemble,
)
from zsad_jax.torch_io import rules
from zsad_jax.types import ANOMALOUS, Batch, Features, Params

Aux = Mapping[str, Array]  # See `Method.prepare`.


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Hyperparameters; see above for the defaults.

  Attributes:
    feature_layers: layers (1-based) whose patches are compared.
    grid: patches per side of the images, on which the widths depend.
    reduction: width of the embedding divided by that of the adapter.
    head_widths: hidden widths of both heads.
    train_shots: references of each training image; any number in predictions.
    temperature: of the softmax over the states.
    loss_input, grouping, maps: see above.
    activation: activation of both towers; None for that of the weights.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  feature_layers: tuple[int, ...] = (7, 9, 11)
  grid: int = 15
  reduction: int = 4
  head_widths: tuple[int, int] = (128, 64)
  train_shots: int = 2
  temperature: float = 0.01
  loss_input: Literal["logits", "probabilities"] = "logits"
  grouping: Literal["image", "mixed"] = "image"
  maps: Literal["none", "residual"] = "none"
  activation: types.Activation | None = None
  pos_resize: types.PositionResize = "bicubic_antialias"

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    counts = ["feature_layers", "grid", "reduction", "head_widths"]
    ranges.check(
      self, counts=[*counts, "train_shots"], positive=["temperature"]
    )

  @property
  def num_references(self) -> int:
    """Number of reference images per training image."""
    return self.train_shots

  @property
  def needs_references(self) -> bool:
    """True: without references only the probability of prompts is left."""
    return True

  @property
  def image_only(self) -> bool:
    """Whether scores are the only result."""
    return self.maps == "none"

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(
    self, rng: jax.Array, backbone: types.ImageBackbone
  ) -> tuple[Params, Params]:
    """Initialize all layers as torch does."""
    rngs, d = jax.random.split(rng, 4), backbone.embed_dim
    hidden = d // self.reduction
    adapter = {
      "down": linear.init(rngs[0], d, hidden, bias=False),
      "up": linear.init(rngs[1], hidden, d, bias=False),
    }
    widths = (self.grid**2, d)
    heads = [
      score_head.init(key, width, self.head_widths)
      for key, width in zip(rngs[2:], widths)
    ]
    (patch, patch_stats), (image, image_stats) = heads
    params = {"adapter": adapter, "patch_head": patch, "image_head": image}
    return params, {"patch_head": patch_stats, "image_head": image_stats}

  def trainable_mask(self, params: Params) -> Params:
    """Return False for the normalization of inputs, which nothing reads."""
    unused = lambda path, _: path[1].key != "norm1"
    return jax.tree_util.tree_map_with_path(unused, params)

  def prepare(
    self, backbone: types.ImageBackbone, class_names: Sequence[str]
  ) -> dict[str, Array]:
    """Embed the prompts of each class.

    Returns:
      "text_units" (n, 2, d): per state the normalized mean of unit embeddings.
    """
    means = text_ensemble.embed(
      prompt_learner.require_text(backbone),
      class_names,
      prompts.inctrl,
      activation=self.activation,
    )
    return {"text_units": similarity.unit(means)}

  def encode(self, backbone: types.ImageBackbone, batch: Batch) -> Features:
    """Return embeddings and unit patches of the feature layers (Code).

    Raises:
      ValueError: the image has another number of patches than `grid`, or there
        is no such layer.
    """
    dual_path.check_layers(backbone, self.feature_layers)
    side = batch["image"].shape[1]
    if side != self.grid * backbone.patch_size:
      raise ValueError(
        f"config.method.grid is {self.grid}, for images of "
        f"{self.grid * backbone.patch_size} pixels; got images of {side}."
      )
    last = backbone.vision_layers in self.feature_layers
    embed, out = backbone.image(
      batch["image"], last_patches=last, **self.image_hooks
    )
    tokens = [out[f"block{i:02d}"][:, 1:] for i in self.feature_layers]
    return {
      "embed": embed,
      "layer_units": similarity.unit(jnp.stack(tokens, axis=1)),
      "class_id": batch["class_id"],
    }

  def build_memory_bank(self, features: Features) -> dict[str, Array]:
    """Return embeddings (n, k, d) and unit patches (n, k, layers, l, c)."""
    return {name: features[name] for name in ("embed", "layer_units")}

  def residual_map(
    self, units: Float[Array, "b n l c"], bank: Float[Array, "m k n l c"]
  ) -> Float[Array, "b l"]:
    """Return half the distance to the nearest patch, mean of layers (Code)."""
    layers = range(len(self.feature_layers))
    return score_fusion.mean(
      [0.5 * memory_bank.nearest(units[:, i], bank[:, :, i])[0] for i in layers]
    )

  def adapt(
    self, params: Params, embed: Float[Array, "*b d"]
  ) -> Float[Array, "*b d"]:
    """Apply the adapter to embeddings."""
    hidden = jax.nn.relu(linear.apply(params["adapter"]["down"], embed))
    return jax.nn.relu(linear.apply(params["adapter"]["up"], hidden))

  def forward(
    self,
    params: Params,
    stats: Params,
    aux: Aux,
    features: Features,
    weight: Float[Array, " b"] | None = None,
  ) -> tuple[dict[str, Array], Params]:
    """Compare images with their references (Code).

    Args:
      params: trainable parameters.
      stats: running statistics.
      aux: see `prepare`.
      features: see `encode`, with "memory_bank".
      weight: of the images in training; None uses the running statistics.

    Returns:
      Dict of: patch_residual (b, l); image_residual (b, d), reference minus
      image; image_score, text_score, head_score, score (b,); holistic (b, l).
      And the new statistics.
    """
    bank, units = features["memory_bank"], features["layer_units"]
    if self.grouping == "mixed" and weight is not None:
      units, bank = mixed(units, bank)
    patch = self.residual_map(units, bank["layer_units"])
    reference = self.adapt(params, bank["embed"]).mean(axis=1)
    image = reference - self.adapt(params, features["embed"])
    image_score, image_stats = score_head.apply(
      params["image_head"], stats["image_head"], image, weight
    )
    text_score = self.text_score(aux, features)
    holistic = (text_score + image_score)[:, None] + patch
    head_score, patch_stats = score_head.apply(
      params["patch_head"], stats["patch_head"], holistic, weight
    )
    result = {
      "patch_residual": patch,
      "image_residual": image,
      "image_score": image_score,
      "text_score": text_score,
      "holistic": holistic,
      "head_score": head_score,
      "score": 0.5 * (head_score + patch.max(axis=1)),
    }
    return result, {"patch_head": patch_stats, "image_head": image_stats}

  def text_score(self, aux: Aux, features: Features) -> Float[Array, " b"]:
    """Return CLIP's probability of the prompts of anomalous objects."""
    text_units = aux["text_units"][features["class_id"]]
    units = similarity.unit(features["embed"])
    prob = similarity.state_prob(units, text_units, self.temperature)
    return prob[:, ANOMALOUS]

  def loss(
    self,
    params: Params,
    stats: Params,
    backbone: types.Backbone,
    aux: Aux,
    features: Features,
    batch: Batch,
    rng: jax.Array | None,
  ) -> tuple[Array, tuple[dict[str, Array], Params]]:
    """Return the focal losses of the score and of the image score (Code)."""
    del rng, backbone  # No dropout; the text is embedded already.
    weight = batch["weight"]
    found, stats = self.forward(params, stats, aux, features, weight)
    logits = self.loss_input == "logits"
    focal = losses.binary_focal_with_logits if logits else losses.binary_focal
    label = batch["label"].astype(jnp.float32)
    parts = {
      name: losses.weighted_mean(focal(found[key], label), weight)
      for name, key in (
        ("final_focal", "score"),
        ("image_focal", "image_score"),
      )
    }
    return losses.total(parts), (parts, stats)

  def predict(
    self,
    params: Params,
    stats: Params,
    backbone: types.ImageBackbone,
    aux: Aux,
    features: Features,
  ) -> types.Prediction:
    """Return scores and the residual map; without a memory bank, of prompts."""
    side = self.grid * backbone.patch_size
    if "memory_bank" not in features:
      score = self.text_score(aux, features)
      anomaly_map = jnp.broadcast_to(
        score[:, None, None], (*score.shape, side, side)
      )
      return {"anomaly_map": anomaly_map, "pred_score": score}
    found, _ = self.forward(params, stats, aux, features)
    anomaly_map = similarity.value_map(found["patch_residual"], (side, side))
    return {"anomaly_map": anomaly_map, "pred_score": found["score"]}


def mixed(
  units: Float[Array, "b n l c"], bank: Mapping[str, Array]
) -> tuple[Float[Array, "b n l c"], dict[str, Array]]:
  """Exchange images, layers and references within a batch (Code).

  The code lists patches by layer, then (of references) by shot, then by image,
  and reads the list as if it were by image, then by layer.

  Args:
    units: patches of the images.
    bank: references of each image, see `Method.build_memory_bank`.
  """
  b, n = units.shape[:2]
  k = bank["embed"].shape[1]
  layer, image = np.divmod(np.arange(b * n).reshape(b, n), b)
  numbers = np.arange(b * n * k).reshape(b, n, k)
  of_layer, rest = np.divmod(numbers, k * b)
  shot, owner = np.divmod(rest, b)
  of_shot, of_image = np.divmod(np.arange(b * k).reshape(b, k), b)
  references = bank["layer_units"][owner, shot, of_layer]  # (b, n, k, l, c)
  return units[image, layer], {
    "embed": bank["embed"][of_image, of_shot],
    "layer_units": jnp.swapaxes(references, 1, 2),
  }


_MODULES = (("diff_head", "patch_head"), ("diff_head_ref", "image_head"))
# Names of the parameters and statistics in the authors' code.
TORCH_NAMES = (
  rules.Rule(r"adapter\.fc\.0\.weight", "adapter/down/kernel", "linear"),
  rules.Rule(r"adapter\.fc\.2\.weight", "adapter/up/kernel", "linear"),
)
TORCH_STATS: rules.Table = ()
for _torch, _ours in _MODULES:
  TORCH_NAMES += rules.linear(
    rf"{_torch}\.projection(\d)", rf"{_ours}/linear\1"
  )
  TORCH_NAMES += rules.norm(rf"{_torch}\.bn(\d)", rf"{_ours}/norm\1")
  TORCH_STATS += rules.batch_norm_stats(
    rf"{_torch}\.bn(\d)", rf"{_ours}/norm\1"
  )
PAPER_NAME = "InCTRL"  # In the tables of the papers.
# Settings for a backbone of three blocks of width 64, for tests.
TINY = dict(feature_layers=(1, 3), grid=4, head_widths=(8, 4))
