"""Exact nearest neighbours by blocked matrix products, in bounded memory.

No distance matrix is kept: a block of references is multiplied with the
queries, and the best reference so far is updated. Besides queries and
references, memory for one block of products is needed.

The reference is chosen by these products, whose rounding depends on the shape
of a block. The returned distance is computed from the two vectors alone.
  CPU     blocks have one shape for any number of queries: distance and index
          are bit-equal for any batch, order of queries and number of devices,
          and for any block unless two references are nearest up to rounding
  others  equal up to rounding
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zsad_jax.layers import kernels

METRICS = ("cosine", "euclidean")


def nearest(
  query: Float[Array, "q d"],
  bank: Float[Array, "n d"],
  *,
  metric: str = "cosine",
  block: tuple[int | None, int] | None = None,
) -> tuple[Float[Array, " q"], Int[Array, " q"]]:
  """Find the nearest of n references for each query.

  Args:
    query: the queries; unit vectors for the cosine distance.
    bank: the references, at least one; unit vectors for the cosine distance.
    metric: "cosine", 1 - cosine in [0, 2], or "euclidean".
    block: numbers of queries (None: all) and of references in a product; None
      for `kernels.neighbor_block()`.

  Returns:
    The distance and the index (int32); the first one where the products of
    several references are equal.

  Raises:
    ValueError: there is no reference, or the metric is unknown.
  """
  if metric not in METRICS:
    raise ValueError(f"metric is {' or '.join(METRICS)}, got {metric!r}.")
  if not bank.shape[0]:
    raise ValueError("There is no reference vector to compare with.")
  queries, references = block or kernels.neighbor_block()
  half_squares = None
  if metric == "euclidean":
    # The nearest has the largest q r - r^2 / 2.
    half_squares = 0.5 * jnp.sum(jnp.square(bank), axis=1)
  search = functools.partial(
    _search, bank, half_squares, metric, min(references, bank.shape[0])
  )
  if queries is None:
    return search(query)
  q, d = query.shape
  rows = jnp.pad(query, ((0, -q % queries), (0, 0)))
  found = jax.lax.map(search, rows.reshape(-1, queries, d))
  return found[0].reshape(-1)[:q], found[1].reshape(-1)[:q]


def _search(bank, half_squares, metric, size, query):
  """Search blocks of `size` references for all given queries."""
  n = bank.shape[0]

  def update(i, best):
    # The last block starts earlier, so that all have one shape.
    start = jnp.minimum(i * size, n - size)
    rows = jax.lax.dynamic_slice_in_dim(bank, start, size)
    products = _product(query, rows)
    if half_squares is not None:
      products -= jax.lax.dynamic_slice_in_dim(half_squares, start, size)
    value, index = _first_largest(products)
    better = value > best[0]
    return (
      jnp.where(better, value, best[0]),
      jnp.where(better, start + index, best[1]),
    )

  lowest = jnp.full_like(query[:, 0], -jnp.inf)
  best = lowest, jnp.zeros_like(lowest, jnp.int32)
  _, index = jax.lax.fori_loop(0, -(-n // size), update, best)
  return _distance(query, bank[index], metric), index


def _product(query, rows):
  # Exact: the choice and a small distance depend on it.
  axes = (((1,), (1,)), ((), ()))
  return jax.lax.dot_general(query, rows, axes, precision=kernels.EXACT)


def _first_largest(x):
  """Return the largest value of each row and its first index."""
  best = x.max(axis=1)
  # argmax by two plain reductions, which a CPU vectorizes.
  number = jnp.arange(x.shape[1], dtype=jnp.int32)
  at_best = jnp.where(x == best[:, None], number, number.size - 1)
  return best, at_best.min(axis=1)


def _distance(query, rows, metric):
  """Return the distance of each query to its own reference."""
  if metric == "cosine":
    cosine = jnp.sum(query * rows, axis=1)
    return jnp.maximum(1.0 - cosine, 0.0)  # Rounding may exceed 1.
  return jnp.sqrt(jnp.sum(jnp.square(query - rows), axis=1))
