"""Slow comparison of SAM's image encoder with transformers on torch."""

import functools

import jax
import numpy as np
import pytest

from zsad_jax.backbones.sam import config as sam_config
from zsad_jax.backbones.sam import convert, model

TINY = sam_config.SamConfig(48, 4, 3, (2, 4), 48, 4, 5, 16)
BASE = sam_config.MODELS["sam-vit-base"]


def transformers_encoder(sizes, side, parameters):
  """Return SamVisionEncoder for images of `side` pixels.

  Its tables of absolute positions are resized by torch.
  """
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from transformers.models.sam import modeling_sam

  grid = side // sizes.patch_size
  settings = transformers.SamVisionConfig(
    hidden_size=sizes.width,
    output_channels=sizes.neck_width,
    num_hidden_layers=sizes.layers,
    num_attention_heads=sizes.heads,
    image_size=side,
    patch_size=sizes.patch_size,
    window_size=sizes.window,
    global_attn_indexes=[i - 1 for i in sizes.global_layers],
    mlp_dim=4 * sizes.width,
    attn_implementation="eager",
  )
  encoder = modeling_sam.SamVisionEncoder(settings).eval()
  state = {
    name.removeprefix("vision_encoder."): torch.from_numpy(np.array(x))
    for name, x in parameters.items()
  }
  table = state["pos_embed"].permute(0, 3, 1, 2)
  table = torch.nn.functional.interpolate(table, (grid, grid), mode="bicubic")
  state["pos_embed"] = table.permute(0, 2, 3, 1)
  for i, layer in enumerate(encoder.layers):
    for name in ("rel_pos_h", "rel_pos_w"):
      vectors = torch.nn.Parameter(state[f"layers.{i}.attn.{name}"])
      setattr(layer.attn, name, vectors)
  encoder.load_state_dict(state)
  return encoder


def random_state(sizes, seed):
  """Return random weights in the names of transformers."""
  rng, found = np.random.default_rng(seed), {}
  for name, x in names_of_torch(sizes).items():
    values = rng.standard_normal(x, np.float32)
    if "norm" in name and name.endswith("weight"):
      values = 1 + 0.1 * values
    elif name.endswith("bias") or "pos" in name:
      values *= 0.1
    else:
      values /= np.sqrt(np.prod(x[1:]))
    found[name] = values
  return found


def names_of_torch(sizes):
  """Return the shapes of all weights by the names of transformers."""
  c, p, n = sizes.width, sizes.patch_size, sizes.neck_width
  shapes = {
    "patch_embed.projection.weight": (c, 3, p, p),
    "patch_embed.projection.bias": (c,),
    "pos_embed": (1, sizes.grid, sizes.grid, c),
    "neck.conv1.weight": (n, c, 1, 1),
    "neck.conv2.weight": (n, n, 3, 3),
  }
  norms = {"neck.layer_norm1": n, "neck.layer_norm2": n}
  for i in range(sizes.layers):
    side = sizes.grid if i + 1 in sizes.global_layers else sizes.window
    for axis in "hw":
      table = 2 * side - 1, sizes.head_width
      shapes[f"layers.{i}.attn.rel_pos_{axis}"] = table
    for name, outputs, inputs in (
      ("attn.qkv", 3 * c, c),
      ("attn.proj", c, c),
      ("mlp.lin1", 4 * c, c),
      ("mlp.lin2", c, 4 * c),
    ):
      shapes[f"layers.{i}.{name}.weight"] = (outputs, inputs)
      shapes[f"layers.{i}.{name}.bias"] = (outputs,)
    norms |= {f"layers.{i}.layer_norm{k}": c for k in (1, 2)}
  for name, width in norms.items():
    shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
  return {f"vision_encoder.{name}": x for name, x in shapes.items()}


def largest_difference(sizes, side, seed):
  """Return the largest relative difference of all blocks and the neck."""
  torch = pytest.importorskip("torch")
  state = random_state(sizes, seed)
  sam = model.from_params(*convert.from_state(state))
  assert sam.config == sizes
  rng = np.random.default_rng(seed)
  image = rng.standard_normal((1, side, side, 3), np.float32)
  hidden = []
  keep = lambda module, given, out: hidden.append(
    (out[0] if isinstance(out, tuple) else out).numpy()
  )
  encoder = transformers_encoder(sizes, side, state)
  for layer in encoder.layers:
    layer.register_forward_hook(keep)
  with torch.no_grad():
    found = encoder(torch.from_numpy(image.transpose(0, 3, 1, 2)))
  neck = found.last_hidden_state.numpy().transpose(0, 2, 3, 1)
  del encoder
  run = jax.jit(functools.partial(model.Sam.image))
  _, out = run(sam, image)
  worst = 0.0
  for i, expected in enumerate([*hidden, neck]):
    name = f"block{i + 1:02d}"
    ours = out["neck"] if i == sizes.layers else out[name][:, 1:]
    difference = np.abs(np.asarray(ours).reshape(expected.shape) - expected)
    worst = max(worst, difference.max() / np.abs(expected).max())
  return worst


@pytest.mark.slow
@pytest.mark.parametrize("side", [16, 48, 60, 112])
@pytest.mark.parametrize("seed", [0, 1])
def test_tiny_encoders_agree(side, seed):
  assert largest_difference(TINY, side, seed) < 2e-5


@pytest.mark.slow
def test_vit_b_agrees_at_1024_pixels():
  """Takes some minutes and 4 GB."""
  assert largest_difference(BASE, 1024, 0) < 2e-5
