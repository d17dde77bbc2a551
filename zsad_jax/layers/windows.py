"""Windows of patches: their features, and values of patches from windows.

WinCLIP (Jeong et al., CVPR 2023, arXiv:2303.14814) encodes every square of
s x s patches of an image by itself. A window is named by its top left patch;
windows, and the patches in one, are in row-major order.
"""

import functools
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from zsad_jax.types import ImageBackbone

Mean = Literal["harmonic", "arithmetic"]


@runtime_checkable
class WindowBackbone(ImageBackbone, Protocol):
  """Image encoder that can encode parts of an image alone.

  Not every image encoder can: a convolution, or attention in fixed areas,
  needs the whole image.
  """

  def windows(
    self, image: Any, patches: Int[np.ndarray, "n k"], **hooks: Any
  ) -> Any:
    """Encode n selections of k patches each: (b, h, w, 3) to (b, n, d)."""
    ...

  def normalize_tokens(self, tokens: Any) -> Any:
    """Normalize tokens as before their projection."""
    ...


def require(backbone: ImageBackbone) -> WindowBackbone:
  """Return the backbone as an encoder of windows.

  Raises:
    ValueError: it is none.
  """
  if not isinstance(backbone, WindowBackbone):
    raise ValueError(
      "This configuration encodes windows of patches, which the model of "
      "config.backbone cannot: choose a backbone with a vision transformer, "
      "such as ViT-B-16-plus-240."
    )
  return backbone


@functools.cache
def patches(side: int, size: int) -> Int[np.ndarray, "n k"]:
  """Return the patches of each window, numbered in row-major order.

  Args:
    side: patches per side of the image.
    size: s, patches per side of a window.

  Raises:
    ValueError: a window is larger than the image.
  """
  if size > side:
    raise ValueError(
      f"config.method.scales: a window of {size} x {size} patches does not "
      f"fit into an image of {side} x {side}."
    )
  number = np.arange(side**2, dtype=np.int32).reshape(side, side)
  shape = (size, size)
  found = np.lib.stride_tricks.sliding_window_view(number, shape)
  return found.reshape(-1, size**2)


def side_of(count: int, size: int) -> int:
  """Return the patches per side of an image with `count` windows."""
  return round(count**0.5) + size - 1


def to_patches(
  values: Float[Array, "b n"], size: int, *, mean: Mean
) -> Float[Array, "b l"]:
  """Average, for each patch, the values of the windows that contain it.

  Args:
    values: of each window, at least 0.
    size: patches per side of a window.
    mean: "harmonic", n / sum(1 / x), 0 where a value is 0; or "arithmetic".

  Returns:
    The values of the patches.
  """
  windows = side_of(values.shape[1], size) - size + 1
  grid = values.reshape(-1, windows, windows)
  count = _box_sum(jnp.ones_like(grid[:1]), size)
  if mean == "harmonic":
    means = count / _box_sum(1.0 / grid, size)
  else:
    means = _box_sum(grid, size) / count
  return means.reshape(values.shape[0], -1)


def _box_sum(x: Float[Array, "b h w"], size: int):
  """Sum, for each patch, over the windows that contain it."""
  # Not a product with a matrix of ones and zeros: 1 / x may be infinite.
  pad = (size - 1, size - 1)
  return jax.lax.reduce_window(
    x, 0.0, jax.lax.add, (1, size, size), (1, 1, 1), ((0, 0), pad, pad)
  )
