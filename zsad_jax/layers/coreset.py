"""Greedy coreset of a memory bank: few vectors that are close to all.

Farthest-point traversal (k-center): the next vector is the one that is
farthest from the chosen ones. The first one is the first vector; the largest
distance to the coreset is at most twice the least possible, whichever vector
is first (Gonzalez, Theoretical Computer Science 1985). PatchCore (Roth et al.,
CVPR 2022) keeps 10 % or 1 % of its memory so, and may measure distances after a
random projection.

Each step reads all vectors once. Vectors on the host or on one device give the
same choice for any number of devices, and so do vectors that are sharded over
devices unless distances are equal up to rounding; with a projection, gather
sharded vectors first.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.layers import kernels

_ROWS = 2048  # Vectors of a block on a CPU.


@dataclasses.dataclass(frozen=True)
class Coreset:
  """Share of a memory bank that is kept.

  Attributes:
    fraction: of the vectors, in (0, 1]; the number is rounded down, at least 1.
    width: of the random projection for distances; None for the vectors
      themselves.
    seed: of the projection.
  """

  fraction: float
  width: int | None = None
  seed: int = 0

  def count(self, number: int) -> int:
    """Return the number of vectors that are kept of `number`."""
    return max(1, int(self.fraction * number))

  def reduce(self, memory_bank: Any) -> Any:
    """Reduce every set of vectors of a memory bank; runs inside jit.

    Args:
      memory_bank: every leaf is (n, shots, ..., l, d): n sets, or n for each
        index between, of shots * l vectors.

    Returns:
      The same tree, leaves (n, 1, ..., count, d), in the order of the choice.
    """
    return jax.tree.map(self._reduce, memory_bank)

  def _reduce(self, leaf):
    n, shots, *between, l, d = leaf.shape
    sets = jnp.moveaxis(leaf, 1, -3).reshape(-1, shots * l, d)
    number = self.count(shots * l)

    def of_set(x):
      return x[select(x, number, width=self.width, seed=self.seed)]

    return jax.lax.map(of_set, sets).reshape(n, 1, *between, number, d)


def select(
  vectors: Float[Array, "n d"],
  count: int,
  *,
  width: int | None = None,
  seed: int = 0,
) -> Int[Array, " {count}"]:
  """Choose a greedy coreset (k-center).

  Args:
    vectors: the vectors.
    count: number of vectors to choose, 1 to n.
    width: see `Coreset`.
    seed: see `Coreset`.

  Returns:
    Different indices in the order of the choice, int32; the first of several
    vectors that are equally far.

  Raises:
    ValueError: `count` is out of range.
  """
  n = vectors.shape[0]
  if not 1 <= count <= n:
    raise ValueError(f"A coreset of {n} vectors has 1 to {n}, got {count}.")
  if width is not None:
    matrix = projection(vectors.shape[1], width, seed)
    vectors = jnp.matmul(vectors, matrix, precision=kernels.EXACT)

  def choose(i, state):
    chosen, distance = state
    # The first choice is the first vector: all distances are infinite.
    index = jnp.argmax(distance).astype(jnp.int32)
    square = _squares(vectors, vectors[index])
    # Below every distance: a vector is chosen once.
    distance = jnp.minimum(distance, square).at[index].set(-1.0)
    return chosen.at[i].set(index), distance

  start = jnp.zeros(count, jnp.int32), jnp.full(n, jnp.inf)
  return jax.lax.fori_loop(0, count, choose, start)[0]


def _squares(vectors, centre):
  """Return the squared distance of each vector to one of them."""
  if kernels.backend() != "cpu":
    return jnp.sum(jnp.square(vectors - centre), axis=1)
  # A CPU sums rows slowly, unless by a product. Blocks stay in its cache; the
  # last one starts earlier, so that all have one shape.
  n, d = vectors.shape
  rows = min(_ROWS, n)

  def fill(i, squares):
    start = jnp.minimum(i * rows, n - rows)
    block = jax.lax.dynamic_slice_in_dim(vectors, start, rows)
    found = jnp.matmul(
      jnp.square(block - centre), jnp.ones(d), precision=kernels.EXACT
    )
    return jax.lax.dynamic_update_slice_in_dim(squares, found, start, 0)

  return jax.lax.fori_loop(0, -(-n // rows), fill, jnp.zeros(n))


def projection(
  d: int, width: int, seed: int
) -> Float[np.ndarray, "{d} {width}"]:
  """Return a Gaussian matrix that keeps distances on average.

  References:
    Johnson and Lindenstrauss, Contemporary Mathematics 1984.
  """
  rng = np.random.default_rng(seed)
  return rng.standard_normal((d, width), np.float32) / np.float32(
    math.sqrt(width)
  )


def from_settings(
  *, coreset: float | None = None, coreset_width: int | None = None, **_: Any
) -> Coreset | None:
  """Return the coreset of the fields of `config.memory`.

  Runs of older versions have no such fields.
  """
  return None if coreset is None else Coreset(coreset, coreset_width)
