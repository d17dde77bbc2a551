"""Zero-shot CLIP baseline. Radford et al., ICML 2021, arXiv:2103.00020.

  Sec. 3.1   Method.prepare
  Code       Method.forward

Nothing is trained: image and patches are compared with text prompts for a
normal and an anomalous object. The prompts are those of WinCLIP (Jeong et al.,
CVPR 2023, arXiv:2303.14814): all combinations of states and templates,
averaged (Sec. 3.1.4 of CLIP's paper, "prompt ensembling"). `prompts` = "pair"
uses the two prompts that AnomalyCLIP's appendix compares with.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

import jax
from jaxtyping import Array, Float

from zsad_jax import types
from zsad_jax.layers import (
  dual_path,
  prompts,
  ranges,
  similarity,
  text_ensemble,
)
from zsad_jax.types import ANOMALOUS


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Settings.

  Attributes:
    prompts: "states", WinCLIP's prompts, or "pair".
    temperature: of the softmax over the states; it does not change the
      ranking of images.
    activation: activation of both towers; None for that of the weights.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  prompts: Literal["states", "pair"] = "states"
  temperature: float = 0.01
  activation: types.Activation | None = None
  pos_resize: types.PositionResize = "bicubic_antialias"

  def __post_init__(self) -> None:
    types.Method.__post_init__(self)
    ranges.check(self, positive=["temperature"])

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(
    self, rng: jax.Array, backbone: types.ImageBackbone
  ) -> tuple[types.Params, types.Params]:
    """Return no parameters."""
    del rng, backbone
    return {}, {}

  def prepare(
    self, backbone: types.Backbone, class_names: Sequence[str]
  ) -> dict[str, Array]:
    """Embed the prompts of each class (Sec. 3.1).

    Args:
      backbone: frozen CLIP.
      class_names: n names.

    Returns:
      "text_units" (n, 2, d): per state the normalized mean of unit embeddings.
    """
    means = text_ensemble.embed(
      backbone, class_names, self.state_prompts, activation=self.activation
    )
    return {"text_units": similarity.unit(means)}

  def state_prompts(self, name: str) -> Sequence[Sequence[str]]:
    """Return the normal and the anomalous prompts for a class."""
    name = name.replace("_", " ")
    if self.prompts == "pair":
      normal = f"a photo of a normal {name}."
      return [normal], [f"a photo of an anomalous {name}."]
    return prompts.winclip(name)

  def encode(
    self, backbone: types.ImageBackbone, batch: types.Batch
  ) -> types.Features:
    """Return unit embeddings of the image and of the last block's patches."""
    image, patches = dual_path.encode_units(
      backbone,
      batch["image"],
      feature_layers=(backbone.vision_layers,),
      vv_from=None,
      class_ln_post=True,
      **self.image_hooks,
    )
    return {
      "class_unit": image,
      "patch_units": patches[:, 0],
      "class_id": batch["class_id"],
    }

  def forward(
    self, aux: Mapping[str, Array], features: types.Features
  ) -> tuple[Float[Array, "b 2"], Float[Array, "b l 2"]]:
    """Compute state probabilities of images and patches (Code)."""
    text_units = aux["text_units"][features["class_id"]]
    image, patches = (
      similarity.state_prob(features[x], text_units, self.temperature)
      for x in ("class_unit", "patch_units")
    )
    return image, patches

  def loss(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.ImageBackbone,
    aux: Any,
    features: types.Features,
    batch: types.Batch,
    rng: jax.Array | None,
  ) -> NoReturn:
    """Raise ValueError: there is nothing to train."""
    del params, stats, backbone, aux, features, batch, rng
    raise ValueError("Plain CLIP learns nothing: set config.epochs to 0.")

  def predict(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.ImageBackbone,
    aux: Mapping[str, Array],
    features: types.Features,
  ) -> types.Prediction:
    """Return maps of the last block's patches and scores of the class token."""
    del params, stats
    image, patches = self.forward(aux, features)
    size = similarity.image_size(backbone, features)
    anomaly_map = similarity.to_map(
      patches[..., ANOMALOUS:], size, method="bilinear"
    )
    return {
      "anomaly_map": anomaly_map[..., 0],
      "pred_score": image[:, ANOMALOUS],
    }


PAPER_NAME = "CLIP"  # In the tables of the papers.
TINY = {}  # Settings for a backbone of three blocks, for tests.
