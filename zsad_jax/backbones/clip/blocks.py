"""The transformer block that both CLIP towers are made of."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from zsad_jax.layers import attention


class LayerNorm(nn.LayerNorm):
  """Over the last axis, with CLIP's epsilon and two-pass statistics."""

  epsilon: float = 1e-5  # Torch's default; Flax has 1e-6.
  use_fast_variance: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    # Two axes: a CPU's gradient of three takes five times as long.
    return super().__call__(x.reshape(-1, x.shape[-1])).reshape(x.shape)


ACTIVATIONS = {
  # OpenAI's weights were trained with this one.
  "quick": lambda x: x * jax.nn.sigmoid(1.702 * x),
  # AdaCLIP and APRIL-GAN run them with this one, LAION's were trained so.
  "gelu_erf": functools.partial(jax.nn.gelu, approximate=False),
}

KEPT = "kept"  # Name of what a block that recomputes does not recompute.


def _dense(width: int, dtype: str, name: str):
  """A linear layer of `dtype`."""
  product = None
  if jax.default_backend() == "cpu":
    # Some CPUs are fast at bfloat16, but XLA only asks them for float32 sums.
    product = functools.partial(
      jax.lax.dot_general, preferred_element_type=jnp.float32
    )
  layer = nn.Dense(width, dtype=dtype, dot_general=product, name=name)
  return lambda x: layer(x).astype(dtype)


def activation(name: str):
  """Returns the activation called `name`; ValueError when there is none."""
  if name not in ACTIVATIONS:
    known = ", ".join(ACTIVATIONS)
    raise ValueError(f"Unknown activation {name!r}; known: {known}.")
  return ACTIVATIONS[name]


class Attention(nn.Module):
  """Multi-head self-attention, with an optional value-value twin.

  Both share the projections: softmax(Q K^T / sqrt(c / heads)) V, and the same
  with V for Q and K. Only the first `num_queries` tokens are attended for in the
  main one; None: all of them. `attention_mask` selects the keys of each query.
  """

  num_heads: int
  causal: bool
  dtype: str

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t c"],
    *,
    num_queries: int | None,
    attention_mask: Bool[Array, "b t t"] | None,
    value_value: bool,
  ) -> tuple[Float[Array, "b a c"], Float[Array, "b t c"] | None]:
    b, t, c = x.shape
    # Products of two axes: gradients of others are twice as slow on a CPU.
    qkv = _dense(3 * c, self.dtype, "in_proj")(x.reshape(b * t, c))
    qkv = checkpoint_name(qkv, KEPT)
    heads = (b, t, self.num_heads, c // self.num_heads)
    q, k, v = (a.reshape(heads) for a in jnp.split(qkv, 3, axis=-1))
    out_proj = _dense(c, self.dtype, "out_proj")

    def attend(q, k):
      out = attention.attend(
        q, k, v, causal=self.causal, attention_mask=attention_mask
      )
      return out_proj(out.reshape(-1, c)).reshape(b, -1, c)

    return attend(q[:, :num_queries], k), attend(v, v) if value_value else None


class Mlp(nn.Module):
  """Two linear layers around the activation, hidden width 4 c."""

  activation: str
  dtype: str

  @nn.compact
  def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
    c = x.shape[-1]
    hidden = _dense(4 * c, self.dtype, "c_fc")(x.reshape(-1, c))
    hidden = activation(self.activation)(hidden)
    return _dense(c, self.dtype, "c_proj")(hidden).reshape(x.shape)


class ResBlock(nn.Module):
  """Pre-norm transformer block, with the dual path of AnomalyCLIP.

  `vv` is the value-value stream beside the main one: it adds the value-value
  attention of the *main* stream's tokens, skips the MLP and never feeds back.
  Of the main stream the first `num_queries` tokens are computed, None: all of them.
  `attention_mask` selects the keys of each query; None: all, or causal.

  Matrix products are computed in `dtype`; the streams, the norms and the
  softmax stay in float32.
  """

  num_heads: int
  activation: str
  dtype: str = "float32"
  causal: bool = False

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t c"],
    vv: Float[Array, "b t c"] | None = None,
    num_queries: int | None = None,
    attention_mask: Bool[Array, "b t t"] | None = None,
  ) -> tuple[Float[Array, "b a c"], Float[Array, "b t c"] | None]:
    attention_ = Attention(self.num_heads, self.causal, self.dtype, name="attn")
    attend, attend_vv = attention_(
      LayerNorm(name="ln_1")(x),
      num_queries=num_queries,
      attention_mask=attention_mask,
      value_value=vv is not None,
    )
    x = checkpoint_name(x[:, :num_queries] + attend, KEPT)
    x = x + Mlp(self.activation, self.dtype, name="mlp")(
      LayerNorm(name="ln_2")(x)
    )
    return x, None if vv is None else vv + attend_vv


def block_type(remat: bool):
  """The block, or the one that recomputes its MLP in the backward pass.

  Of a block that recomputes, queries, keys, values and the stream between
  attention and MLP are kept; benchmarks/README.md has what that saves.
  """
  if not remat:
    return ResBlock
  policy = jax.checkpoint_policies.save_only_these_names(KEPT)
  return nn.remat(ResBlock, static_argnums=(3,), policy=policy)
