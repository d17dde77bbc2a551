"""Rows of arrays as whole tiles, the unit of a TPU's memory.

Arrays whose last two dimensions are one tile are stored without padding and in
the order of their elements. Tiles of a row are therefore split over devices,
and put together again, without a change of layout.
"""

import collections
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LANES = 128
# Rows of a tile times bytes of an element: 8 x 128 of 4 bytes, 16 x 128 of 2.
_BYTES = 32


class Tiles:
  """Layout of a row: the leaves of equal item size, one after the other.

  Elements are unsigned integers of the leaves' size, so that no operation
  changes their bits.

  Args:
    row: tree of jax.ShapeDtypeStruct, one row.
    parts: the number of tiles is a multiple of this.

  Attributes:
    shapes: shape (tiles, tile height, 128) of each type of integers.
  """

  def __init__(self, row: Any, parts: int) -> None:
    self._leaves, self._tree = jax.tree.flatten(row)
    counts = collections.Counter()
    for leaf in self._leaves:
      counts[_bits(leaf)] += _count(leaf)
    self.shapes = {
      bits: (-(-count // parts) * parts, *_tile(bits))
      for bits, count in counts.items()
    }

  def pack(self, rows: Any) -> dict[str, jax.Array]:
    """Return the tiles (n, *shape) of a tree of rows (n, ...)."""
    found = {bits: [] for bits in self.shapes}
    for leaf, values in zip(self._leaves, jax.tree.leaves(rows)):
      bits = _bits(leaf)
      flat = values.reshape(len(values), -1).view(bits)
      padded = _pad(flat, _count(leaf) * math.prod(_tile(bits)))
      found[bits].append(
        padded.reshape(len(values), _count(leaf), *_tile(bits))
      )
    return {
      bits: _pad(jnp.concatenate(found[bits], axis=1), shape[0])
      for bits, shape in self.shapes.items()
    }

  def unpack(self, tiles: dict[str, jax.Array]) -> Any:
    """Return the tree of rows (n, ...) of tiles (n, *shape)."""
    first, rows = collections.Counter(), []
    for leaf in self._leaves:
      bits = _bits(leaf)
      last = first[bits] + _count(leaf)
      found = tiles[bits][:, first[bits] : last]
      flat = found.reshape(len(found), -1)[:, : leaf.size]
      rows.append(flat.view(leaf.dtype).reshape(-1, *leaf.shape))
      first[bits] = last
    return jax.tree.unflatten(self._tree, rows)


def _bits(leaf: Any) -> str:
  """Return the name of the unsigned integers of an array's item size."""
  return f"uint{8 * leaf.dtype.itemsize}"


def _tile(bits: str) -> tuple[int, int]:
  """Return the shape of one tile of a type."""
  return _BYTES // np.dtype(bits).itemsize, _LANES


def _count(leaf: Any) -> int:
  """Return the number of tiles of an array."""
  return -(-leaf.size // math.prod(_tile(_bits(leaf))))


def _pad(x: jax.Array, length: int) -> jax.Array:
  """Pad the second dimension of an array with zeros."""
  widths = [(0, 0)] * x.ndim
  widths[1] = (0, length - x.shape[1])
  return jnp.pad(x, widths)
