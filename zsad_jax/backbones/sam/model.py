"""SAM's image encoder as a frozen backbone without text."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Float32, UInt8

from zsad_jax.backbones import image_only
from zsad_jax.backbones.clip import convert as shared
from zsad_jax.backbones.sam import convert, vision
from zsad_jax.backbones.sam.config import MEAN, STD, SamConfig
from zsad_jax.types import Params


@struct.dataclass
class Sam(image_only.ImageOnly):
  """SAM's image encoder as a pytree: `params` are its leaves.

  Implements `types.ImageBackbone`. It has no class token and no embedding
  shared with text: the mean of the patches takes the place of the class token,
  and tokens are not projected.

  Attributes:
    params: names and shapes are those of `convert.param_shapes`.
    config: sizes of the model.
    dtype: data type of matrix products, "float32" or "bfloat16".
  """

  params: Params
  config: SamConfig = struct.field(pytree_node=False)
  dtype: str = struct.field(pytree_node=False, default="float32")

  @property
  def embed_dim(self) -> int:
    """Width of the embedding, that of the tokens."""
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
    """Channels of the encoder."""
    return self.config.width

  def with_dtype(self, dtype: str) -> "Sam":
    """Return a copy that computes matrix products in another data type."""
    cast = lambda path, x: x.astype(dtype) if path[-1].key == "kernel" else x
    params = jax.tree_util.tree_map_with_path(cast, self.params)
    return dataclasses.replace(self, params=params, dtype=dtype)

  def normalize(
    self, pixels: UInt8[Array | np.ndarray, "*b h w 3"]
  ) -> Float32[Array | np.ndarray, "*b h w 3"]:
    """Normalize RGB pixels in [0, 255] as SAM was trained."""
    return (pixels.astype(np.float32) / 255.0 - MEAN) / STD

  def image(
    self,
    image: Float[Array | np.ndarray, "b h w 3"],
    *,
    activation: str | None = None,
    pos_resize: str = "bicubic",
    remat: bool = False,
    last_patches: bool = True,
    **hooks: Any,
  ) -> tuple[Float[Array, "b c"], dict[str, Array]]:
    """Encode images of any size, without SAM's padding to a square.

    Args:
      image: normalized images; sides are multiples of the patch size.
      activation: None or "gelu_erf", which SAM was trained with.
      pos_resize: resampling of absolute positions, see `vision.encode`.
      remat: compute the blocks again in the backward pass.
      last_patches: without effect: the mean needs the last patches.
      **hooks: others are refused where they are not None: there are no
        prompts, no value-value stream and no selection of patches.

    Returns:
      The mean of the last block's patches, and named activations: "class", the
      same; "blockNN" for each layer, counted from 1: the mean of the patches
      and the patches, (b, 1 + l, c); "neck", SAM's image embedding (b, l, n).

    Raises:
      ValueError: an argument is not supported.
    """
    del last_patches
    if activation not in (None, "gelu_erf"):
      raise ValueError(
        f"SAM's image encoder has the activation gelu_erf, got {activation!r}: "
        "set config.method.activation to gelu_erf or choose another method."
      )
    self._refuse(hooks)
    if any(side % self.patch_size for side in image.shape[1:3]):
      raise ValueError(
        f"Image of {image.shape[1]} x {image.shape[2]} pixels: the sides must "
        f"be multiples of the patch size, {self.patch_size}."
      )
    layers, neck = vision.encode(
      self.params,
      self.config,
      jnp.asarray(image),
      dtype=self.dtype,
      pos_resize=pos_resize,
      remat=remat,
    )
    flat = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])
    out = {}
    for i, x in enumerate(map(flat, layers)):
      mean = x.mean(axis=1, keepdims=True)
      out[f"block{i + 1:02d}"] = jnp.concatenate([mean, x], axis=1)
    out["class"] = flat(layers[-1]).mean(axis=1)
    out["neck"] = flat(neck)
    return out["class"], out

  def _refuse(self, hooks):
    """Refuse hooks that only CLIP's tower has."""
    needs = {
      "prompts": "learned prompts in its blocks",
      "vv_from": "a value-value stream (config.memory.vv_from=None is without)",
      "keep": "a selection of patches",
    }
    for name, value in hooks.items():
      if value is not None:
        raise ValueError(
          "SAM's image encoder cannot compute "
          f"{needs.get(name, name)}: choose another method or backbone."
        )

  def project(
    self, tokens: Float[Array | np.ndarray, "*b c"], *, ln_post: bool
  ) -> Float[Array | np.ndarray, "*b c"]:
    """Return the tokens: there is no embedding space to project into."""
    del ln_post
    return tokens


def from_params(params: Params, config: SamConfig) -> Sam:
  """Build a SAM from converted parameters, cast to float32."""
  as_float32 = lambda x: jnp.asarray(x, jnp.float32)
  return Sam(jax.tree.map(as_float32, params), config)


def random_sam(config: SamConfig, seed: int) -> Sam:
  """Build a SAM with random weights, reproducible across machines.

  Kernels are normal with deviation 1 / sqrt(inputs), position tables with
  0.02; scales are 1, biases 0.

  Args:
    config: sizes of the model.
    seed: seed of the weights.
  """
  rng, flat = np.random.default_rng(seed), {}
  for name, shape in convert.param_shapes(config).items():
    leaf = name.rpartition("/")[2]
    if leaf in ("scale", "bias"):
      flat[name] = np.full(shape, float(leaf == "scale"))
      continue
    inputs = np.prod(shape[:-1]) if leaf == "kernel" else 2500
    flat[name] = rng.standard_normal(shape, np.float32) / np.sqrt(inputs)
  return from_params(shared.unflatten(flat), config)
