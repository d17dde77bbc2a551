"""Frozen CLIP: parameters, both towers and their hooks."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Float32, Int, UInt8

from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import tokenizer
from zsad_jax.backbones.clip.config import PIXELS, ClipConfig
from zsad_jax.backbones.clip.text import TextTower
from zsad_jax.backbones.clip.vision import VisionTower
from zsad_jax.types import Params


@struct.dataclass
class Clip:
  """CLIP as a pytree: `params` are its leaves, other fields are static.

  Implements `types.Backbone`.

  Attributes:
    params: {"visual": ..., "text": ..., "logit_scale": ()}; names and shapes
      are those of `convert.param_shapes`.
    config: sizes of the model.
    dtype: data type of matrix products, "float32" or "bfloat16"; all other
      computations and the results are float32.
    attention: "exact", or "flash" for the vision tower's attention by a kernel
      on a TPU; see `layers.flash_attention`.
  """

  params: Params
  config: ClipConfig = struct.field(pytree_node=False)
  dtype: str = struct.field(pytree_node=False, default="float32")
  attention: str = struct.field(pytree_node=False, default="exact")

  @property
  def embed_dim(self) -> int:
    """Width of the joint embedding, d."""
    return self.config.embed_dim

  @property
  def patch_size(self) -> int:
    """Side of a patch in pixels."""
    return self.config.patch_size

  @property
  def vision_layers(self) -> int:
    """Number of blocks of the vision tower."""
    return self.config.vision_layers

  @property
  def vision_width(self) -> int:
    """Channels of the vision tower."""
    return self.config.vision_width

  @property
  def text_width(self) -> int:
    """Channels of the text tower."""
    return self.config.text_width

  @property
  def text_layers(self) -> int:
    """Number of blocks of the text tower."""
    return self.config.text_layers

  def with_dtype(self, dtype: str) -> "Clip":
    """Return a copy that computes matrix products in another data type.

    Kernels are stored in that type; all other parameters stay as they are.
    """
    cast = lambda path, x: x.astype(dtype) if path[-1].key == "kernel" else x
    params = jax.tree_util.tree_map_with_path(cast, self.params)
    return dataclasses.replace(self, params=params, dtype=dtype)

  def with_attention(self, attention: str) -> "Clip":
    """Return a copy with another choice of attention."""
    return dataclasses.replace(self, attention=attention)

  def normalize(
    self, pixels: UInt8[Array | np.ndarray, "*b h w 3"]
  ) -> Float32[Array | np.ndarray, "*b h w 3"]:
    """Normalize RGB pixels in [0, 255]; see `model.normalize`."""
    return normalize(pixels, self.config.pixels)

  def image(
    self,
    image: Float[Array | np.ndarray, "b h w 3"],
    *,
    activation: str | None = None,
    pos_resize: str = "bilinear",
    remat: bool = False,
    **hooks: Any,
  ) -> tuple[Float[Array, "b d"], dict[str, Array]]:
    """Encode images with the vision tower.

    Args:
      image: normalized images; sides are multiples of the patch size.
      activation: "quick" or "gelu_erf"; None for the activation that the
        weights were trained with.
      pos_resize: resampling of the position table, see `resample.matrix`.
      remat: recompute the MLPs in the backward pass to save memory.
      **hooks: `prompts`, `vv_from`, `last_patches`, `keep` and `before_mlp` of
        `VisionTower.__call__`.

    Returns:
      The embeddings, not of unit length, and named activations; see
      `VisionTower.__call__`.

    Raises:
      ValueError: the sides are no multiples of the patch size, or the
        activation is unknown.
    """
    tower = self._vision_tower(image, activation, pos_resize, remat)
    variables = {"params": self.params["visual"]}
    return tower.apply(  # pyright: ignore[reportReturnType]
      variables, image, **hooks
    )

  def windows(
    self,
    image: Float[Array | np.ndarray, "b h w 3"],
    patches: Int[np.ndarray, "n k"],
    *,
    activation: str | None = None,
    pos_resize: str = "bilinear",
  ) -> Float[Array, "b n d"]:
    """Encode selections of patches of each image; see `VisionTower.windows`.

    Args:
      image: normalized images; sides are multiples of the patch size.
      patches: indices (0-based, row-major) of the k patches of each selection.
      activation: see `image`.
      pos_resize: see `image`.

    Returns:
      The embeddings, not of unit length.

    Raises:
      ValueError: see `image`.
    """
    tower = self._vision_tower(image, activation, pos_resize)
    variables = {"params": self.params["visual"]}
    return tower.apply(  # pyright: ignore[reportReturnType]
      variables, image, patches, method="windows"
    )

  def _vision_tower(self, image, activation, pos_resize, remat=False):
    """Return the vision tower for images of this size."""
    patch = self.config.patch_size
    if any(side % patch for side in image.shape[1:3]):
      raise ValueError(
        f"Image of {image.shape[1]} x {image.shape[2]} pixels: the sides "
        f"must be multiples of the patch size, {patch}."
      )
    return VisionTower(
      self.config,
      activation or self.config.activation,
      pos_resize,
      self.dtype,
      remat,
      flash=self.attention == "flash",
    )

  def project(
    self, tokens: Float[Array | np.ndarray, "*b c"], *, ln_post: bool
  ) -> Float[Array, "*b d"]:
    """Project vision tokens into the joint embedding space.

    Args:
      tokens: tokens of any block.
      ln_post: apply the tower's last LayerNorm first.

    Returns:
      The embeddings, not of unit length.
    """
    tower = VisionTower(self.config, self.config.activation, "bilinear")
    variables = {"params": self.params["visual"]}
    return tower.apply(  # pyright: ignore[reportReturnType]
      variables, tokens, ln_post=ln_post, method="project"
    )

  def normalize_tokens(
    self, tokens: Float[Array | np.ndarray, "*b c"]
  ) -> Float[Array, "*b c"]:
    """Apply the vision tower's last LayerNorm, without the projection."""
    tower = VisionTower(self.config, self.config.activation, "bilinear")
    variables = {"params": self.params["visual"]}
    return tower.apply(  # pyright: ignore[reportReturnType]
      variables, tokens, method="normalize_tokens"
    )

  def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokenize texts.

    The ids are cut after the end of the longest text. The text tower is
    causal: tokens after the end token do not change the result.

    Args:
      texts: k texts.

    Returns:
      Token ids (k, t) and positions of the end tokens (k,).

    Raises:
      ValueError: a text is too long, or the token table of these weights is
        smaller than the vocabulary.
    """
    ids = tokenizer.encode(texts, context_length=self.config.context_length)
    end = tokenizer.end_positions(ids)
    if ids.max() >= self.config.vocab_size:
      raise ValueError(
        f"The token table has {self.config.vocab_size} rows, but the "
        f"tokenizer needs row {ids.max()}: these weights cannot read text."
      )
    return ids[:, : end.max() + 1], end

  def embed_tokens(
    self, ids: Int[Array | np.ndarray, "*b t"]
  ) -> Float[Array | np.ndarray, "*b t c"]:
    """Look up token embeddings."""
    return self.params["text"]["token_embedding"][jnp.asarray(ids)]

  def text(
    self,
    embeds: Float[Array | np.ndarray, "k t c"],
    end: Int[Array | np.ndarray, "k *s"],
    *,
    activation: str | None = None,
    **hooks: Any,
  ) -> tuple[Float[Array, "k *s d"], dict[str, Array]]:
    """Encode token embeddings with the text tower.

    Args:
      embeds: token embeddings, positions not added.
      end: positions of the end tokens.
      activation: "quick" or "gelu_erf"; None for the activation that the
        weights were trained with.
      **hooks: see `TextTower.__call__`.

    Returns:
      The embeddings, not of unit length, and named activations; see
      `TextTower.__call__`.
    """
    tower = TextTower(
      self.config, activation or self.config.activation, self.dtype
    )
    variables = {"params": self.params["text"]}
    return tower.apply(  # pyright: ignore[reportReturnType]
      variables, embeds, jnp.asarray(end), **hooks
    )

  def project_text(
    self, tokens: Float[Array | np.ndarray, "*b c"]
  ) -> Float[Array, "*b d"]:
    """Project tokens of the last text block into the joint embedding space.

    Args:
      tokens: tokens before the tower's last LayerNorm.

    Returns:
      The embeddings, not of unit length.
    """
    tower = TextTower(self.config, self.config.activation)
    variables = {"params": self.params["text"]}
    return tower.apply(  # pyright: ignore[reportReturnType]
      variables, tokens, method="project"
    )

  def logit_scale(self) -> Float[Array, ""]:
    """Return the factor of the cosines that CLIP was trained with."""
    return jnp.exp(self.params["logit_scale"])


def normalize(
  pixels: UInt8[Array | np.ndarray, "*b h w 3"], kind: str = "openai"
) -> Float32[Array | np.ndarray, "*b h w 3"]:
  """Normalize RGB pixels in [0, 255].

  Args:
    pixels: the pixels.
    kind: a key of `config.PIXELS`; OpenAI's preprocessing by default.
  """
  mean, std = PIXELS[kind]
  return (pixels.astype(np.float32) / 255.0 - mean) / std


def from_params(params: Params, config: ClipConfig) -> Clip:
  """Build a CLIP from converted parameters, cast to float32."""
  as_float32 = lambda x: jnp.asarray(x, jnp.float32)
  return Clip(jax.tree.map(as_float32, params), config)


def random_clip(config: ClipConfig, seed: int) -> Clip:
  """Build a CLIP with random weights, reproducible across machines.

  Both towers use the initialization of OpenAI's text tower (`clip/model.py`,
  `initialize_parameters`): normal, with deviations that depend on width and
  depth.

  Args:
    config: sizes of the model.
    seed: seed of the weights.

  Returns:
    The model, in float32.
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
