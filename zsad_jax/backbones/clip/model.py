"""The frozen CLIP that every method receives: parameters and hooks."""

from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8

from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import tokenizer
from zsad_jax.backbones.clip.config import MEAN, STD, ClipConfig
from zsad_jax.backbones.clip.text import TextTower
from zsad_jax.backbones.clip.vision import VisionTower
from zsad_jax.types import Params


@flax.struct.dataclass
class Clip:
  """CLIP as a pytree: its arrays are `params`, all else is static.

  Attributes:
    params: {"visual": ..., "text": ..., "logit_scale": ()}, see `names.py`.
    config: sizes.
    dtype: of matrix products, "float32" or "bfloat16"; everything else, and
      what the towers return, is float32.
  """

  params: Params
  config: ClipConfig = flax.struct.field(pytree_node=False)
  dtype: str = flax.struct.field(pytree_node=False, default="float32")

  @property
  def embed_dim(self) -> int:
    return self.config.embed_dim

  @property
  def patch_size(self) -> int:
    return self.config.patch_size

  @property
  def vision_layers(self) -> int:
    return self.config.vision_layers

  @property
  def vision_width(self) -> int:
    return self.config.vision_width

  @property
  def text_width(self) -> int:
    return self.config.text_width

  def with_dtype(self, dtype: str) -> "Clip":
    """The same CLIP with another `dtype`, its kernels stored in it."""
    cast = lambda path, x: x.astype(dtype) if path[-1].key == "kernel" else x
    params = jax.tree_util.tree_map_with_path(cast, self.params)
    return self.replace(params=params, dtype=dtype)

  def normalize(self, pixels):
    """Normalize RGB pixels in [0, 255]; see `normalize`."""
    return normalize(pixels)

  def image(
    self,
    image,
    *,
    activation: str | None = None,
    pos_resize: str = "bilinear",
    remat: bool = False,
    **hooks: Any,
  ):
    """Runs the vision tower; see `VisionTower.__call__` for the hooks.

    Args:
      image: (b, h, w, 3), normalised, sides divisible by the patch size.
      activation: "quick" or "gelu_erf"; None for the one of the weights.
      pos_resize: how the position table is resized, see `resample.matrix`.
      remat: recompute MLPs in the backward pass to save memory.
      **hooks: `prompts`, `vv_from`, `last_patches`, `keep`.

    Raises:
      ValueError: the image's sides are not multiples of the patch size.
    """
    patch = self.config.patch_size
    if any(side % patch for side in image.shape[1:3]):
      raise ValueError(
        f"Image of {image.shape[1]} x {image.shape[2]} pixels: the sides "
        f"must be multiples of the patch size, {patch}."
      )
    activation = activation or self.config.activation
    tower = VisionTower(self.config, activation, pos_resize, self.dtype, remat)
    return tower.apply({"params": self.params["visual"]}, image, **hooks)

  def project(self, tokens, *, ln_post: bool):
    """Vision tokens (..., c) into the joint embedding (..., d)."""
    tower = VisionTower(self.config, self.config.activation, "bilinear")
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

    Raises:
      ValueError: a text is too long, or the token table is cut.
    """
    ids = tokenizer.encode(texts, context_length=self.config.context_length)
    end = tokenizer.end_positions(ids)
    if ids.max() >= self.config.vocab_size:
      raise ValueError(
        f"The token table has {self.config.vocab_size} rows, but the "
        f"tokenizer needs row {ids.max()}: these weights cannot read text."
      )
    return ids[:, : end.max() + 1], end

  def embed_tokens(self, ids):
    """Rows of the token table: (..., t) -> (..., t, c)."""
    return self.params["text"]["token_embedding"][jnp.asarray(ids)]

  def text(self, embeds, end, *, activation: str | None = None, **hooks: Any):
    """Runs the text tower; see `TextTower.__call__` for the hooks."""
    tower = TextTower(
      self.config, activation or self.config.activation, self.dtype
    )
    params = {"params": self.params["text"]}
    return tower.apply(params, embeds, jnp.asarray(end), **hooks)


def normalize(
  pixels: UInt8[Array | np.ndarray, "*b h w 3"],
) -> Float32[Array | np.ndarray, "*b h w 3"]:
  """Normalize RGB pixels in [0, 255] as OpenAI's preprocessing does."""
  return (pixels.astype(np.float32) / 255.0 - MEAN) / STD


def from_params(params: Params, config: ClipConfig) -> Clip:
  """A CLIP of converted parameters, in float32 whatever they were stored in."""
  as_float32 = lambda x: jnp.asarray(x, jnp.float32)
  return Clip(jax.tree.map(as_float32, params), config)


def random_clip(config: ClipConfig, seed: int) -> Clip:
  """A CLIP with random weights, the same for one seed on every machine.

  Scales are those of OpenAI's text tower, in both towers: the deeper a tower,
  the smaller the first steps of its blocks.
  """
  rng = np.random.default_rng(seed)
  flat = {}
  for name, shape in clip_convert.param_shapes(config).items():
    constant = {"scale": 1.0, "bias": 0.0, "logit_scale": np.log(1 / 0.07)}
    leaf = name.split("/")[-1]
    if leaf in constant:
      flat[name] = np.full(shape, constant[leaf])
    else:
      std = _initial_std(name, shape, config)
      flat[name] = std * rng.standard_normal(shape, np.float32)
  return from_params(clip_convert.unflatten(flat), config)


def _initial_std(name, shape, config):
  module = name.split("/")[-2]
  if "token_embedding" in name:
    return 0.02
  if name == "text/positional_embedding":
    return 0.01
  width, layers = (
    (config.vision_width, config.vision_layers)
    if name.startswith("visual")
    else (config.text_width, config.text_layers)
  )
  if module in ("out_proj", "c_proj"):
    return (2 * layers * width) ** -0.5
  if module == "c_fc":
    return (2 * width) ** -0.5
  if module == "conv1":
    return np.prod(shape[:3]) ** -0.5
  return width**-0.5
