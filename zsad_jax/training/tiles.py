"""Rows of arrays as whole tiles, the unit of a TPU's memory.

A TPU stores the last two dimensions of an array as padded tiles, 8 x 128 items
of 4 bytes or as many bytes of smaller items. Here the tiles are a dimension,
which can be split over devices: cutting an array into them and putting it
together again moves no item inside a tile.
"""

import collections
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_LANES = 128
_BYTES = 32  # Height of a tile times the size of an item.


class Tiles:
  """Layout of a row: the tiles of all leaves of equal item size.

  Items are unsigned integers of the leaves' size, so that no operation changes
  their bits.

  Args:
    row: tree of jax.ShapeDtypeStruct, one row.
    parts: the number of tiles is a multiple of this.

  Attributes:
    shapes: shape (tiles, height, 128) by the name of the type of integers.
  """

  def __init__(self, row: Any, parts: int) -> None:
    leaves, self._tree = jax.tree.flatten(row)
    self._leaves = [_Leaf(x.shape, np.dtype(x.dtype)) for x in leaves]
    counts = collections.Counter()
    for leaf in self._leaves:
      counts[leaf.bits] += leaf.count
    self.shapes = {
      bits: (-(-count // parts) * parts, *_tile(bits))
      for bits, count in counts.items()
    }

  def pack(self, rows: Any) -> dict[str, jax.Array]:
    """Return the tiles (n, *shape) of a tree of rows (n, ...)."""
    found = {bits: [] for bits in self.shapes}
    for leaf, values in zip(self._leaves, jax.tree.leaves(rows)):
      found[leaf.bits].append(jax.vmap(leaf.pack)(values))
    packed = {}
    for bits, shape in self.shapes.items():
      joined = jnp.concatenate(found[bits], axis=1)
      fill = shape[0] - joined.shape[1]
      packed[bits] = jnp.pad(joined, ((0, 0), (0, fill), (0, 0), (0, 0)))
    return packed

  def unpack(self, tiles: dict[str, jax.Array]) -> Any:
    """Return the tree of rows (n, ...) of tiles (n, *shape)."""
    first, rows = collections.Counter(), []
    for leaf in self._leaves:
      last = first[leaf.bits] + leaf.count
      found = tiles[leaf.bits][:, first[leaf.bits] : last]
      rows.append(jax.vmap(leaf.unpack)(found))
      first[leaf.bits] = last
    return jax.tree.unflatten(self._tree, rows)


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """Tiles of one array.

  Its two longest dimensions, of a vector its items in lines of 128, become the
  two of the tiles.

  Attributes:
    shape: of the array.
    dtype: of the array.
  """

  shape: tuple[int, ...]
  dtype: np.dtype

  @property
  def bits(self) -> str:
    """Name of the unsigned integers of the same size."""
    return f"uint{8 * self.dtype.itemsize}"

  @property
  def count(self) -> int:
    """Number of tiles."""
    *outer, rows, columns = self._matrices
    return math.prod(outer) * rows * columns

  @property
  def _order(self) -> list[int]:
    """Dimensions, the longest two last."""
    by_length = sorted(range(len(self.shape)), key=lambda i: self.shape[i])
    longest = sorted(by_length[-2:])
    return [i for i in range(len(self.shape)) if i not in longest] + longest

  @property
  def _planes(self) -> tuple[int, ...]:
    """Shape in which the last two dimensions are to be cut."""
    if len(self.shape) < 2:
      return -(-math.prod(self.shape) // _LANES), _LANES
    return tuple(self.shape[i] for i in self._order)

  @property
  def _matrices(self) -> tuple[int, ...]:
    """Shape of the tiles: (..., rows, columns)."""
    *outer, rows, columns = self._planes
    return *outer, -(-rows // _tile(self.bits)[0]), -(-columns // _LANES)

  def pack(self, x: jax.Array) -> jax.Array:
    """Return the tiles (count, height, 128) of an array."""
    x = x.view(self.bits)
    if x.ndim < 2:
      fill = math.prod(self._planes) - x.size
      x = jnp.pad(x.reshape(-1), (0, fill)).reshape(self._planes)
    else:
      x = x.transpose(self._order)
    height, _ = _tile(self.bits)
    *outer, rows, columns = self._matrices
    fill = rows * height - x.shape[-2], columns * _LANES - x.shape[-1]
    x = jnp.pad(x, [(0, 0)] * len(outer) + [(0, n) for n in fill])
    x = x.reshape(*outer, rows, height, columns, _LANES)
    return x.swapaxes(-2, -3).reshape(-1, height, _LANES)

  def unpack(self, tiles: jax.Array) -> jax.Array:
    """Return the array of its tiles (count, height, 128)."""
    height, _ = _tile(self.bits)
    *outer, rows, columns = self._matrices
    x = tiles.reshape(*self._matrices, height, _LANES).swapaxes(-2, -3)
    x = x.reshape(*outer, rows * height, columns * _LANES)
    x = x[..., : self._planes[-2], : self._planes[-1]]
    if len(self.shape) < 2:
      x = x.reshape(-1)[: math.prod(self.shape)].reshape(self.shape)
    else:
      x = x.transpose(np.argsort(self._order))
    return x.view(self.dtype)


def _tile(bits: str) -> tuple[int, int]:
  """Return the shape of one tile of a type."""
  return _BYTES // np.dtype(bits).itemsize, _LANES
