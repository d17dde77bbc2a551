"""Zero-shot CLIP baseline. Radford et al., ICML 2021, arXiv:2103.00020.

  Sec. 3.1   Method.prepare
  Code       Method.forward

Nothing is trained: image and patches are compared with text prompts for a
normal and an anomalous object. The prompts are those of WinCLIP (Jeong et al.,
CVPR 2023, arXiv:2303.14814): all combinations of states and templates,
averaged (Sec. 3.1.4 of CLIP's paper, "prompt ensembling").

`prompts` gives the two baselines of AnomalyCLIP's appendix, whose code is not
published: CLIP ("pair") and CLIP-AC ("imagenet", the 80 templates that CLIP's
authors published for ImageNet).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

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
class Method(types.TrainingFree):
  """Settings.

  Attributes:
    prompts: "states", WinCLIP's prompts; "pair", "a photo of a normal
      [class]." and "a photo of an anomalous [class]."; "pair_no_stop", the same
      without full stop; or "imagenet", with "normal [class]" and "anomalous
      [class]" in each template.
    text_average: mean of unit or of raw embeddings of a state's prompts.
    cls_ln_post: send the class token through ln_post, as CLIP does and
      AnomalyCLIP's code does not.
    temperature: of the softmax over the states; it does not change the
      ranking of images.
    activation: activation of both towers; None for that of the weights.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  prompts: Literal["states", "pair", "pair_no_stop", "imagenet"] = "states"
  text_average: text_ensemble.Average = "unit"
  cls_ln_post: bool = True
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

  def prepare(
    self, backbone: types.Backbone, class_names: Sequence[str]
  ) -> dict[str, Array]:
    """Embed the prompts of each class (Sec. 3.1).

    Args:
      backbone: frozen CLIP.
      class_names: n names.

    Returns:
      "text_units" (n, 2, d): per state the normalized mean embedding.
    """
    means = text_ensemble.embed(
      backbone,
      class_names,
      self.state_prompts,
      average=self.text_average,
      activation=self.activation,
    )
    return {"text_units": similarity.unit(means)}

  def state_prompts(self, name: str) -> Sequence[Sequence[str]]:
    """Return the normal and the anomalous prompts for a class."""
    name = name.replace("_", " ")
    if self.prompts == "states":
      return prompts.winclip(name)
    if self.prompts == "imagenet":
      return prompts.clip_ac(name)
    end = "." if self.prompts == "pair" else ""
    return (
      [f"a photo of a normal {name}{end}"],
      [f"a photo of an anomalous {name}{end}"],
    )

  def encode(
    self, backbone: types.ImageBackbone, batch: types.Batch
  ) -> types.Features:
    """Return unit embeddings of the image and of the last block's patches."""
    image, patches = dual_path.encode_units(
      backbone,
      batch["image"],
      feature_layers=(backbone.vision_layers,),
      vv_from=None,
      class_ln_post=self.cls_ln_post,
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
PAPER_VARIANTS = {"pair": "CLIP", "ac": "CLIP-AC"}
TINY = {}  # Settings for a backbone of three blocks, for tests.
