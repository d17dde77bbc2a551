"""CLIP's vision tower (ViT), with hooks for the methods."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.backbones.clip import blocks
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.layers import resample


class VisionTower(nn.Module):
  """Vision transformer; plain CLIP if no hook is used.

  Layers are numbered from 1, as in the papers: `out["block06"]` holds the
  tokens after layer 6, class token first, without prompts.
  """

  config: ClipConfig
  activation: str
  pos_resize: str
  dtype: str = "float32"
  remat: bool = False
  flash: bool = False

  def setup(self) -> None:
    """Create the parameters and blocks."""
    cfg, c = self.config, self.config.vision_width
    normal = nn.initializers.normal(c**-0.5)
    self.conv1 = nn.Conv(
      c,
      kernel_size=(cfg.patch_size, cfg.patch_size),
      strides=(cfg.patch_size, cfg.patch_size),
      padding="VALID",
      use_bias=False,
      dtype=self.dtype,
    )
    self.class_embedding = self.param("class_embedding", normal, (c,))
    self.positional_embedding = self.param(
      "positional_embedding", normal, (1 + cfg.grid**2, c)
    )
    self.ln_pre, self.ln_post = blocks.LayerNorm(), blocks.LayerNorm()
    block = blocks.block_type(self.remat)
    self.resblocks = [
      block(cfg.vision_heads, self.activation, self.dtype, flash=self.flash)
      for _ in range(cfg.vision_layers)
    ]
    self.proj = self.param("proj", normal, (c, cfg.embed_dim))

  def __call__(
    self,
    image: Float[Array, "b h w 3"],
    *,
    prompts: Float[Array, "b n m c"] | None = None,
    vv_from: int | None = None,
    last_patches: bool = True,
    keep: Int[Array, "b k"] | None = None,
    before_mlp: Sequence[int] = (),
  ) -> tuple[Float[Array, "b d"], dict[str, Array]]:
    """Encode images.

    Args:
      image: normalized images; sides are multiples of the patch size.
      prompts: m prompt tokens for each of the first n blocks: appended after
        the patches at block 1, replaced at the input of blocks 2 ... n, and
        kept from there to the last block (AdaCLIP).
      vv_from: first layer (1-based) of the value-value stream, which starts
        as the input of that layer (AnomalyCLIP's DPAM); None for no stream.
      last_patches: compute the last layer's patch tokens; if False, it
        computes the class token alone (the value-value stream is complete).
      keep: indices (0-based) of the patches to process, in this order; the
        others are dropped to save time in pretraining (FLIP, Li et al., CVPR
        2023).
      before_mlp: layers (1-based) whose main stream between attention and MLP
        is returned, too.

    Returns:
      The image embedding ln_post(class token) @ proj, not of unit length, and
      named activations: "blockNN" and, from `vv_from` on, "vv/blockNN", each
      (b, 1 + l, c), and "class" (b, c), the class token of the last layer;
      "before_mlp/blockNN" for the layers `before_mlp`.

    Raises:
      ValueError: there are prompts for more blocks than the tower has.
    """
    if prompts is not None and prompts.shape[1] > len(self.resblocks):
      raise ValueError(
        f"Prompts for {prompts.shape[1]} vision blocks, but the tower has "
        f"{len(self.resblocks)}: reduce the depth of the prompts."
      )
    x = self.embed(image)
    if keep is not None:
      kept = jnp.pad(keep + 1, ((0, 0), (1, 0)))  # The class token is first.
      x = jnp.take_along_axis(x, kept[..., None], axis=1)
    x = self.ln_pre(x)
    tokens, vv, out = x.shape[1], None, {}
    for i, block in enumerate(self.resblocks):
      if prompts is not None and i < prompts.shape[1]:
        x = jnp.concatenate([x[:, :tokens], prompts[:, i]], axis=1)
      if i + 1 == vv_from:
        vv = x
      last = i + 1 == len(self.resblocks)
      if i + 1 in before_mlp:  # XLA computes the attention once.
        out[f"before_mlp/block{i + 1:02d}"] = block(x, before_mlp=True)[0]
      x, vv = block(x, vv, 1 if last and not last_patches else None)
      out[f"block{i + 1:02d}"] = x[:, :tokens]
      if vv is not None:
        out[f"vv/block{i + 1:02d}"] = vv[:, :tokens]
    out["class"] = x[:, 0]
    return self.project(out["class"], ln_post=True), out

  def windows(
    self, image: Float[Array, "b h w 3"], patches: Int[np.ndarray, "n k"]
  ) -> Float[Array, "b n d"]:
    """Embed selections of patches, each as a sequence of its own (WinCLIP).

    Args:
      image: normalized images; sides are multiples of the patch size.
      patches: indices (0-based) of the k patches of each of n selections. A
        sequence is the class token and these patches, with their positions.

    Returns:
      ln_post(class token) @ proj of each selection, not of unit length.
    """
    index = jnp.pad(patches + 1, ((0, 0), (1, 0)))  # The class token is first.
    x = self.ln_pre(self.embed(image))[:, index]
    b, n, tokens, c = x.shape
    x = x.reshape(b * n, tokens, c)  # Short sequences of one length.
    for block in self.resblocks[:-1]:
      x, _ = block(x)
    x, _ = self.resblocks[-1](x, None, 1)
    return self.project(x[:, 0], ln_post=True).reshape(b, n, -1)

  def embed(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b t c"]:
    """Embed patches, prepend the class token and add positions."""
    patches = self.conv1(image)
    b, rows, columns, c = patches.shape
    class_token = jnp.broadcast_to(self.class_embedding, (b, 1, c))
    table = resample.resize_position_table(
      self.positional_embedding, (rows, columns), method=self.pos_resize
    )
    x = jnp.concatenate([class_token, patches.reshape(b, -1, c)], axis=1)
    return x + table[None]

  def normalize_tokens(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Apply ln_post without the projection."""
    return self.ln_post(x)

  def project(
    self, x: Float[Array, "*b c"], *, ln_post: bool
  ) -> Float[Array, "*b d"]:
    """Project tokens into the joint embedding, optionally after ln_post."""
    return (self.ln_post(x) if ln_post else x) @ self.proj
