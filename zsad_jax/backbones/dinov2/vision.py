"""DINOv2's vision transformer, with hooks for the methods."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from zsad_jax.backbones.clip import blocks
from zsad_jax.backbones.dinov2.config import DinoConfig
from zsad_jax.layers import resample

EPSILON = 1e-6  # Of all LayerNorms.


class GatedMlp(nn.Module):
  """SwiGLU of h hidden channels: (silu(x w1) * x w2) w3."""

  hidden: int
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
    """Apply the gated layers to every token; w12 joins w1 and w2."""
    c = x.shape[-1]
    both = blocks.dense(2 * self.hidden, self.dtype, "w12")(x.reshape(-1, c))
    gate, value = jnp.split(both, 2, axis=-1)
    hidden = jax.nn.silu(gate) * value
    return blocks.dense(c, self.dtype, "w3")(hidden).reshape(x.shape)


class Block(nn.Module):
  """Pre-norm transformer block whose branches are scaled by channel.

  Matrix products are computed in `dtype`; the stream, LayerNorms and the
  softmax are float32. `num_queries` restricts the block to its first tokens
  (None: all).
  """

  config: DinoConfig
  dtype: str
  flash: bool

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t c"], num_queries: int | None = None
  ) -> Float[Array, "b a c"]:
    """Return the tokens after the block."""
    cfg = self.config
    attention = blocks.Attention(
      cfg.heads, False, self.dtype, self.flash, name="attn"
    )
    attended, _ = attention(
      blocks.LayerNorm(epsilon=EPSILON, name="ln_1")(x),
      num_queries=num_queries,
      attention_mask=None,
      value_value=False,
    )
    x = x[:, :num_queries] + self._scale("ls_1", attended)
    x = checkpoint_name(x, blocks.SAVED)
    if cfg.swiglu:
      mlp = GatedMlp(cfg.gated_width, self.dtype, name="mlp")
    else:
      mlp = blocks.Mlp("gelu_erf", self.dtype, name="mlp")
    hidden = mlp(blocks.LayerNorm(epsilon=EPSILON, name="ln_2")(x))
    return x + self._scale("ls_2", hidden)

  def _scale(self, name, x):
    """Scale the channels of a branch (LayerScale)."""
    return x * self.param(name, nn.initializers.ones, (x.shape[-1],))


def _block_type(remat: bool) -> type[nn.Module]:
  """Return `Block`, optionally with rematerialization of its MLP."""
  if not remat:
    return Block
  policy = jax.checkpoint_policies.save_only_these_names(blocks.SAVED)
  return nn.remat(Block, static_argnums=(2,), policy=policy)


class VisionTower(nn.Module):
  """Vision transformer; plain DINOv2 if no hook is used.

  Layers are numbered from 1: `out["block06"]` holds the tokens after layer 6,
  class token first, without registers and prompts.
  """

  config: DinoConfig
  pos_resize: str
  dtype: str = "float32"
  remat: bool = False
  flash: bool = False

  def setup(self) -> None:
    """Create the parameters and blocks."""
    cfg, c = self.config, self.config.width
    normal = nn.initializers.normal(0.02)
    self.conv1 = nn.Conv(
      c,
      kernel_size=(cfg.patch_size, cfg.patch_size),
      strides=(cfg.patch_size, cfg.patch_size),
      padding="VALID",
      dtype=self.dtype,
    )
    self.class_embedding = self.param("class_embedding", normal, (c,))
    self.positional_embedding = self.param(
      "positional_embedding", normal, (1 + cfg.grid**2, c)
    )
    if cfg.registers:
      self.register_embedding = self.param(
        "register_embedding", normal, (cfg.registers, c)
      )
    self.ln_post = blocks.LayerNorm(epsilon=EPSILON)
    block: Any = _block_type(self.remat)
    self.resblocks = [
      block(cfg, self.dtype, self.flash) for _ in range(cfg.layers)
    ]

  def __call__(
    self,
    image: Float[Array, "b h w 3"],
    *,
    prompts: Float[Array, "b n m c"] | None = None,
    last_patches: bool = True,
  ) -> tuple[Float[Array, "b c"], dict[str, Array]]:
    """Encode images.

    Args:
      image: normalized images; sides are multiples of the patch size.
      prompts: m prompt tokens for each of the first n blocks, as in CLIP's
        tower: appended after the patches at block 1, replaced at the input of
        blocks 2 ... n, and kept from there to the last block.
      last_patches: compute the last layer's patch tokens; if False, it
        computes the class token alone.

    Returns:
      The image embedding ln_post(class token), and named activations:
      "blockNN", each (b, 1 + l, c), and "class" (b, c), the class token of the
      last layer.

    Raises:
      ValueError: there are prompts for more blocks than the tower has.
    """
    if prompts is not None and prompts.shape[1] > len(self.resblocks):
      raise ValueError(
        f"Prompts for {prompts.shape[1]} vision blocks, but the tower has "
        f"{len(self.resblocks)}: reduce the depth of the prompts."
      )
    x, out = self.embed(image), {}
    tokens, first = x.shape[1], 1 + self.config.registers
    for i, block in enumerate(self.resblocks):
      if prompts is not None and i < prompts.shape[1]:
        x = jnp.concatenate([x[:, :tokens], prompts[:, i]], axis=1)
      last = i + 1 == len(self.resblocks)
      x = block(x, 1 if last and not last_patches else None)
      parts = x[:, :1], x[:, first:tokens]
      out[f"block{i + 1:02d}"] = jnp.concatenate(parts, axis=1)
    out["class"] = x[:, 0]
    return self.ln_post(out["class"]), out

  def embed(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b t c"]:
    """Embed patches, add positions, and prepend class token and registers."""
    patches = self.conv1(image)
    b, rows, columns, c = patches.shape
    class_token = jnp.broadcast_to(self.class_embedding, (b, 1, c))
    table = resample.resize_position_table(
      self.positional_embedding, (rows, columns), method=self.pos_resize
    )
    x = jnp.concatenate([class_token, patches.reshape(b, -1, c)], axis=1)
    x = x + table[None]
    if not self.config.registers:
      return x
    registers = self.register_embedding[None]  # They have no position.
    registers = jnp.broadcast_to(registers, (b, *registers.shape[1:]))
    return jnp.concatenate([x[:, :1], registers, x[:, 1:]], axis=1)

  def normalize_tokens(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Apply the last LayerNorm."""
    return self.ln_post(x)
