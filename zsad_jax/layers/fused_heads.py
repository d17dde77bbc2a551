"""Faster forms of the heads of `prompt_query.py`, equal up to rounding.

A head's input is normalized per level, x_hat, and then scaled and shifted by
learned parameters, x = scale * x_hat + shift. The forms here take x_hat and
apply scale and shift where it is cheaper; every other parameter is learned
after x_hat, so that the backward pass needs no gradient of the input.

  local head    scale and shift go into the first convolution; transposed
                convolutions are merged with the following convolution, see
                `fused_conv.py`
  pooling       mean and largest values are taken of x_hat: for a channel
                with a negative scale the largest values of x are the smallest
                ones of x_hat
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.layers import batch_norm, fused_conv
from zsad_jax.types import Params


def local_head(
  params: Params,
  stats: Params,
  x_hat: Float[Array, "b g g2 d"],
  norm: Params,
  *,
  weight: Float[Array, " b"] | None,
) -> tuple[Float[Array, "b h w 2"], Params]:
  """Compute `prompt_query.local_head` of scale * x_hat + bias.

  Args:
    params: of the head.
    stats: of the head.
    x_hat: normalized features, see the module's docstring.
    norm: {"scale": (d,), "bias": (d,)}.
    weight: see `prompt_query.forward`.

  Returns:
    Logits of the states at four times the grid, and the new statistics.
  """
  new = {}

  def normalize(k, x):
    x, new[f"norm{k}"] = batch_norm.apply(
      params[f"norm{k}"], stats[f"norm{k}"], x, weight=weight
    )
    return jax.nn.relu(x)

  x = fused_conv.apply_scaled(
    params["conv1"], x_hat, norm["scale"], norm["bias"]
  )
  x = normalize(1, x)
  x = fused_conv.apply_after_transposed(params["up1"], params["conv2"], x)
  x = normalize(2, x)
  x = fused_conv.apply_after_transposed(params["up2"], params["out"], x)
  return x, new


def pool(
  x_hat: Float[Array, "b l d"], norm: Params, *, topk: int
) -> Float[Array, "b d"]:
  """Compute `prompt_query.pool` of scale * x_hat + bias.

  Args:
    x_hat: normalized features, see the module's docstring.
    norm: {"scale": (d,), "bias": (d,)}.
    topk: number of largest values.

  Returns:
    The pooled features.
  """
  sign = jnp.where(norm["scale"] < 0, -1.0, 1.0)
  largest, _ = jax.lax.top_k(jnp.swapaxes(sign * x_hat, 1, 2), topk)
  x = 0.5 * (x_hat.mean(axis=1) + sign * largest.mean(axis=-1))
  return norm["scale"] * x + norm["bias"]
