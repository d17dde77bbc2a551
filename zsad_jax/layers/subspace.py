"""Principal subspace of normal patches, and the distance of patches to it."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from zsad_jax.layers import kernels


class Subspace(NamedTuple):
  """Subspace of normal patches; n = 1 serves all images of a batch.

  Attributes:
    mean: of the patches.
    basis: orthonormal columns; columns that are left out are zero.
    variance: mean squared distance of the patches to their mean.
  """

  mean: Float[Array, "n c"]
  basis: Float[Array, "n c c"]
  variance: Float[Array, " n"]


def fit(patches: Float[Array, "n m c"], explained_variance: float) -> Subspace:
  """Fit the smallest principal subspace that explains a share of the variance.

  Args:
    patches: m patches.
    explained_variance: the share, in (0, 1].
  """
  mean = patches.mean(axis=1)
  x = patches - mean[:, None]
  covariance = (
    jnp.matmul(jnp.swapaxes(x, 1, 2), x, precision=kernels.EXACT)
    / (patches.shape[1])
  )
  values, vectors = jnp.linalg.eigh(covariance)  # In ascending order.
  values = jnp.maximum(values[:, ::-1], 0.0)
  total = values.sum(axis=1, keepdims=True)
  before = jnp.cumsum(values, axis=1) - values
  kept = before < explained_variance * total
  basis = jnp.where(kept[:, None], vectors[:, :, ::-1], 0.0)
  return Subspace(mean, basis, total[:, 0])


def residual(
  patches: Float[Array, "b l c"], space: Subspace
) -> Float[Array, "b l"]:
  """Return the squared distance of patches to a subspace."""
  x = patches - space.mean[:, None]
  exact = kernels.EXACT
  inside = jnp.matmul(x, space.basis, precision=exact)
  back = jnp.matmul(inside, jnp.swapaxes(space.basis, 1, 2), precision=exact)
  return jnp.square(x - back).sum(axis=-1)
