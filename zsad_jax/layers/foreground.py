"""Foreground of images from the first principal component of their patches.

AnomalyDINO (Damm et al., WACV 2025, arXiv:2405.14529): patches of an object
and of its background differ most, so the first component separates them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from zsad_jax.layers import kernels

STEPS = 100  # Of the power iteration.
BORDER = 0.2  # Share of the sides that is not part of the centre.
LEAST = 0.35  # Share of the centre that the object covers.
_product = functools.partial(jnp.einsum, precision=kernels.EXACT)


def mask(tokens: Float[Array, "b l d"], threshold: float) -> Bool[Array, "b l"]:
  """Return the foreground patches of each image.

  These are the patches above the threshold on the first component, or, where
  they cover too little of the centre, those below its negative. Holes of one
  patch are closed, and the border grows by one patch.

  Args:
    tokens: patches of a square image in row-major order.
    threshold: of the first component.
  """
  b, l, _ = tokens.shape
  side = round(l**0.5)
  first = first_component(tokens).reshape(b, side, side)
  low, high = int(side * BORDER), int(side * (1 - BORDER))
  centre = (first > threshold)[:, low:high, low:high]
  covered = centre.sum(axis=(1, 2)) > LEAST * (high - low) ** 2
  signed = jnp.where(covered[:, None, None], first, -first)
  found = (signed > threshold).astype(jnp.float32)
  closed = _shrink(_grow(_grow(found)))
  return closed.reshape(b, l) > 0


def first_component(tokens: Float[Array, "b l d"]) -> Float[Array, "b l"]:
  """Return the coordinates of patches on their first principal component.

  The largest loading by magnitude is positive, as in scikit-learn. The
  component is found by power iteration, from the same start for all images.
  """
  x = tokens - tokens.mean(axis=1, keepdims=True)
  b, _, d = x.shape
  start = np.random.default_rng(0).standard_normal(d).astype(np.float32)
  # Scaled by the largest value: squares of a length may overflow.
  scale = lambda v: v / jnp.maximum(jnp.abs(v).max(-1, keepdims=True), 1e-30)

  def step(v, _):
    return scale(_product("bld,bl->bd", x, _product("bld,bd->bl", x, v))), None

  v, _ = jax.lax.scan(step, jnp.broadcast_to(start, (b, d)), None, length=STEPS)
  v = v / jnp.sqrt(jnp.maximum(jnp.square(v).sum(-1, keepdims=True), 1e-30))
  flipped = -v.min(-1, keepdims=True) > v.max(-1, keepdims=True)
  return _product("bld,bd->bl", x, jnp.where(flipped, -v, v))


def _grow(x: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
  """Return the largest value of each 3 x 3 neighbourhood (dilation)."""
  for axis in (1, 2):
    width = [(1, 1) if i == axis else (0, 0) for i in range(3)]
    padded = jnp.pad(x, width, constant_values=-jnp.inf)
    shifted = [
      jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis)
      for i in range(3)
    ]
    x = jnp.maximum(jnp.maximum(shifted[0], shifted[1]), shifted[2])
  return x


def _shrink(x):
  """Return the least value of each 3 x 3 neighbourhood (erosion)."""
  return -_grow(-x)
