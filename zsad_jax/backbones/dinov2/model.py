"""Frozen DINOv2: parameters, tower and hooks.

The reference is `Dinov2Model` and `Dinov2WithRegistersModel` of transformers.
facebookresearch/dinov2 differs in images of another size than that of the
position table: without registers, it resizes the table by the factor
(side + 0.1) / 37 instead of to `side` rows and columns, which shifts the
sampled positions by up to a tenth of a patch of the new grid.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Float32, UInt8

from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.dinov2 import convert as dino_convert
from zsad_jax.backbones.dinov2.config import MEAN, STD, DinoConfig
from zsad_jax.backbones.dinov2.vision import VisionTower
from zsad_jax.types import Params


@struct.dataclass
class Dinov2:
  """DINOv2 as a pytree: `params` are its leaves, other fields are static.

  Implements `types.ImageBackbone`; there is no text encoder.

  Attributes:
    params: nested; names and shapes are those of `convert.param_shapes`.
    config: sizes of the model.
    dtype: data type of matrix products, "float32" or "bfloat16"; all other
      computations and the results are float32.
    attention: "exact", or "flash" for attention by a kernel on a TPU; see
      `layers.flash_attention`.
  """

  params: Params
  config: DinoConfig = struct.field(pytree_node=False)
  dtype: str = struct.field(pytree_node=False, default="float32")
  attention: str = struct.field(pytree_node=False, default="exact")

  @property
  def embed_dim(self) -> int:
    """Width of the embedding: there is no projection, so that of a token."""
    return self.config.width

  @property
  def patch_size(self) -> int:
    """Side of a patch in pixels."""
    return self.config.patch_size

  @property
  def vision_layers(self) -> int:
    """Number of blocks."""
    return self.config.layers

  @property
  def vision_width(self) -> int:
    """Channels of a token."""
    return self.config.width

  def with_dtype(self, dtype: str) -> "Dinov2":
    """Return a copy that computes matrix products in another data type.

    Kernels are stored in that type; all other parameters stay as they are.
    """
    cast = lambda path, x: x.astype(dtype) if path[-1].key == "kernel" else x
    params = jax.tree_util.tree_map_with_path(cast, self.params)
    return dataclasses.replace(self, params=params, dtype=dtype)

  def with_attention(self, attention: str) -> "Dinov2":
    """Return a copy with another choice of attention."""
    return dataclasses.replace(self, attention=attention)

  def normalize(
    self, pixels: UInt8[Array | np.ndarray, "*b h w 3"]
  ) -> Float32[Array | np.ndarray, "*b h w 3"]:
    """Normalize RGB pixels in [0, 255] with ImageNet's statistics."""
    return (pixels.astype(np.float32) / 255.0 - MEAN) / STD

  def image(
    self,
    image: Float[Array | np.ndarray, "b h w 3"],
    *,
    activation: str | None = None,
    pos_resize: str | None = None,
    vv_from: int | None = None,
    remat: bool = False,
    **hooks: Any,
  ) -> tuple[Float[Array, "b c"], dict[str, Array]]:
    """Encode images.

    Args:
      image: normalized images; sides are multiples of the patch size.
      activation: None, or "gelu_erf" where the model has it.
      pos_resize: resampling of the position table, see `resample.matrix`; None
        for that of transformers.
      vv_from: None: there is no value-value stream.
      remat: recompute the MLPs in the backward pass to save memory.
      **hooks: `prompts` and `last_patches` of `VisionTower.__call__`.

    Returns:
      The embeddings, not of unit length, and named activations; see
      `VisionTower.__call__`.

    Raises:
      ValueError: the sides are no multiples of the patch size, or a hook is
        CLIP's alone.
    """
    patch = self.config.patch_size
    if any(side % patch for side in image.shape[1:3]):
      raise ValueError(
        f"Image of {image.shape[1]} x {image.shape[2]} pixels: the sides "
        f"must be multiples of the patch size, {patch}."
      )
    self._check_hooks(activation, vv_from, hooks)
    tower = VisionTower(
      self.config,
      pos_resize or self.config.pos_resize,
      self.dtype,
      remat,
      flash=self.attention == "flash",
    )
    return tower.apply(  # pyright: ignore[reportReturnType]
      {"params": self.params}, image, **hooks
    )

  def _check_hooks(self, activation, vv_from, hooks):
    """Refuse hooks of CLIP that would change what this model computes."""
    own = None if self.config.swiglu else "gelu_erf"
    if activation not in (None, own):
      raise ValueError(
        f"The activation {activation!r} is one of CLIP, and DINOv2 has its "
        "own: set config.method.activation to "
        f"{own and repr(own)}, or use a CLIP as config.backbone."
      )
    if vv_from is not None:
      raise ValueError(
        f"vv_from is {vv_from}, but DINOv2 has no value-value stream: set it "
        "to None in config.memory or config.method, or use a CLIP as "
        "config.backbone."
      )
    if unknown := sorted(set(hooks) - {"prompts", "last_patches"}):
      raise ValueError(
        f"DINOv2 has no hook {unknown[0]!r}: use a CLIP as config.backbone."
      )

  def project(
    self, tokens: Float[Array | np.ndarray, "*b c"], *, ln_post: bool
  ) -> Float[Array, "*b c"]:
    """Return tokens as embeddings: there is no projection.

    Args:
      tokens: tokens of any block.
      ln_post: apply the last LayerNorm.
    """
    return self.normalize_tokens(tokens) if ln_post else jnp.asarray(tokens)

  def normalize_tokens(
    self, tokens: Float[Array | np.ndarray, "*b c"]
  ) -> Float[Array, "*b c"]:
    """Apply the last LayerNorm."""
    tower = VisionTower(self.config, self.config.pos_resize)
    return tower.apply(  # pyright: ignore[reportReturnType]
      {"params": self.params}, tokens, method="normalize_tokens"
    )


def from_params(params: Params, config: DinoConfig) -> Dinov2:
  """Build a DINOv2 from converted parameters, cast to float32."""
  as_float32 = lambda x: jnp.asarray(x, jnp.float32)
  return Dinov2(jax.tree.map(as_float32, params), config)


def random_dinov2(config: DinoConfig, seed: int) -> Dinov2:
  """Build a DINOv2 with random weights, reproducible across machines.

  Tables are normal with deviation 0.02, as DINOv2's; kernels preserve the
  variance of their inputs, and LayerScale is 1, so that random features depend
  on the image.

  Args:
    config: sizes of the model.
    seed: seed of the weights.

  Returns:
    The model, in float32.
  """
  rng = np.random.default_rng(seed)
  flat = {}
  for name, shape in dino_convert.param_shapes(config).items():
    leaf = name.split("/")[-1]
    if leaf == "kernel":
      std = np.prod(shape[:-1]) ** -0.5
    elif leaf.endswith("embedding"):
      std = 0.02
    else:
      flat[name] = np.full(shape, float(leaf != "bias"), np.float32)
      continue
    flat[name] = std * rng.standard_normal(shape, np.float32)
  return from_params(clip_convert.unflatten(flat), config)
