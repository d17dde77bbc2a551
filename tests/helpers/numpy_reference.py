"""NumPy and SciPy references of the methods' arithmetic, and a batch."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from zsad_jax.backbones.clip import blocks

SIDE = 32  # Of the images of `small_clip`.


def batch(number: int):
  """Draw random images; every second one has a defect."""
  rng = np.random.default_rng(0)
  mask = np.zeros((number, SIDE, SIDE), np.uint8)
  for i in range(1, number, 2):
    mask[i, 4 + i : 13 + i, 3:25] = 1
  return {
    "image": jnp.asarray(rng.normal(size=(number, SIDE, SIDE, 3)), "float32"),
    "mask": jnp.asarray(mask),
    "label": jnp.asarray(mask.max(axis=(1, 2)), "int32"),
    "has_mask": jnp.ones(number, bool),
    "weight": jnp.ones(number),
  }


def initial(method, backbone):
  """Return a method's initial parameters; this generator compiles fast."""
  rng = jax.random.key(0, impl="unsafe_rbg")
  return jax.jit(lambda rng: method.init(rng, backbone))(rng)[0]


def unit(x):
  x = np.asarray(x, np.float64)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
  e = np.exp(x - np.max(x, axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def to_map(values, side=SIDE):
  """Resize patch values (b, l) to (b, side, side): bilinear, half-pixel."""
  b, l = values.shape
  grid = round(l**0.5)
  position = (np.arange(side) + 0.5) * grid / side - 0.5
  grid_points = np.meshgrid(position, position, indexing="ij")
  resize = lambda x: ndimage.map_coordinates(
    x, grid_points, order=1, mode="nearest"
  )
  grids = np.asarray(values, np.float64).reshape(b, grid, grid)
  return np.stack([resize(x) for x in grids])


def cross_entropy(logits, label):
  """Return one value per item."""
  prob = softmax(np.asarray(logits, np.float64))
  return -np.log(prob[np.arange(len(label)), np.asarray(label)])


def segmentation(prob, mask):
  """Return focal, anomalous and normal Dice losses, each (b,)."""
  prob, mask = np.asarray(prob, np.float64), np.asarray(mask, np.float64)
  hot = np.clip(np.stack([1 - mask, mask], axis=-1), 1e-5, 1 - 1e-5)
  right = (hot * prob).sum(axis=-1) + 1e-5
  focal = (-((1 - right) ** 2) * np.log(right)).mean(axis=(1, 2))

  def dice(p, g):
    total = (p + g).sum(axis=(1, 2))
    return 1 - (2 * (p * g).sum(axis=(1, 2)) + 1) / (total + 1)

  return focal, dice(prob[..., 1], mask), dice(prob[..., 0], 1 - mask)


def text(backbone, embeds, end, deep, *, insert=False):
  """Encode prompts block by block, with deep tokens.

  Args:
    backbone: a Clip.
    embeds: (k, t, c), without positions.
    end: (k,).
    deep: 0-based block -> (m, c).
    insert: add rows at the first of these blocks; otherwise overwrite.
  """
  params, config = backbone.params["text"], backbone.config
  block = blocks.ResBlock(config.text_heads, "quick", causal=True)
  x = embeds + params["positional_embedding"][: embeds.shape[1]]
  end = np.asarray(end)
  for i in range(config.text_layers):
    if i in deep:
      m = len(deep[i])
      rows = [x[:, :1], jnp.tile(deep[i], (len(x), 1, 1)), x[:, 1 + m :]]
      if insert and i == min(deep):
        rows[2], end = x[:, 1:], end + m
      x = jnp.concatenate(rows, axis=1)
    x, _ = block.apply({"params": params[f"resblocks_{i}"]}, x)
  x = blocks.LayerNorm().apply({"params": params["ln_final"]}, x)
  return x[jnp.arange(len(x)), end] @ params["text_projection"]
