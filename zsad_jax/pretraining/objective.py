"""Pretraining loss of the small CLIP.

It is the sum of three terms, all on unit embeddings:

  captions  sigmoid loss (SigLIP, Zhai et al., ICCV 2023) between all images
            and all captions of a batch; the labels are which captions are true
  states    binary cross-entropy of each image being anomalous, from its
            similarity with pairs of a normal and an anomalous prompt, as in
            zero-shot detection
  patches   the same for each patch; the labels are the masks
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zsad_jax import types
from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import model as clip
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.layers import similarity

ROWS = "rows"  # Trained rows of the token table, a key of the parameters.


def init(
  config: ClipConfig, vocabulary: np.ndarray, seed: int
) -> tuple[dict[str, Any], jax.Array]:
  """Initialize the parameters.

  Args:
    config: sizes of the model.
    vocabulary: ids of the trained rows of the token table.
    seed: seed of the weights.

  Returns:
    The trainable parameters, and the frozen token table (v, c).
  """
  params = clip_convert.flatten(clip.random_clip(config, seed).params)
  table = params.pop("text/token_embedding")
  trainable = {
    "clip": params,
    ROWS: table[vocabulary],
    "bias": jnp.asarray(
      -2.0, jnp.float32
    ),  # Most captions are not true of an image.
  }
  return trainable, table


def assemble(
  trainable: types.Params,
  table: jax.Array,
  vocabulary: np.ndarray,
  config: ClipConfig,
) -> clip.Clip:
  """Build the CLIP from the results of `init`, or trained values of them."""
  flat = dict(trainable["clip"])
  flat["text/token_embedding"] = table.at[vocabulary].set(trainable[ROWS])
  return clip.Clip(clip_convert.unflatten(flat), config)


@dataclasses.dataclass(frozen=True)
class Objective:
  """Weights and settings of the loss.

  Attributes:
    feature_layers: names of the activations whose patches are compared with
      text, such as "block08" and "vv/block08".
    vv_from: first layer (1-based) of the value-value stream; None for none.
    temperature: temperature of states and patches, as in the methods.
    captions: weight of the term for captions.
    states: weight of the term for states.
    patches: weight of the term for patches.
    visible: smallest anomalous share, in [0, 1], of an anomalous patch;
      patches with a smaller share above 0 are ignored.
    positive: weight of anomalous patches; that of normal ones is 1.
  """

  feature_layers: tuple[str, ...]
  vv_from: int | None
  temperature: float
  captions: float
  states: float
  patches: float
  visible: float
  positive: float

  def loss(
    self,
    trainable: types.Params,
    table: jax.Array,
    vocabulary: np.ndarray,
    config: ClipConfig,
    batch: types.Batch,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute the loss and its weighted terms.

    Args:
      trainable: trainable parameters, see `init`.
      table: frozen token table (v, c).
      vocabulary: ids of the trained rows.
      config: sizes of the model.
      batch: arrays by name:
        image: normalized images (2n, h, w, 3).
        anomalous_share: (2n, l), share of each patch in the mask.
        keep: (2n, j), indices of the patches that are not dropped.
        captions, end: token ids (k, t) and end positions (k,).
        truth: (2n, k), 1 where a caption is true of an image, else 0.
        states, states_end: token ids (2, s, t) and end positions (2, s) of
          state prompts, normal first.
    """
    model = assemble(trainable, table, vocabulary, config)
    keep, share = batch["keep"], batch["anomalous_share"]
    image, out = model.image(batch["image"], vv_from=self.vv_from, keep=keep)
    image = similarity.unit(image)
    texts = self._embed_texts(model, batch["captions"], batch["end"])
    logits = image @ texts.T * jnp.exp(model.params["logit_scale"])
    logits += trainable["bias"]
    captions = optax.sigmoid_binary_cross_entropy(logits, batch["truth"])

    ids, end = batch["states"], batch["states_end"]
    states = self._embed_texts(
      model, ids.reshape(-1, ids.shape[-1]), end.ravel()
    )
    normal, anomalous = states.reshape(2, -1, states.shape[-1])
    direction = (anomalous - normal).T / self.temperature  # (d, s)
    label = share.any(1, keepdims=True).astype(jnp.float32)
    image_states = optax.sigmoid_binary_cross_entropy(image @ direction, label)
    share = jnp.take_along_axis(share, keep, axis=1)
    patches = jnp.stack(
      [
        self._patches(model, out[layer], direction, share[..., None])
        for layer in self.feature_layers
      ]
    )
    parts = {
      "captions": self.captions * captions.sum(1).mean(),
      "states": self.states * image_states.mean(),
      "patches": self.patches * patches.mean(),
    }
    return parts["captions"] + parts["states"] + parts["patches"], parts

  @staticmethod
  def _embed_texts(model, ids, end):
    embed, _ = model.text(model.embed_tokens(ids), end)
    return similarity.unit(embed)

  def _patches(self, model, tokens, direction, share):
    """Compute the weighted cross-entropy of a layer's tokens (b, 1 + j, c)."""
    units = similarity.unit(model.project(tokens[:, 1:], ln_post=True))
    label = (share >= self.visible).astype(jnp.float32)
    weight = jnp.where(label > 0, self.positive, share == 0)
    error = optax.sigmoid_binary_cross_entropy(units @ direction, label)
    return (error * weight).mean(-1).sum() / weight.sum()
