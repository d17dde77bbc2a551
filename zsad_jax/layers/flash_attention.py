"""Attention by a Pallas kernel for TPUs, which keeps no weights in memory.

Without it, XLA writes and reads the t x s weights of each head. The kernel was
compiled for TPUs, and its numbers were compared in Pallas' interpreter; it has
not run on a TPU. It is therefore used only where the configuration asks for it
(`config.backbone.attention`).
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as kernel
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from zsad_jax.layers import kernels

LANES = 128  # Lengths are padded to a multiple of it.
_LARGEST_BLOCK = 512  # Queries at a time; their weights are kept on the chip.


@jax.custom_vjp
def attend(
  q: Float[Array, "b t h d"],
  k: Float[Array, "b s h d"],
  v: Float[Array, "b s h d"],
) -> Float[Array, "b t h d"]:
  """Compute softmax(q k^T / sqrt(d)) v of each head.

  The gradient is that of the attention that XLA compiles, which computes the
  weights again: the kernel's own does not compile in bfloat16.

  References:
    Dao et al., NeurIPS 2022 (FlashAttention).
  """
  if kernels.device_count() == 1:
    return _padded(q, k, v)
  # XLA does not split kernels by itself: each device has its own images.
  split = jax.shard_map(
    _padded,
    mesh=kernels.mesh(),
    in_specs=P("data"),
    out_specs=P("data"),
    check_vma=False,  # The kernel does not declare over what it varies.
  )
  return split(q, k, v)


def _exact(q, k, v):
  return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def _backward(arguments, d_out):
  return jax.vjp(_exact, *arguments)[1](d_out)


attend.defvjp(lambda *arguments: (attend(*arguments), arguments), _backward)


def _padded(q, k, v):
  """Run the kernel on lengths that are multiples of its lanes."""
  b, t, _, d = q.shape
  s = k.shape[1]
  q, k, v = (_pad(x.transpose(0, 2, 1, 3)) for x in (q, k, v))
  padded_t, padded_s = q.shape[2], k.shape[2]
  # Keys of the padding belong to another segment.
  ids = lambda length, padded: jnp.broadcast_to(
    (jnp.arange(padded) >= length).astype(jnp.int32), (b, padded)
  )
  sizes = range(_LARGEST_BLOCK, 0, -16)
  block = next(size for size in sizes if padded_t % size == 0)
  # Mosaic has no products of bfloat16 in more than one pass.
  half = q.dtype == jnp.bfloat16
  with jax.default_matmul_precision("default" if half else "highest"):
    out = kernel.flash_attention(
      q,
      k,
      v,
      segment_ids=kernel.SegmentIds(ids(t, padded_t), ids(s, padded_s)),
      sm_scale=d**-0.5,
      block_sizes=kernel.BlockSizes(
        block_q=block, block_k_major=padded_s, block_k=padded_s, block_b=1
      ),
    )
  return out[:, :, :t].transpose(0, 2, 1, 3)


def _pad(x):
  """Pad the second last axis to a multiple of the lanes."""
  return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % LANES), (0, 0)))
