"""SAM's image encoder: a ViT with windowed attention, and its neck.

ViTDet (Li et al., ECCV 2022) with decomposed relative positions (MViTv2, Li et
al., CVPR 2022): a block attends within windows of 14 x 14 patches, or to the
whole image, and adds to each logit the products of the query with the vectors
of the distances in rows and in columns.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.backbones.sam.config import SamConfig
from zsad_jax.layers import kernels, resample

Params = Mapping[str, Any]
EPSILON = 1e-6  # Of all LayerNorms.


def encode(
  params: Params,
  config: SamConfig,
  image: Float[Array, "b h w 3"],
  *,
  dtype: str = "float32",
  pos_resize: str = "bicubic",
  remat: bool = False,
) -> tuple[list[Float[Array, "b g g2 c"]], Float[Array, "b g g2 n"]]:
  """Encode images.

  Args:
    params: see `convert.param_shapes`.
    config: sizes of the model.
    image: normalized images; sides are multiples of the patch size.
    dtype: of matrix products; all other computations are float32.
    pos_resize: resampling of the table of absolute positions, see
      `resample.matrix`. That of relative positions is linear, as the authors'.
    remat: compute the blocks again in the backward pass to save memory.

  Returns:
    The patches after each block, and SAM's image embedding (neck).
  """
  x = _embed(params, config, image, dtype)
  x += resample.resize(
    params["positional_embedding"], (x.shape[1], x.shape[2]), method=pos_resize
  )
  layers = []
  for i in range(config.layers):
    window = None if i + 1 in config.global_layers else config.window

    def run(block, x, window=window):
      return _block(block, x, config.heads, window, dtype)

    run = jax.checkpoint(run) if remat else run
    x = run(params[f"blocks_{i}"], x)
    layers.append(x)
  return layers, _neck(params["neck"], x, dtype)


def _embed(params, config, image, dtype):
  """Embed patches by one product, as the convolution does."""
  b, h, w, _ = image.shape
  p = config.patch_size
  cells = image.reshape(b, h // p, p, w // p, p, 3).swapaxes(2, 3)
  kernel = params["patch"]["kernel"]
  flat = {**params["patch"], "kernel": kernel.reshape(-1, config.width)}
  return _dense(flat, cells.reshape(b, h // p, w // p, -1), dtype)


def _dense(params, x, dtype):
  """Apply a linear layer; sums and result are float32."""
  rows = x.reshape(-1, x.shape[-1])
  y = _product(rows, params["kernel"], dtype)
  return y.reshape(*x.shape[:-1], -1) + params.get("bias", 0.0)


def _product(a, b, dtype):
  return jnp.matmul(
    a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32
  )


def layer_norm(params: Params, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
  """Normalize over the last axis."""
  mean = x.mean(axis=-1, keepdims=True)
  variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
  unit = (x - mean) * jax.lax.rsqrt(variance + EPSILON)
  return unit * params["scale"] + params["bias"]


def _block(params, x, heads, window, dtype):
  """Apply a pre-norm transformer block to (b, g, g2, c)."""
  inside = layer_norm(params["norm1"], x)
  if window is None:
    x += _attend(params["attn"], inside, heads, dtype)
  else:
    b, rows, columns, _ = x.shape
    windows = _split(inside, window)
    merged = _attend(params["attn"], windows, heads, dtype)
    x += _merge(merged, b, rows, columns, window)
  hidden = _dense(params["mlp"]["lin1"], layer_norm(params["norm2"], x), dtype)
  hidden = jax.nn.gelu(hidden, approximate=False)
  return x + _dense(params["mlp"]["lin2"], hidden, dtype)


def _split(x, window):
  """Split into windows (n, window, window, c), padded with zeros."""
  b, rows, columns, c = x.shape
  x = jnp.pad(x, ((0, 0), (0, -rows % window), (0, -columns % window), (0, 0)))
  down, across = x.shape[1] // window, x.shape[2] // window
  x = x.reshape(b, down, window, across, window, c)
  return x.swapaxes(2, 3).reshape(-1, window, window, c)


def _merge(windows, b, rows, columns, window):
  """Invert `_split`."""
  down, across = -(-rows // window), -(-columns // window)
  x = windows.reshape(b, down, across, window, window, -1).swapaxes(2, 3)
  x = x.reshape(b, down * window, across * window, -1)
  return x[:, :rows, :columns]


def _attend(params, x, heads, dtype):
  """Attend within each of n grids (n, rows, columns, c)."""
  n, rows, columns, c = x.shape
  d = c // heads
  qkv = _dense(params["qkv"], x, dtype)
  qkv = qkv.reshape(n, rows, columns, 3, heads, d).transpose(3, 0, 4, 1, 2, 5)
  q, k, v = qkv.reshape(3, n * heads, rows, columns, d)
  down = relative_positions(params["rel_pos_h"], rows)
  across = relative_positions(params["rel_pos_w"], columns)

  def one_head(q, k, v):
    flat = lambda a: a.reshape(rows * columns, -1)
    vertical = jnp.einsum("hwd,hkd->hwk", q, down)
    horizontal = jnp.einsum("hwd,wkd->hwk", q, across)
    bias = vertical[..., None] + horizontal[:, :, None]
    logits = _product(flat(q) * d**-0.5, flat(k).T, dtype) + flat(bias)
    return _product(jax.nn.softmax(logits), flat(v), dtype)

  # One after the other: the weights of a head stay in a CPU's cache.
  in_turn = kernels.one_cpu() and rows * columns >= kernels.MANY_KEYS
  if in_turn:
    out = jax.lax.map(lambda head: one_head(*head), (q, k, v))
  else:
    out = jax.vmap(one_head)(q, k, v)
  out = out.reshape(n, heads, rows, columns, d).transpose(0, 2, 3, 1, 4)
  return _dense(params["proj"], out.reshape(n, rows, columns, c), dtype)


def relative_positions(
  table: Float[Array, "n d"], size: int
) -> Float[Array, "{size} {size} d"]:
  """Return the vector of each query's and key's distance along one axis.

  Args:
    table: of the distances -(s - 1) ... s - 1 for s patches, interpolated
      linearly where s is not `size`.
    size: patches along the axis.
  """
  distances = resample.resize(
    table[None], (1, 2 * size - 1), method="bilinear"
  )[0]
  number = jnp.arange(size)
  return distances[number[:, None] - number + size - 1]


def _neck(params, x, dtype):
  """Apply a 1 x 1 and a 3 x 3 convolution, each with a LayerNorm."""
  x = layer_norm(params["norm1"], _dense(params["conv1"], x, dtype))
  kernel = params["conv2"]["kernel"].astype(dtype)
  x = jax.lax.conv_general_dilated(
    x.astype(dtype),
    kernel,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    preferred_element_type=jnp.float32,
  )
  return layer_norm(params["norm2"], x)
