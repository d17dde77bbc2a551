"""Parity of the backbone: tokenizer, towers, position tables, weight files."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import model as clip
from zsad_jax.backbones.clip import sources, tokenizer
from zsad_jax.layers import resample
from zsad_jax.torch_io import file as torch_file

_ACTIVATIONS = {"quick": "quick", "gelu": "gelu_erf"}  # Stored name -> ours.
_DEFAULT_RESIZE = "bicubic"  # Of views that name none.


def quantities(golden, entry):
  """Yields (stored name, ours); a prefix "FILE: " tells other weights."""
  backbone = golden.backbone()
  ids = tokenizer.encode(entry.text("texts_utf8"), truncate=True)
  yield "token_ids", ids
  yield from _position_tables(backbone, entry)
  yield from _towers(backbone, entry, ids, set(_ACTIVATIONS))
  for config in golden.other_files("config.json"):
    if config.name != "config.json":
      continue  # Such as tokenizer_config.json.
    loaded = _hugging_face(config.parent)
    acts = {
      name
      for name, activation in _ACTIVATIONS.items()
      if activation == loaded.config.activation
    }
    for name, value in _towers(loaded, entry, ids, acts):
      yield f"{config.parent.name}: {name}", value
  yield from _torch_files(golden, entry)


def _hugging_face(directory):
  params, config, _ = sources.read(str(directory))
  return clip.from_params(params, config)


def _position_tables(backbone, entry):
  table = backbone.params["visual"]["positional_embedding"]
  for name in entry.expected():
    if found := re.fullmatch(r"pos_embed(?:_\w+)?/(\w+)", name):
      side = round((entry[name].shape[0] - 1) ** 0.5)
      yield (
        name,
        resample.resize_position_table(table, (side, side), method=found[1]),
      )


def _towers(backbone, entry, ids, acts):
  """Both towers, for each activation and view in the stored names."""
  parts = [name.split("/") for name in entry.expected()]
  for act in sorted(acts & {p[0] for p in parts}):
    yield from _text(backbone, ids, act, _ACTIVATIONS[act])
    for view in sorted({p[1] for p in parts if p[0] == act and len(p) == 3}):
      image, _, resize = view.partition("_")
      run = functools.partial(
        backbone.image,
        activation=_ACTIVATIONS[act],
        pos_resize=resize or _DEFAULT_RESIZE,
      )
      embed, out = jax.jit(run)(_image(entry, image))
      yield f"{act}/{view}/image_features", embed
      for layer in range(1, backbone.config.vision_layers + 1):
        tokens = out[f"block{layer:02d}"]
        yield f"{act}/{view}/tokens_{layer}", tokens
        projected = backbone.project(tokens, ln_post=True)
        yield f"{act}/{view}/tokens_proj_{layer}", projected


def _text(backbone, ids, act, activation):
  embed, out = backbone.text(
    backbone.embed_tokens(ids),
    tokenizer.end_positions(ids),
    activation=activation,
  )
  yield f"{act}/text_features", embed
  yield f"{act}/text_tokens_ln_final", out["tokens"]


def _image(entry, name):
  """Network input: stored as such, or as uint8."""
  if f"image/{name}" in entry:
    return jnp.asarray(np.moveaxis(entry[f"image/{name}"], 1, -1))
  return entry.images(f"image_u8/{name}")


def _torch_files(golden, entry):
  """`.pt` files: the group of arrays with token ids whose name they bear."""
  groups = {n.removesuffix("/token_ids") for n in entry if "/token_ids" in n}
  for path in golden.other_files(".pt"):
    state = torch_file.read(path)
    backbone = clip.from_params(*clip_convert.from_openai(state))
    for group in sorted(g for g in groups if g in path.name):
      ids = entry[f"{group}/token_ids"]
      text, _ = backbone.text(backbone.embed_tokens(ids), ids.argmax(axis=-1))
      image, _ = backbone.image(_image(entry, "native"))
      yield f"{path.name}: {group}/text_features", text
      yield f"{path.name}: {group}/image_features", image
