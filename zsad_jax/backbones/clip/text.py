"""CLIP's text tower with the hooks of every method."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zsad_jax.backbones.clip import blocks
from zsad_jax.backbones.clip.config import ClipConfig
from zsad_jax.layers import tokens


class TextTower(nn.Module):
  """Token embeddings to sentence embeddings. Plain CLIP with hooks off."""

  config: ClipConfig
  activation: str
  dtype: str = "float32"

  def setup(self):
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
    round_fp16: bool = False,
  ) -> tuple[Float[Array, "k *s d"], dict[str, Array]]:
    """Runs the tower.

    Args:
      embeds: embeddings of t <= context_length tokens, positions not added.
        Rows after the end token never matter: cut them to save time.
      end: position of each sentence's end token; (k, s) where s sentences are
        joined to a trie, see `layers/prompt_trie.py`.
      positions, attention_mask: of a prompt trie; None for plain prompts.
      prompts: deep prompts by 0-based block: set at that block's input, right
        after the start token, one set for all sentences (leading axis 1) or
        one per sentence (k). No position is added to them.
      prompt_mode: "overwrite" writes over rows 1 ... m (all official code);
        "insert" makes room for them at the first prompted block.
      round_fp16: round prompts, and their gradient, to float16, as the
        official AnomalyCLIP and FAPrompt do on a GPU.

    Returns:
      ln_final(end token) @ text_projection, not normalised, and the feature_layers:
      "blockNN" and "tokens" (ln_final of all rows), each (k, t, c).
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
    replaced = prompt_mode == "overwrite"  # Rows the next prompts replace.
    for i, block in enumerate(self.resblocks):
      if i in prompts:
        prompt = _rounded(prompts[i]) if round_fp16 else prompts[i]
        if trie and prompt_mode == "overwrite":
          x = tokens.overwrite_positions(x, prompt, positions)
        else:
          x = tokens.set_after_start(x, prompt, replace=replaced)
        if not replaced:
          end, replaced = end + prompt.shape[1], True
          if attention_mask is not None:
            attention_mask = tokens.extend_mask(attention_mask, prompt.shape[1])
      x, _ = block(x, attention_mask=attention_mask)
      out[f"block{i + 1:02d}"] = x
    out["tokens"] = self.ln_final(x)
    places = end.reshape(end.shape[0], -1, 1)
    last = jnp.take_along_axis(out["tokens"], places, axis=1)
    last = last.reshape(*end.shape, -1)
    return last @ self.text_projection, out


def _rounded(x):
  return x.astype(jnp.float16).astype(x.dtype)
