"""What the small CLIP learns from: captions, states and masks.

Three terms, all on unit embeddings:
  captions  every picture with every caption of the batch: the sigmoid loss of
            Zhai et al., ICCV 2023 (SigLIP), against which caption is true
  states    each picture against pairs of a normal and an anomalous sentence,
            as zero-shot detection will use them
  patches   the same for every patch, against the known mask
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax

from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import model as clip
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.layers import similarity

ROWS = "rows"  # The trained rows of the token table.


def init(config: ClipConfig, vocabulary: np.ndarray, seed: int):
  """Returns trainable parameters and the frozen token table (v, c)."""
  params = clip_convert.flatten(clip.random_clip(config, seed).params)
  table = params.pop("text/token_embedding")
  trainable = {
    "clip": params,
    ROWS: table[vocabulary],
    "bias": jnp.float32(-2.0),  # Most captions are not true of a picture.
  }
  return trainable, table


def assemble(trainable, table, vocabulary, config: ClipConfig) -> clip.Clip:
  """The CLIP of these parameters."""
  flat = dict(trainable["clip"])
  flat["text/token_embedding"] = table.at[vocabulary].set(trainable[ROWS])
  return clip.Clip(clip_convert.unflatten(flat), config)


@dataclasses.dataclass(frozen=True)
class Objective:
  """Weights and settings of the loss.

  Attributes:
    feature_layers: layers whose patches are compared with the text, such
      as "block08" and "vv/block08".
    vv_from: first layer of the value-value stream.
    temperature: of states and patches; the one the methods use.
    captions, states, patches: weights of the three terms.
    visible: share of a patch that has to be damaged for it to count; patches
      with less are left out.
    positive: weight of damaged patches.
  """

  feature_layers: tuple[str, ...]
  vv_from: int | None
  temperature: float
  captions: float
  states: float
  patches: float
  visible: float
  positive: float

  def loss(self, trainable, table, vocabulary, config, batch):
    """Returns the loss and its parts.

    Args:
      trainable, table, vocabulary, config: see `assemble`.
      batch: image (2n, h, w, 3) normalised; damage (2n, l), the share of each
        patch that is damaged; keep (2n, k), the patches to be seen; captions,
        end: (k, t), (k,); truth (2n, k) in {0, 1}; states, states_end:
        (2, s, t), (2, s), normal first.
    """
    model = assemble(trainable, table, vocabulary, config)
    keep, damage = batch["keep"], batch["damage"]
    image, out = model.image(batch["image"], vv_from=self.vv_from, keep=keep)
    image = similarity.unit(image)
    said = self._read(model, batch["captions"], batch["end"])
    logits = image @ said.T * jnp.exp(model.params["logit_scale"])
    logits += trainable["bias"]
    captions = optax.sigmoid_binary_cross_entropy(logits, batch["truth"])

    ids, end = batch["states"], batch["states_end"]
    states = self._read(model, ids.reshape(-1, ids.shape[-1]), end.ravel())
    normal, anomalous = states.reshape(2, -1, states.shape[-1])
    direction = (anomalous - normal).T / self.temperature  # (d, s)
    damaged = damage.any(1, keepdims=True).astype(jnp.float32)
    stated = optax.sigmoid_binary_cross_entropy(image @ direction, damaged)
    damage = jnp.take_along_axis(damage, keep, axis=1)
    patches = jnp.stack(
      [
        self._patches(model, out[layer], direction, damage[..., None])
        for layer in self.feature_layers
      ]
    )
    parts = {
      "captions": self.captions * captions.sum(1).mean(),
      "states": self.states * stated.mean(),
      "patches": self.patches * patches.mean(),
    }
    return sum(parts.values()), parts

  @staticmethod
  def _read(model, ids, end):
    embed, _ = model.text(model.embed_tokens(ids), end)
    return similarity.unit(embed)

  def _patches(self, model, tokens, direction, damage):
    """Weighted cross-entropy of a layer's patches (b, 1 + k, c)."""
    units = similarity.unit(model.project(tokens[:, 1:], ln_post=True))
    damaged = (damage >= self.visible).astype(jnp.float32)
    weight = jnp.where(damaged > 0, self.positive, damage == 0)
    error = optax.sigmoid_binary_cross_entropy(units @ direction, damaged)
    return (error * weight).mean(-1).sum() / weight.sum()
