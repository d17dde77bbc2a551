"""Scaled dot-product attention."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zsad_jax.layers import flash_attention, kernels


def attend(
  q: Float[Array, "b t h d"],
  k: Float[Array, "b s h d"],
  v: Float[Array, "b s h d"],
  *,
  causal: bool,
  attention_mask: Bool[Array, "b t s"] | None = None,
  flash: bool = False,
) -> Float[Array, "b t h d"]:
  """Compute softmax(q k^T / sqrt(d)) v of each head.

  The implementation is chosen by `kernels.attention_kernel`; the results
  agree up to rounding.

  Args:
    q: queries.
    k: keys.
    v: values.
    causal: if a query attends only to keys up to its own position.
    attention_mask: True for the keys of each query; replaces `causal`.
    flash: whether the kernel for TPUs may be used, see `flash_attention`.

  Returns:
    The weighted values of each query.
  """
  if attention_mask is not None:
    return jax.nn.dot_product_attention(q, k, v, mask=attention_mask[:, None])
  kernel = kernels.attention_kernel(q, k, causal=causal, flash=flash)
  if kernel == "by_head":  # Chosen for causal=False only, as is "flash".
    return _by_head(q, k, v)
  if kernel == "flash":
    return flash_attention.attend(q, k, v)
  if kernel == "cudnn":
    return _with_even_lengths(q, k, v, causal)
  return jax.nn.dot_product_attention(
    q, k, v, is_causal=causal, implementation="xla"
  )


def _with_even_lengths(q, k, v, causal):
  """Attend with cuDNN, padded to even numbers of queries and keys.

  cuDNN's backward pass takes even lengths only; AdaCLIP's prompted tower has
  1,375 tokens at 518 pixels.
  """
  (b, t), s = q.shape[:2], k.shape[1]
  lengths: dict[str, Any] = {}
  if t % 2 or s % 2:
    pad = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
    q, k, v = pad(q), pad(k), pad(v)
    lengths = {
      "query_seq_lengths": jnp.full(b, t, jnp.int32),
      "key_value_seq_lengths": jnp.full(b, s, jnp.int32),
    }
  out = jax.nn.dot_product_attention(
    q, k, v, is_causal=causal, implementation="cudnn", **lengths
  )
  return out[:, :t]


def _by_head(q, k, v):
  """Attend with one head of one image after the other."""
  b, _, h, d = q.shape
  # Of two axes each: XLA splits the first one over the cores of a CPU.
  heads = (x.transpose(0, 2, 1, 3).reshape(b * h, -1, d) for x in (q, k, v))
  out = jax.lax.map(lambda head: _one_head(*head), tuple(heads))
  return out.reshape(b, h, -1, d).transpose(0, 2, 1, 3)


@jax.custom_vjp
def _one_head(q: Float[Array, "t d"], k: Float[Array, "s d"], v):
  """Attend with one head; the backward pass recomputes the weights.

  References:
    Dao et al., NeurIPS 2022 (FlashAttention), the backward pass.
  """
  weights, total = _weights(q, k)
  return (_product(weights.astype(v.dtype), v) / total).astype(v.dtype)


def _weights(q, k):
  """Compute exp(q k^T / sqrt(d)) up to a factor per row, and the row sums.

  Dividing the weighted values by the sums takes d divisions per row instead
  of s.
  """
  logits = _product(q * q.shape[-1] ** -0.5, k.T)
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  return weights, weights.sum(-1, keepdims=True)


def _one_head_backward(arguments, d_out):
  q, k, v = arguments
  weights, total = _weights(q, k)
  d_out = (d_out / total).astype(v.dtype)
  d_weights = _product(d_out, v.T)
  mean = (weights * d_weights).sum(-1, keepdims=True) / total
  d_logits = (weights * (d_weights - mean)).astype(v.dtype)
  d_q = _product(d_logits, k) * q.shape[-1] ** -0.5
  d_k = _product(d_logits.T, q) * q.shape[-1] ** -0.5
  d_v = _product(weights.astype(v.dtype).T, d_out)
  return tuple(x.astype(v.dtype) for x in (d_q, d_k, d_v))


_one_head.defvjp(lambda *head: (_one_head(*head), head), _one_head_backward)


def _product(a, b):
  """Return a @ b, summed in float32."""
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)
