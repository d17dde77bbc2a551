"""Views of an image: rotated, shifted, mirrored and grey copies; its tiles.

AnoVL (Deng et al., 2023, arXiv:2308.15939) averages its image score over them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_ANGLES = np.pi / 16 * np.array([-4, -3, -2, -1, 1, 2, 3, 4])
_SHIFTS = np.concatenate(
  [size * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) for size in (0.2, 0.1)]
)
_GREY = (0.299, 0.587, 0.114)  # Weights of red, green and blue.
NUM_VIEWS = 1 + len(_ANGLES) + len(_SHIFTS) + 5


def anovl(image: Float[Array, "b s s 3"]) -> Float[Array, "b v s s 3"]:
  """Return AnoVL's 22 views of square images.

  Args:
    image: normalized images.

  Returns:
    The image; rotated by multiples of 11.25 degrees up to 45 degrees; shifted
    by 20 % and by 10 % of half its size along the diagonals; mirrored; grey;
    and rotated counter-clockwise by 90, 180 and 270 degrees.
  """
  warped = jax.vmap(warp, (None, 0), 1)(image, jnp.asarray(_MATRICES, "f"))
  grey = jnp.matmul(image, jnp.asarray(_GREY, image.dtype))
  others = [
    jnp.flip(image, axis=2),
    jnp.broadcast_to(grey[..., None], image.shape),
    *(jnp.rot90(image, turns, axes=(1, 2)) for turns in (1, 2, 3)),
  ]
  parts = [image[:, None], warped, jnp.stack(others, axis=1)]
  return jnp.concatenate(parts, axis=1)


def warp(
  image: Float[Array, "b h w c"], matrix: Float[Array, "2 3"]
) -> Float[Array, "b h w c"]:
  """Resample images at affine coordinates, bilinearly.

  Args:
    image: images.
    matrix: maps the output's (x, y, 1) to the source's (x, y), of which -1 and
      1 are the centres of the outermost pixels. Sources outside are reflected
      there.

  Returns:
    The warped images.
  """
  h, w = image.shape[1:3]
  y, x = jnp.meshgrid(
    jnp.linspace(-1.0, 1.0, h), jnp.linspace(-1.0, 1.0, w), indexing="ij"
  )
  source = jnp.einsum(
    "ij,jhw->ihw",
    matrix,
    jnp.stack([x, y, jnp.ones_like(x)]),
    precision=jax.lax.Precision.HIGHEST,
  )
  left, right, across = _between(source[0], w)
  upper, lower, down = _between(source[1], h)
  across, down = across[..., None], down[..., None]
  row = lambda y: image[:, y, left] * (1 - across) + image[:, y, right] * across
  return row(upper) * (1 - down) + row(lower) * down


def merge_tiles(
  tiles: Float[Array, "t h s c"], width: int
) -> Float[Array, "h w c"]:
  """Merge the tiles of an image; where two overlap, they are averaged.

  Args:
    tiles: one, or those flush with the left and with the right edge.
    width: of the image in pixels, at most that of two tiles.

  Returns:
    The merged tiles.
  """
  starts = (0, width - tiles.shape[2])[: len(tiles)]

  def place(x, start):
    after = width - x.shape[1] - start
    return jnp.pad(x, ((0, 0), (start, after), (0, 0)))

  def total(tiles):
    placed = [place(x, start) for x, start in zip(tiles, starts)]
    return sum(placed[1:], placed[0])

  return total(tiles) / total(jnp.ones_like(tiles))


def _between(source, size):
  """Return the pixels on both sides of coordinates, and the second's weight."""
  last = size - 1
  at = jnp.abs(0.5 * last * (source + 1.0)) % max(2 * last, 1)
  at = jnp.minimum(at, 2 * last - at)
  first = jnp.floor(at).astype(jnp.int32)
  return first, jnp.minimum(first + 1, last), at - first


def _affine(angle=0.0, shift=(0.0, 0.0)):
  cos, sin = np.cos(angle), np.sin(angle)
  return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


_MATRICES = np.stack(
  [_affine(angle=a) for a in _ANGLES] + [_affine(shift=s) for s in _SHIFTS]
)
