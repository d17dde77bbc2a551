"""The frozen CLIP that every method receives: parameters and hooks."""

from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.api import Params
from zsad_jax.clip import tokenizer
from zsad_jax.clip.config import ClipConfig
from zsad_jax.clip.text import TextTower
from zsad_jax.clip.vision import VisionTower


@flax.struct.dataclass
class Clip:
  """CLIP as a pytree: its arrays are `params`, all else is static.

  Attributes:
    params: {"visual": ..., "text": ..., "logit_scale": ()}, see `names.py`.
    config: sizes.
  """

  params: Params
  config: ClipConfig = flax.struct.field(pytree_node=False)

  @property
  def embed_dim(self) -> int:
    return self.config.embed_dim

  @property
  def vision_width(self) -> int:
    return self.config.vision_width

  @property
  def text_width(self) -> int:
    return self.config.text_width

  def image(
      self,
      image,
      *,
      act: str | None = None,
      pos_resize: str = "bilinear",
      remat: bool = False,
      **hooks: Any,
  ):
    """Runs the vision tower; see `VisionTower.__call__` for the hooks.

    Args:
      image: (b, h, w, 3), normalised, sides divisible by the patch size.
      act: "quick" or "gelu_erf"; None for the one of the weights.
      pos_resize: how the position table is resized, see `resample.matrix`.
      remat: recompute blocks in the backward pass to save memory.
      **hooks: `prompts`, `vv_from`.

    Raises:
      ValueError: the image's sides are not multiples of the patch size.
    """
    patch = self.config.patch_size
    if any(side % patch for side in image.shape[1:3]):
      raise ValueError(
          f"Image of {image.shape[1]} x {image.shape[2]} pixels: the sides "
          f"must be multiples of the patch size, {patch}."
      )
    act = act or self.config.act
    tower = VisionTower(self.config, act, pos_resize, remat)
    return tower.apply({"params": self.params["visual"]}, image, **hooks)

  def project(self, tokens, *, ln_post: bool):
    """Vision tokens (..., c) into the joint embedding (..., d)."""
    tower = VisionTower(self.config, self.config.act, "bilinear")
    return tower.apply(
        {"params": self.params["visual"]},
        tokens,
        ln_post=ln_post,
        method="project",
    )

  def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids (k, t), cut after the longest sentence, and end positions.

    With the causal mask, rows after the end token cannot reach it: cutting
    them changes no result.
    """
    ids = tokenizer.encode(texts, context_length=self.config.context_length)
    end = tokenizer.end_positions(ids)
    return ids[:, : end.max() + 1], end

  def embed_tokens(self, ids):
    """Rows of the token table: (..., t) -> (..., t, c)."""
    return self.params["text"]["token_embedding"][jnp.asarray(ids)]

  def text(self, embeds, end, *, act: str | None = None, **hooks: Any):
    """Runs the text tower; see `TextTower.__call__` for the hooks."""
    tower = TextTower(self.config, act or self.config.act)
    return tower.apply({"params": self.params["text"]}, embeds, end, **hooks)


def from_params(params: Params, config: ClipConfig) -> Clip:
  """A CLIP of converted parameters, in float32 whatever they were stored in."""
  as_float32 = lambda x: jnp.asarray(x, jnp.float32)
  return Clip(jax.tree.map(as_float32, params), config)


def random_clip(config: ClipConfig, seed: int) -> Clip:
  """A CLIP of the given sizes with random weights, the same for one seed.

  Scales follow OpenAI's initialisation where it matters for an untrained
  tower: residual branches shrink with depth.
  """
  rng_vision, rng_text = jax.random.split(jax.random.key(seed))
  image = jnp.zeros((1, config.image_size, config.image_size, 3))
  embeds = jnp.zeros((1, config.context_length, config.text_width))
  visual = VisionTower(config, config.act, "bilinear").init(rng_vision, image)
  text = TextTower(config, config.act).init(
      rng_text, embeds, jnp.zeros((1,), jnp.int32)
  )
  return Clip(
      params={
          "visual": visual["params"],
          "text": text["params"],
          "logit_scale": jnp.log(jnp.asarray(1 / 0.07)),
      },
      config=config,
  )
