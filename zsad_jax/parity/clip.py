"""Parity of CLIP: tokenizer, towers, position tables and weight files.

Weight files next to the arrays, Hugging Face directories and `.pt` files, are
compared with the group of arrays whose name is part of theirs. A group is a
prefix of array names that has token ids of its own, such as "micro" of
"micro/token_ids". A directory without such a name holds the main tiny model.
"""

import functools
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import model as clip
from zsad_jax.backbones.clip import sources, tokenizer
from zsad_jax.layers import resample
from zsad_jax.parity import golden as golden_lib
from zsad_jax.torch_io import file as torch_file

_ACTIVATIONS = {"quick": "quick", "gelu": "gelu_erf"}  # Stored name -> ours.
_DEFAULT_RESIZE = "bicubic"  # For views that name none.
_GROUP_VIEW = "native"  # Image of the groups, whose names have no view.
_TOKEN_IDS = "/token_ids"


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value); "FILE: " in front names other weights."""
  backbone = golden.backbone()
  ids = tokenizer.encode(entry.text("texts_utf8"), truncate=True)
  yield "token_ids", ids
  yield from _position_tables(backbone, entry)
  yield from _model(backbone, entry, ids, set(_ACTIVATIONS))
  for config in golden.other_files("config.json"):
    if config.name != "config.json":
      continue  # Such as tokenizer_config.json.
    directory = config.parent
    loaded = _hugging_face(directory)
    own = _groups_of(directory, golden, entry)
    found = _all_groups(loaded, entry, own)
    if not own:
      acts = {
        n for n, a in _ACTIVATIONS.items() if a == loaded.config.activation
      }
      found = _model(loaded, entry, ids, acts)
    for name, value in found:
      yield f"{directory.name}: {name}", value
  for path in golden.other_files(".pt"):
    if own := _groups_of(path, golden, entry):
      state = torch_file.read(path)
      loaded = clip.from_params(*clip_convert.from_openai(state))
      for name, value in _all_groups(loaded, entry, own):
        yield f"{path.name}: {name}", value


def _hugging_face(directory: pathlib.Path) -> clip.Clip:
  """Load a transformers model."""
  params, config, _ = sources.read(str(directory))
  return clip.from_params(params, config)


def _groups_of(path, golden, entry):
  """Return the groups of arrays whose names are part of a path.

  Of two names of which one contains the other, such as "micro" and "micro2",
  only the longer one counts.
  """
  name = str(path.relative_to(golden.folder))
  groups = {n.removesuffix(_TOKEN_IDS) for n in entry if n.endswith(_TOKEN_IDS)}
  found = [group for group in groups if group in name]
  inside = lambda group: any(group in x for x in found if x != group)
  return sorted(group for group in found if not inside(group))


def _all_groups(backbone, entry, groups):
  for group in groups:
    yield from _group(backbone, entry, group)


def _group(backbone, entry, group):
  """Yield the outputs of both towers under the names of a group."""
  ids = entry[f"{group}{_TOKEN_IDS}"]
  yield from _text_tower(backbone, ids, ids.argmax(axis=-1), group, None)
  embed, out = backbone.image(_image(entry, _GROUP_VIEW))
  yield from _image_tower(backbone, embed, out, group)


def _position_tables(backbone, entry):
  """Yield resized position tables; the stored name has the method."""
  table = backbone.params["visual"]["positional_embedding"]
  for name in entry.expected():
    if found := re.fullmatch(r"pos_embed(?:_\w+)?/(\w+)", name):
      side = round((entry[name].shape[0] - 1) ** 0.5)
      yield (
        name,
        resample.resize_position_table(table, (side, side), method=found[1]),
      )


def _model(backbone, entry, ids, acts):
  """Yield both towers, for each activation and view in the stored names."""
  parts = [name.split("/") for name in entry.expected()]
  end = tokenizer.end_positions(ids)
  for act in sorted(acts & {p[0] for p in parts}):
    yield from _text_tower(backbone, ids, end, act, _ACTIVATIONS[act])
    for view in sorted({p[1] for p in parts if p[0] == act and len(p) == 3}):
      image, _, resize = view.partition("_")
      run = functools.partial(
        backbone.image,
        activation=_ACTIVATIONS[act],
        pos_resize=resize or _DEFAULT_RESIZE,
      )
      embed, out = jax.jit(run)(_image(entry, image))
      yield from _image_tower(backbone, embed, out, f"{act}/{view}")


def _image_tower(backbone, embed, out, prefix):
  yield f"{prefix}/image_features", embed
  for layer in range(1, backbone.config.vision_layers + 1):
    tokens = out[f"block{layer:02d}"]
    yield f"{prefix}/tokens_{layer}", tokens
    projected = backbone.project(tokens, ln_post=True)
    yield f"{prefix}/tokens_proj_{layer}", projected


def _text_tower(backbone, ids, end, prefix, activation):
  embed, out = backbone.text(
    backbone.embed_tokens(ids), end, activation=activation
  )
  yield f"{prefix}/text_features", embed
  yield f"{prefix}/text_tokens_ln_final", out["tokens"]


def _image(entry, name):
  """Return a network input, stored as such or as uint8."""
  if f"image/{name}" in entry:
    return jnp.asarray(np.moveaxis(entry[f"image/{name}"], 1, -1))
  return entry.images(f"image_u8/{name}")
