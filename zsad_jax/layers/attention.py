"""Scaled dot-product attention, by the kernel that suits the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zsad_jax.layers import kernels

LONG = 256  # Keys from which a CPU is faster head by head; measured.


def attend(
  q: Float[Array, "b t h d"],
  k: Float[Array, "b s h d"],
  v: Float[Array, "b s h d"],
  *,
  causal: bool,
  attention_mask: Bool[Array, "b t s"] | None = None,
) -> Float[Array, "b t h d"]:
  """Returns softmax(q k^T / sqrt(d)) v of each head.

  On a GPU in half precision it is cuDNN's fused kernel; on one CPU many keys
  are attended to head by head, so that a head's t x s weights stay in its
  cache; otherwise it is what XLA makes of it. The results agree to rounding.

  Args:
    q: queries.
    k: keys.
    v: values.
    causal: whether a query sees only the keys up to its own position.
    attention_mask: True for the keys of each query, instead of `causal`.
  """
  if attention_mask is not None:
    return jax.nn.dot_product_attention(q, k, v, mask=attention_mask[:, None])
  if kernels.one_cpu() and not causal and k.shape[1] >= LONG:
    return _by_head(q, k, v)
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  # cuDNN's backward pass takes even lengths only.
  even = not (q.shape[1] % 2 or k.shape[1] % 2)
  fused = jax.default_backend() == "gpu" and half and even
  return jax.nn.dot_product_attention(
    q, k, v, is_causal=causal, implementation="cudnn" if fused else "xla"
  )


def _by_head(q, k, v):
  """One head of one image after the other."""
  b, _, h, d = q.shape
  # Of two axes each: XLA splits the first one over the cores of a CPU.
  heads = (x.transpose(0, 2, 1, 3).reshape(b * h, -1, d) for x in (q, k, v))
  out = jax.lax.map(lambda head: _one_head(*head), tuple(heads))
  return out.reshape(b, h, -1, d).transpose(0, 2, 1, 3)


@jax.custom_vjp
def _one_head(q: Float[Array, "t d"], k: Float[Array, "s d"], v):
  """Keeps its arguments alone, and computes the weights anew.

  References:
    Dao et al., NeurIPS 2022 (FlashAttention), the backward pass.
  """
  weights, total = _weights(q, k)
  return (_product(weights.astype(v.dtype), v) / total).astype(v.dtype)


def _weights(q, k):
  """exp(q k^T / sqrt(d)), each row up to a factor, and the sums of the rows.

  What they weigh is divided by the sums: d numbers of a row instead of s.
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
  """a @ b, added up in float32."""
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)
