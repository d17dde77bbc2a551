"""Scaled dot-product attention, by the kernel that suits the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LONG = 256  # Keys from which a CPU is faster head by head; measured.


def attend(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    *,
    causal: bool,
    seen: Bool[Array, "b t s"] | None = None,
) -> Float[Array, "b t h d"]:
  """Returns softmax(q k^T / sqrt(d)) v of each head.

  On a GPU in half precision it is cuDNN's fused kernel; on a CPU many keys are
  attended to head by head, so that a head's t x s weights stay in its cache;
  otherwise it is what XLA makes of it. The results agree to rounding.

  Args:
    q: queries.
    k: keys.
    v: values.
    causal: whether a query sees only the keys up to its own position.
    seen: which keys each query sees, instead of `causal`; None: `causal` says.
  """
  device = jax.default_backend()
  if seen is not None:
    return jax.nn.dot_product_attention(q, k, v, mask=seen[:, None])
  if device == "cpu" and not causal and k.shape[1] >= LONG:
    return _by_head(q, k, v)
  half = q.dtype in (jnp.bfloat16, jnp.float16)
  # cuDNN's backward pass takes even lengths only.
  even = not (q.shape[1] % 2 or k.shape[1] % 2)
  fused = device == "gpu" and half and even
  return jax.nn.dot_product_attention(
      q, k, v, is_causal=causal, implementation="cudnn" if fused else "xla"
  )


def _by_head(q, k, v):
  """One head after the other; the backward pass computes its weights anew."""
  scale = q.shape[-1] ** -0.5

  @jax.checkpoint
  def one(head):
    q, k, v = head
    logits = _product(q * scale, k.swapaxes(1, 2))
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    # Normalised last: d numbers instead of s.
    total = weights.sum(-1, keepdims=True)
    return (_product(weights.astype(v.dtype), v) / total).astype(v.dtype)

  heads = (x.transpose(2, 0, 1, 3) for x in (q, k, v))
  return jax.lax.map(one, tuple(heads)).transpose(1, 2, 0, 3)


def _product(a, b):
  """a @ b, added up in float32."""
  return jnp.matmul(a, b, preferred_element_type=jnp.float32)
