"""CLIP's text tower, with hooks for the methods."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zsad_jax.backbones.clip import blocks
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.layers import rounding, tokens


class TextTower(nn.Module):
  """Causal text transformer; plain CLIP if no hook is used."""

  config: ClipConfig
  activation: str
  dtype: str = "float32"

  def setup(self) -> None:
    """Create the parameters and blocks."""
    cfg, c = self.config, self.config.text_width
    self.token_embedding = self.param(
      "token_embedding", nn.initializers.normal(0.02), (cfg.vocab_size, c)
    )
    self.positional_embedding = self.param(
      "positional_embedding",
      nn.initializers.normal(0.01),
      (cfg.context_length, c),
    )
    self.resblocks = [
      blocks.ResBlock(cfg.text_heads, self.activation, self.dtype, causal=True)
      for _ in range(cfg.text_layers)
    ]
    self.ln_final = blocks.LayerNorm()
    self.text_projection = self.param(
      "text_projection", nn.initializers.normal(c**-0.5), (c, cfg.embed_dim)
    )

  def __call__(
    self,
    embeds: Float[Array, "k t c"],
    end: Int[Array, "k *s"],
    *,
    positions: Int[Array, "k t"] | None = None,
    attention_mask: Bool[Array, "k t t"] | None = None,
    prompts: Mapping[int, Float[Array, "_ m c"]] | None = None,
    prompt_mode: str = "overwrite",
    prompt_weight: float = 1.0,
    round_fp16: bool = False,
  ) -> tuple[Float[Array, "k *s d"], dict[str, Array]]:
    """Encode token embeddings.

    Args:
      embeds: embeddings of t <= context_length tokens, positions not added.
        Tokens after the end token do not change the result; leave them out
        to save time.
      end: positions of the end tokens; (k, s) if each row is a trie of s
        prompts, see `layers/prompt_trie.py`.
      positions: rows of the position table, for a trie; None for 0 ... t - 1.
      attention_mask: keys that each token attends to, for a trie; None for
        causal attention.
      prompts: deep prompts by block (0-based): m vectors set at the input of
        that block after the start token, the same for all texts (leading
        axis 1) or for each text (k). No position is added to them.
      prompt_mode: "overwrite" replaces tokens 1 ... m (all official code);
        "insert" adds the vectors to the sequence at the first prompted block.
      prompt_weight: share of the prompts in the tokens that they overwrite;
        the rest is these tokens.
      round_fp16: round prompts and their gradients to float16, as the
        official code of AnomalyCLIP and FAPrompt does on a GPU.

    Returns:
      The text embeddings ln_final(end token) @ text_projection, not of unit
      length, and named activations: "blockNN" and "tokens" (ln_final of all
      tokens), each (k, t, c).

    Raises:
      ValueError: `prompt_mode` is unknown, or there are prompts for a block
        that the tower does not have.
    """
    if prompt_mode not in ("overwrite", "insert"):
      raise ValueError(
        f'prompt_mode is "overwrite" or "insert", got {prompt_mode!r}.'
      )
    if beyond := sorted(set(prompts or ()) - set(range(len(self.resblocks)))):
      raise ValueError(
        f"Prompts for text block {beyond[-1]} (from 0), but the tower has "
        f"{len(self.resblocks)} blocks: reduce the depth of the prompts."
      )
    trie = positions is not None
    rows = positions if trie else jnp.arange(embeds.shape[1])
    x = embeds + self.positional_embedding[rows]
    prompts, out = dict(prompts or {}), {}
    replaced = prompt_mode == "overwrite"  # Prompts replace tokens.
    for i, block in enumerate(self.resblocks):
      if i in prompts:
        prompt = rounding.to_float16(prompts[i]) if round_fp16 else prompts[i]
        before = x
        if trie and prompt_mode == "overwrite":
          x = tokens.overwrite_positions(x, prompt, positions)
        else:
          x = tokens.set_after_start(x, prompt, replace=replaced)
        if prompt_weight != 1.0:
          x = prompt_weight * x + (1 - prompt_weight) * before
        if not replaced:
          end, replaced = end + prompt.shape[1], True
          if attention_mask is not None:
            attention_mask = tokens.extend_mask(attention_mask, prompt.shape[1])
      x, _ = block(x, attention_mask=attention_mask)
      out[f"block{i + 1:02d}"] = x
    out["tokens"] = self.ln_final(x)
    rows = end.reshape(end.shape[0], -1, 1)
    last = jnp.take_along_axis(out["tokens"], rows, axis=1)
    last = last.reshape(*end.shape, -1)
    return last @ self.text_projection, out

  def project(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
    """Apply ln_final and the projection to tokens of the last block."""
    return self.ln_final(x) @ self.text_projection
