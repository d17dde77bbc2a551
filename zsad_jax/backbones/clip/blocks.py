"""Transformer block of both CLIP towers."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from zsad_jax.layers import attention, kernels


class LayerNorm(nn.LayerNorm):
  """LayerNorm with CLIP's epsilon and two-pass statistics."""

  epsilon: float = 1e-5  # Torch's default; Flax has 1e-6.
  use_fast_variance: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Normalize over the last axis."""
    # On a CPU, the gradient for three axes takes five times as long as for two.
    return super().__call__(x.reshape(-1, x.shape[-1])).reshape(x.shape)


ACTIVATIONS = {
  # OpenAI's weights were trained with this one.
  "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
  # LAION's weights were trained with this one; AdaCLIP and APRIL-GAN use it
  # with OpenAI's weights.
  "gelu_erf": functools.partial(jax.nn.gelu, approximate=False),
}

SAVED = "saved"  # Name of activations that are not recomputed, see `remat`.


def dense(width: int, dtype: str, name: str) -> Callable[[Array], Array]:
  """Return a linear layer of `dtype`; for use in a compact module."""
  layer = nn.Dense(
    width, dtype=dtype, dot_general=kernels.dot_general(), name=name
  )
  return lambda x: layer(x).astype(dtype)


def activation(name: str) -> Callable[[Array], Array]:
  """Return the activation of this name.

  Raises:
    ValueError: the name is unknown.
  """
  if name not in ACTIVATIONS:
    known = ", ".join(ACTIVATIONS)
    raise ValueError(f"Unknown activation {name!r}; known: {known}.")
  return ACTIVATIONS[name]


class Attention(nn.Module):
  """Multi-head self-attention, optionally with value-value attention.

  Both use the same projections: softmax(Q K^T / sqrt(c / heads)) V, and the
  same with V in place of Q and K. The first attends for the first
  `num_queries` tokens alone (None: all); `attention_mask` selects the keys of
  each query. `flash`: see `attention.attend`.
  """

  num_heads: int
  causal: bool
  dtype: str
  flash: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t c"],
    *,
    num_queries: int | None,
    attention_mask: Bool[Array, "b t t"] | None,
    value_value: bool,
  ) -> tuple[Float[Array, "b a c"], Float[Array, "b t c"] | None]:
    """Return the attention output and, if asked, its value-value form."""
    b, t, c = x.shape
    # On a CPU, gradients of products with more than two axes take twice as
    # long.
    qkv = dense(3 * c, self.dtype, "in_proj")(x.reshape(b * t, c))
    qkv = checkpoint_name(qkv, SAVED)
    heads = (b, t, self.num_heads, c // self.num_heads)
    q, k, v = (a.reshape(heads) for a in jnp.split(qkv, 3, axis=-1))
    out_proj = dense(c, self.dtype, "out_proj")

    def attend(q, k):
      out = attention.attend(
        q,
        k,
        v,
        causal=self.causal,
        attention_mask=attention_mask,
        flash=self.flash,
      )
      return out_proj(out.reshape(-1, c)).reshape(b, -1, c)

    return attend(q[:, :num_queries], k), attend(v, v) if value_value else None


class Mlp(nn.Module):
  """Two linear layers with an activation in between; hidden width 4 c."""

  activation: str
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
    """Apply both layers to every token."""
    c = x.shape[-1]
    hidden = dense(4 * c, self.dtype, "c_fc")(x.reshape(-1, c))
    hidden = activation(self.activation)(hidden)
    return dense(c, self.dtype, "c_proj")(hidden).reshape(x.shape)


class ResBlock(nn.Module):
  """Pre-norm transformer block, with the dual path of AnomalyCLIP.

  `vv` is the value-value stream of the dual path: it adds the value-value
  attention of the *main* stream's tokens, skips the MLP and does not feed back
  into the main stream. `num_queries` restricts the main stream to its first
  tokens (None: all). `attention_mask` selects the keys of each query; None for
  all keys, or causal attention. `before_mlp` returns the streams between
  attention and MLP.

  Matrix products are computed in `dtype`; the streams, LayerNorms and the
  softmax are float32.
  """

  num_heads: int
  activation: str
  dtype: str = "float32"
  causal: bool = False
  flash: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t c"],
    vv: Float[Array, "b t c"] | None = None,
    num_queries: int | None = None,
    attention_mask: Bool[Array, "b t t"] | None = None,
    *,
    before_mlp: bool = False,
  ) -> tuple[Float[Array, "b a c"], Float[Array, "b t c"] | None]:
    """Return the main stream and the value-value stream after the block."""
    attention_ = Attention(
      self.num_heads, self.causal, self.dtype, self.flash, name="attn"
    )
    attend, attend_vv = attention_(
      LayerNorm(name="ln_1")(x),
      num_queries=num_queries,
      attention_mask=attention_mask,
      value_value=vv is not None,
    )
    x = checkpoint_name(x[:, :num_queries] + attend, SAVED)
    if not before_mlp:
      x = x + Mlp(self.activation, self.dtype, name="mlp")(
        LayerNorm(name="ln_2")(x)
      )
    if vv is None or attend_vv is None:
      return x, None
    return x, vv + attend_vv


def block_type(remat: bool) -> type[nn.Module]:
  """Return `ResBlock`, optionally with rematerialization of its MLP.

  With `remat`, the backward pass keeps queries, keys, values and the stream
  between attention and MLP, and recomputes the rest; benchmarks/README.md
  lists the memory and time this takes.
  """
  if not remat:
    return ResBlock
  policy = jax.checkpoint_policies.save_only_these_names(SAVED)
  return nn.remat(ResBlock, static_argnums=(3,), policy=policy)
