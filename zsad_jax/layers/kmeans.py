"""Seeded, reproducible k-means on the device; clusters may be empty."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zsad_jax.layers import kernels

MAX_ITERATIONS = 300  # scikit-learn's KMeans(max_iter=300).


def _square_distances(x, centres):
  """Compute (n, k) squared distances; precise, as close ones decide labels."""
  cross = jnp.matmul(x, centres.T, precision=kernels.EXACT)
  norms = lambda a: jnp.sum(jnp.square(a), axis=-1)
  return norms(x)[:, None] - 2.0 * cross + norms(centres)[None]


def _plus_plus(rng, x, k):
  """Choose k rows of x by greedy k-means++: each the best of a few draws."""
  trials = 2 + int(math.log(k))  # scikit-learn's number.
  rng, rng_first = jax.random.split(rng)
  first = x[jax.random.randint(rng_first, (), 0, x.shape[0])]
  centres = jnp.broadcast_to(first, (k, x.shape[1]))

  def add(i, state):
    centres, nearest = state
    log_weight = jnp.log(jnp.maximum(nearest, 1e-12))
    drawn = jax.random.categorical(
      jax.random.fold_in(rng, i), log_weight, shape=(trials,)
    )
    with_each = jnp.minimum(nearest[:, None], _square_distances(x, x[drawn]))
    best = jnp.argmin(with_each.sum(axis=0))
    return centres.at[i].set(x[drawn[best]]), with_each[:, best]

  start = (centres, _square_distances(x, first[None])[:, 0])
  return jax.lax.fori_loop(1, k, add, start)[0]


def cluster_means(
  x: Float[Array, "n c"], labels: Int[Array, " n"], k: int
) -> tuple[Float[Array, "k c"], Float[Array, " k"]]:
  """Return each cluster's mean (zeros for an empty one) and row count."""
  member = jax.nn.one_hot(labels, k, dtype=x.dtype)
  count = jnp.sum(member, axis=0)
  total = jnp.matmul(member.T, x, precision=kernels.EXACT)
  return total / jnp.maximum(count, 1.0)[:, None], count


def kmeans(rng: jax.Array, x: Float[Array, "n c"], k: int) -> Int[Array, " n"]:
  """Cluster the rows of x.

  k-means++ seeding and Lloyd iterations until no label changes. A cluster
  that loses its last row keeps its centre, so fewer than k labels may occur
  (always so when x has fewer than k distinct rows).

  Args:
    rng: key of the seeding.
    x: rows.
    k: number of clusters.

  Returns:
    Labels, through which no gradient flows.

  References:
    Arthur and Vassilvitskii, SODA 2007; Lloyd, IEEE Trans. IT 28 (1982).
  """
  x = jax.lax.stop_gradient(x)
  assign = lambda c: jnp.argmin(_square_distances(x, c), axis=1)

  def unsettled(state):
    _, labels, previous, i = state
    return (i < MAX_ITERATIONS) & jnp.any(labels != previous)

  def step(state):
    centres, labels, _, i = state
    means, count = cluster_means(x, labels, k)
    centres = jnp.where(count[:, None] > 0, means, centres)
    return centres, assign(centres), labels, i + 1

  centres = _plus_plus(rng, x, k)
  labels = assign(centres)
  state = (centres, labels, jnp.full_like(labels, -1), 0)
  return jax.lax.while_loop(unsettled, step, state)[1]
