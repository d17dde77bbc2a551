"""Plain CLIP, asked for the state. Radford et al., ICML 2021, arXiv:2103.00020.

  Sec. 3.1   Method.prepare
  Code       Method.forward

Nothing is learned: image and patches are compared with sentences about a
normal and an anomalous object. The sentences are those of WinCLIP (Jeong et
al., CVPR 2023, arXiv:2303.14814): states by photographs, averaged (Sec. 3.1.4
of CLIP's paper, "prompt ensembling"). `prompts` = "pair" has the two sentences
that AnomalyCLIP's appendix compares with.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from zsad_jax import types
from zsad_jax.layers import dual_path, prompts, similarity
from zsad_jax.types import ANOMALOUS


@dataclasses.dataclass(frozen=True)
class Method(types.Method):
  """Settings.

  Attributes:
    prompts: "states", WinCLIP's sentences, or "pair".
    temperature: of the softmax over the states; it changes no ranking of
      images.
    activation: activation of both towers; None for the one of the weights.
    pos_resize: how CLIP's position table is resized, see layers/resample.py.
  """

  prompts: Literal["states", "pair"] = "states"
  temperature: float = 0.01
  activation: types.Activation | None = None
  pos_resize: types.PositionResize = "bicubic_antialias"

  @property
  def image_hooks(self):
    """The activation and the resizing of CLIP's position table."""
    return {"activation": self.activation, "pos_resize": self.pos_resize}

  def init(self, rng, backbone):
    """There is nothing to learn."""
    del rng, backbone
    return {}, {}

  def prepare(self, backbone, class_names):
    """Mean unit embeddings of each class's sentences (Sec. 3.1): (n, 2, d)."""
    embed = jax.jit(
      lambda ids, end: similarity.unit(
        backbone.text(
          backbone.embed_tokens(ids), end, activation=self.activation
        )[0]
      )
    )
    units = []
    for name in class_names:
      states = self.state_prompts(name)
      ids, end = backbone.tokenize([*states[0], *states[1]])
      each = jnp.split(embed(ids, end), [len(states[0])])
      units.append(jnp.stack([x.mean(axis=0) for x in each]))
    return {"text_units": similarity.unit(jnp.stack(units))}

  def state_prompts(self, name):
    """Normal and anomalous sentences about a class."""
    name = name.replace("_", " ")
    if self.prompts == "pair":
      return [f"a photo of a normal {name}."], [
        f"a photo of an anomalous {name}."
      ]
    return prompts.winclip(name)

  def encode(self, backbone, batch):
    """Unit embeddings of the image and of the last block's patches."""
    image, patches = dual_path.encode(
      backbone,
      batch["image"],
      feature_layers=(backbone.vision_layers,),
      vv_from=None,
      class_ln_post=True,
      **self.image_hooks,
    )
    return {
      "class_unit": similarity.unit(image),
      "patch_units": similarity.unit(patches[0][:, 1:]),
      "class_id": batch["class_id"],
    }

  def forward(self, aux, features):
    """Probabilities of the states (Code): image (b, 2), patches (b, l, 2)."""
    text_units = aux["text_units"][features["class_id"]]
    return tuple(
      similarity.state_prob(features[x], text_units, self.temperature)
      for x in ("class_unit", "patch_units")
    )

  def loss(self, params, stats, backbone, aux, features, batch, rng):
    """There is none; a run of this method has no steps."""
    del params, stats, backbone, aux, features, batch, rng
    raise ValueError("Plain CLIP learns nothing: set config.epochs to 0.")

  def predict(self, params, stats, backbone, aux, features):
    """Maps of the last block's patches; the class token's score."""
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
