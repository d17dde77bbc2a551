"""WinCLIP and WinCLIP+. Jeong et al., CVPR 2023, arXiv:2303.14814.

  Code       Method.state_prompts
  Code       Method.encode
  Code       Method.map_from_text
  Code       Method.map_from_references
  Code       Method.predict

Nothing is trained. An image and its windows, squares of 2 x 2 and 3 x 3
patches that are encoded one by one, are compared with prompts for a normal and
an anomalous object and, with references (WinCLIP+), with the windows and
patches of normal images.

The authors published no code. Published numbers come from implementations that
differ; the default is anomalib's, and fields give the others (`VARIANTS`):

                 anomalib    anomalyclip  caoyunkang         mala_lab
  templates      21          21           22, no full stops  22
  text_average   raw         raw          raw                unit
  temperature    0.07        0.07         0.01               0.01
  text_map       anomalous   anomalous    normal             image
  patch_level    ln_post     plain        None               plain
  window_mean    harmonic    harmonic     arithmetic         harmonic
  fusion         mean        mean         harmonic           visual
  score          image       image        map                image

anomalib: openvinotoolkit/anomalib on GitHub. anomalyclip: the copy that
AnomalyCLIP's authors host, which adds the two maps where anomalib averages
them; the ranking is the same. caoyunkang: caoyunkang/WinClip, by an author of
AdaCLIP and probably the one in its tables. mala_lab: mala-lab/WinCLIP, which
computes image scores only; it tiles images that are not square (see
parity/winclip.py), here images are resized to squares.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax import types
from zsad_jax.layers import (
  memory_bank,
  prompts,
  ranges,
  score_fusion,
  similarity,
  text_ensemble,
  windows,
)
from zsad_jax.types import ANOMALOUS, NORMAL

Aux = Mapping[str, Array]  # See `Method.prepare`.


@dataclasses.dataclass(frozen=True)
class Method(types.TrainingFree):
  """Settings, with anomalib's values as defaults.

  Attributes:
    scales: patches per side of the windows.
    templates: list of templates, its order and the treatment of class names:
      "mala_lab" replaces "_" by a space.
    text_average: mean of raw or of unit embeddings of the prompts.
    temperature: of the softmax over the states.
    text_map: "anomalous", the harmonic mean of the image's and, at each scale,
      the windows' probabilities; "normal", 1 - 1 / (mean of 1 / probability of
      the normal state); or "image", the image's probability everywhere.
    patch_level: compare single patches with those of references, after or
      before the last LayerNorm; None: windows alone.
    window_mean: mean over the windows that contain a patch, of distances.
    fusion: of text map and distances to references: "mean", "harmonic", or
      "visual", the distances alone. "harmonic" is 1 / (1 / x + 1 / y), half the
      harmonic mean; without references both are the text map.
    score: "image", the probability of the image, averaged with the largest
      distance; or "map", the maximum of the map.
    score_side: side of the map of which the maximum is taken, in pixels; None
      for that of the image.
    gallery_shift: compare the first window of each but the first scale with
      references' windows of the scale before, as caoyunkang's code does.
    activation: activation of both towers; None for that of the weights.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  scales: tuple[int, ...] = (2, 3)
  templates: Literal["anomalib", "caoyunkang", "mala_lab"] = "anomalib"
  text_average: text_ensemble.Average = "raw"
  temperature: float = 0.07
  text_map: Literal["anomalous", "normal", "image"] = "anomalous"
  patch_level: Literal["ln_post", "plain"] | None = "ln_post"
  window_mean: windows.Mean = "harmonic"
  fusion: Literal["mean", "harmonic", "visual"] = "mean"
  score: Literal["image", "map"] = "image"
  score_side: int | None = None
  gallery_shift: bool = False
  activation: types.Activation | None = None
  pos_resize: types.PositionResize = "bicubic_antialias"
  reducible_memory_bank = True

  def __post_init__(self) -> None:
    types.TrainingFree.__post_init__(self)
    ranges.check(
      self, counts=["scales", "score_side"], positive=["temperature"]
    )
    if not self.scales:
      raise ValueError("config.method.scales: there has to be one, got none.")

  @property
  def compares_references(self) -> bool:
    """True: WinCLIP+."""
    return True

  @property
  def image_hooks(self) -> Mapping[str, Any]:
    """Activation and resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  @property
  def encodes_image(self) -> bool:
    """Whether the whole image is encoded, in addition to windows."""
    windows_alone = self.text_map == "normal" and self.score == "map"
    return bool(self.patch_level) or not windows_alone

  def prepare(
    self, backbone: types.Backbone, class_names: Sequence[str]
  ) -> dict[str, Array]:
    """Embed the prompts of each class.

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
    """Return the normal and the anomalous prompts for a class (Code)."""
    if self.templates == "mala_lab":
      name = name.replace("_", " ")
    return prompts.ensemble(
      name,
      prompts.WINCLIP_STATES,
      TEMPLATES[self.templates],
      template_major=self.templates == "caoyunkang",
    )

  def encode(
    self, backbone: types.ImageBackbone, batch: types.Batch
  ) -> types.Features:
    """Return unit embeddings of the image, windows and patches (Code).

    Args:
      backbone: frozen CLIP.
      batch: "image" (b, h, w, 3), square, and "class_id".

    Returns:
      "windows_2" and so on, for each scale, (b, n, d); "class_unit" (b, d) and
      "patch_units" (b, l, c), tokens without projection, where they are used.
    """
    tower, image = windows.require(backbone), batch["image"]
    side = image.shape[1] // backbone.patch_size
    features = {"class_id": batch["class_id"]}
    for scale in self.scales:
      chosen = windows.patches(side, scale)
      found = tower.windows(image, chosen, **self.image_hooks)
      features[_windows(scale)] = similarity.unit(found)
    if not self.encodes_image:
      return features
    hooks = {"last_patches": bool(self.patch_level), **self.image_hooks}
    embed, out = backbone.image(image, **hooks)
    features["class_unit"] = similarity.unit(embed)
    if self.patch_level:
      tokens = out[f"block{backbone.vision_layers:02d}"][:, 1:]
      if self.patch_level == "ln_post":
        tokens = tower.normalize_tokens(tokens)
      features["patch_units"] = similarity.unit(tokens)
    return features

  def build_memory_bank(self, features: types.Features) -> dict[str, Array]:
    """Return the windows, and patches where they are used, of references."""
    levels = [*map(_windows, self.scales), "patch_units"]
    return {name: features[name] for name in levels if name in features}

  def probabilities(
    self, aux: Aux, features: types.Features
  ) -> dict[str, Float[Array, "b ... 2"]]:
    """Return the state probabilities of the image and of each scale."""
    text_units = aux["text_units"][features["class_id"]]
    levels = [*map(_windows, self.scales), "class_unit"]
    return {
      name: similarity.state_prob(features[name], text_units, self.temperature)
      for name in levels
      if name in features
    }

  def map_from_text(self, probs: Mapping[str, Array]) -> Float[Array, "b l"]:
    """Combine probabilities to a value of each patch (Code).

    Args:
      probs: see `probabilities`.
    """
    scales = [(scale, probs[_windows(scale)]) for scale in self.scales]
    if self.text_map == "normal":
      inverse = [
        windows.to_patches(1.0 / x[..., NORMAL], scale, mean="arithmetic")
        for scale, x in scales
      ]
      return 1.0 - 1.0 / score_fusion.mean(inverse)
    maps = [
      windows.to_patches(x[..., ANOMALOUS], scale, mean="harmonic")
      for scale, x in scales
    ]
    image = jnp.broadcast_to(
      probs["class_unit"][:, ANOMALOUS, None], maps[0].shape
    )
    if self.text_map == "image":
      return image
    return score_fusion.harmonic_mean([image, *maps])

  def distances(self, features: types.Features) -> list[Float[Array, "b _"]]:
    """Return half the cosine distance to the nearest reference, per level."""
    bank, levels = features["memory_bank"], [*map(_windows, self.scales)]

    def nearest(units, level):
      # Half of a cosine distance is in [0, 1], as probabilities are.
      return 0.5 * memory_bank.nearest(units, bank[level])[0]

    found = [nearest(features[level], level) for level in levels]
    if self.gallery_shift:
      for i in range(1, len(levels)):
        first = nearest(features[levels[i]][:, :1], levels[i - 1])
        found[i] = found[i].at[:, :1].set(first)
    if self.patch_level:
      found.append(nearest(features["patch_units"], "patch_units"))
    return found

  def map_from_references(
    self, distances: Sequence[Float[Array, "b _"]]
  ) -> Float[Array, "b l"]:
    """Average distances to references to a value of each patch (Code).

    Args:
      distances: see `distances`.
    """
    maps = [
      windows.to_patches(x, scale, mean=self.window_mean)
      for x, scale in zip(distances, self.scales)
    ]
    return score_fusion.mean([*maps, *distances[len(maps) :]])

  def fuse(
    self, text: Float[Array, "b l"], visual: Float[Array, "b l"] | None
  ) -> Float[Array, "b l"]:
    """Combine the values from text and, where given, from references."""
    if self.fusion == "harmonic":
      both = [text, text if visual is None else visual]
      return 0.5 * score_fusion.harmonic_mean(both)
    if visual is None:
      return text
    return visual if self.fusion == "visual" else 0.5 * (text + visual)

  def to_map(
    self, values: Float[Array, "b l"], side: int
  ) -> Float[Array, "b s s"]:
    """Resize values of patches to maps of `side` pixels."""
    size = (side, side)
    return similarity.to_map(values[..., None], size, method="bilinear")[..., 0]

  def predict(
    self,
    params: types.Params,
    stats: types.Params,
    backbone: types.ImageBackbone,
    aux: Aux,
    features: types.Features,
  ) -> types.Prediction:
    """Predict zero-shot, or few-shot with features["memory_bank"] (Code)."""
    del params, stats
    probs, visual = self.probabilities(aux, features), None
    if "memory_bank" in features:
      visual = self.map_from_references(self.distances(features))
    values = self.fuse(self.map_from_text(probs), visual)
    side = round(values.shape[1] ** 0.5) * backbone.patch_size
    anomaly_map = self.to_map(values, side)
    if self.score == "map":
      score = self.to_map(values, self.score_side or side).max(axis=(1, 2))
    else:
      score = probs["class_unit"][:, ANOMALOUS]
      if visual is not None:
        score = 0.5 * (score + visual.max(axis=1))
    return {"anomaly_map": anomaly_map, "pred_score": score}


def _windows(scale):
  """Return the name of the features of windows of this scale."""
  return f"windows_{scale}"


TEMPLATES = {
  "anomalib": prompts.WINCLIP_TEMPLATES_21,
  "caoyunkang": prompts.WINCLIP_TEMPLATES_CAOYUNKANG,
  "mala_lab": prompts.WINCLIP_TEMPLATES_MALA_LAB,
}
# Settings of the implementations, by variant of the configuration.
VARIANTS: dict[str, dict[str, Any]] = {
  "anomalyclip": dict(patch_level="plain"),
  "caoyunkang": dict(
    templates="caoyunkang",
    temperature=0.01,
    text_map="normal",
    patch_level=None,
    window_mean="arithmetic",
    fusion="harmonic",
    score="map",
    score_side=400,
    gallery_shift=True,
    pos_resize="bicubic",
  ),
  "mala_lab": dict(
    templates="mala_lab",
    text_average="unit",
    temperature=0.01,
    text_map="image",
    patch_level="plain",
    fusion="visual",
  ),
}
PAPER_NAME = "WinCLIP"  # In the tables of the papers.
PAPER_VARIANTS = {"anomalyclip": "WinCLIP", "caoyunkang": "WinCLIP"}
VARIANT_BY_PAPER = {
  "adaclip": "caoyunkang",
  "adaptclip": "anomalyclip",
  "faprompt": "anomalyclip",
}
TINY = {}  # Settings for a backbone of three blocks, for tests.
