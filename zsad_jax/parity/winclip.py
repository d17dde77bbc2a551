"""Parity of WinCLIP's implementations: anomalib, mala-lab and caoyunkang."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.layers import text_ensemble, windows
from zsad_jax.methods import winclip
from zsad_jax.parity import golden as golden_lib
from zsad_jax.types import ANOMALOUS


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone = golden.backbone()
  if "scales" in entry.config:
    yield from _anomalib(backbone, entry)
  else:
    yield from _mala_lab(backbone, entry)
    yield from _caoyunkang(backbone, entry)


def tile_offsets(width: int, height: int) -> list[int]:
  """Return the left edges of mala-lab's square tiles of a wide image.

  The sides of tiles are the height, the stride is 80 % of it. Tiles that reach
  the right edge are flush with it, so that the last one can occur twice.

  Args:
    width: in pixels.
    height: in pixels.
  """
  starts = range(0, width, int(0.8 * height))
  return [min(start, width - height) for start in starts]


def _anomalib(backbone, entry):
  config, name = entry.config, entry.config["name"]
  method = winclip.Method(
    scales=tuple(config["scales"]),
    temperature=config["temperature"],
    activation=config["act"],
    pos_resize=config["pos_resize"],
  )
  yield "prompts_utf8", _prompts(method, name)
  means = text_ensemble.embed(
    backbone,
    [name],
    method.state_prompts,
    average=method.text_average,
    activation=method.activation,
  )
  yield "text_embeddings", means[0]
  sets = {n: entry.images(f"{n}_u8") for n in ("image", "reference")}
  rows, raw = _encode(method, backbone, sets)
  yield "image_embeddings", raw["embed"]
  yield "patch_embeddings", backbone.normalize_tokens(raw["tokens"])
  aux = method.prepare(backbone, [name])
  zero, few = _predictions(method, backbone, aux, *rows.values())
  count, side = len(sets["image"]), _side(zero["text"])
  for scale in method.scales:
    level = f"windows_{scale}"
    yield f"masks_{scale}", windows.patches(side, scale).T
    yield f"window_embeddings_{scale}", raw[level][:count]
    values = zero["probs"][level][..., ANOMALOUS]
    yield f"window_scores_{scale}", values
    values = windows.to_patches(values, scale, mean=method.window_mean)
    yield f"harmonic_{scale}", _grid(values)
  yield "zero_shot/patch_map", _grid(zero["text"])
  yield "few_shot/patch_map", _grid(few["visual"])
  for stored, found in (("zero_shot", zero), ("few_shot", few)):
    yield f"{stored}/map", found["anomaly_map"]
    yield f"{stored}/score", found["pred_score"]


def _mala_lab(backbone, entry):
  name, method = entry.config["name"], _variant("mala_lab", entry, "mala")
  aux = method.prepare(backbone, [name])
  yield "mala/sentences_utf8", _prompts(method, name)
  yield "mala/text_features", aux["text_units"][0]
  sets = {n: entry.images(f"{n}_u8") for n in ("test", "reference")}
  sets["reference"] = sets["reference"][: entry.config["k_mala"]]
  wide = {p: group for p, group in _WIDE.items() if f"{p}_u8" in entry}
  sets |= {prefix: _tiles(entry, prefix) for prefix in wide}
  rows, raw = _encode(method, backbone, sets)
  yield "mala/class_embedding", raw["embed"][0]
  yield "mala/patch_tokens", raw["tokens"][0]
  for scale in method.scales:
    yield f"mala/window_features_{scale}", raw[f"windows_{scale}"][0]
  zero, few = _predictions(
    method, backbone, aux, rows["test"], rows["reference"]
  )
  yield "mala/zero_shot_score", zero["pred_score"]
  for scale, values in zip(method.scales, few["distances"]):
    yield f"mala/window_scores_{scale}", values
    values = windows.to_patches(values, scale, mean=method.window_mean)
    yield f"mala/harmonic_{scale}", _grid(values)
  yield "mala/patch_scores", _grid(few["distances"][-1])
  yield "mala/map", _grid(few["visual"])
  yield "mala/few_shot_score", few["pred_score"]
  for prefix, group in wide.items():
    offsets = _offsets(entry, prefix)
    yield f"{group}/tile_offsets", np.array(offsets)
    yield f"{group}/n_tiles", np.array(len(offsets))
    query, bank = _by_tile(method, rows[prefix], len(offsets))
    found = _predict(method, backbone, aux, {**query, "memory_bank": bank})
    score = found["probs"]["class_unit"][:, ANOMALOUS]
    largest = found["visual"].max(axis=1)
    yield f"{group}/tile_zero_shot", score
    yield f"{group}/tile_map_max", largest
    yield f"{group}/tile_few_shot_score", 0.5 * (largest.mean() + score.mean())


# Stored images that are not square -> prefix of their results.
_WIDE = {"wide": "mala", "mala/repeat/wide": "mala/repeat"}


def _offsets(entry, prefix):
  height, width = entry[f"{prefix}_u8"].shape[2:]
  return tile_offsets(width, height)


def _tiles(entry, prefix):
  """Return the tiles of a query and its references, tile by tile."""
  images = entry.images(f"{prefix}_u8")
  starts, side = _offsets(entry, prefix), images.shape[1]
  return jnp.concatenate([images[:, :, x : x + side] for x in starts])


def _by_tile(method, features, tiles):
  """Return the features of each tile of the query, and its own memory bank."""
  split = lambda x: x.reshape(tiles, -1, *x.shape[1:])
  features = jax.tree.map(split, features)
  query, references = (
    jax.tree.map(lambda x, rows=rows: x[:, rows], features)
    for rows in (0, slice(1, None))
  )
  return query, method.build_memory_bank(references)


def _caoyunkang(backbone, entry):
  config, name = entry.config, entry.config["name"]
  method = dataclasses.replace(
    _variant("caoyunkang", entry, "cao"), score_side=config["out_size"]
  )
  aux = method.prepare(backbone, [name])
  yield "cao/sentences_utf8", _prompts(method, name)
  yield "cao/text_features", aux["text_units"][0]
  second = dataclasses.replace(method, text_average="unit")
  second = second.prepare(backbone, [name])["text_units"]
  yield "cao/text_features_v2", second[0]
  references = entry.images("reference_u8")[: config["k_cao"]]
  sets = {"test": entry.images("test_u8"), "reference": references}
  rows, _ = _encode(method, backbone, sets)
  units = [rows["test"][f"windows_{scale}"][0] for scale in method.scales]
  begins = np.cumsum([0, *map(len, units)])
  yield "cao/n_windows", np.array([begins[-1], *begins[:-1]])
  yield "cao/window_features_img0", np.concatenate(units)
  sides = rows["test"], rows["reference"]
  zero, few = _predictions(method, backbone, aux, *sides)
  yield "cao/text_map", _grid(zero["text"])
  yield "cao/visual_map", _grid(few["visual"])
  clean = dataclasses.replace(method, gallery_shift=False)
  distances = clean.distances(_with_bank(clean, *sides))
  yield "cao/visual_map_clean", _grid(clean.map_from_references(distances))
  for stored, found in (("zero_shot", zero), ("few_shot", few)):
    values = method.fuse(found["text"], found.get("visual"))
    yield f"cao/{stored}_map", method.to_map(values, config["out_size"])
    yield f"cao/{stored}_score", found["pred_score"]


def _variant(name, entry, stored):
  """Return the method of an implementation, with the stored settings."""
  config = entry.config
  settings: dict[str, Any] = dict(
    scales=tuple(config[f"scales_{stored}"]),
    temperature=1.0 / config["logit_scale"],
    activation=config["act"],
    pos_resize=config[f"pos_resize_{stored}"],
  )
  return winclip.Method(**{**winclip.VARIANTS[name], **settings})


def _encode(method, backbone, sets):
  """Encode several sets of images in one call: compilation dominates.

  Args:
    method: the method.
    backbone: the CLIP.
    sets: images by name.

  Returns:
    The features of each set, and of all images embeddings of any length.
  """
  features, raw = _features(method, backbone, jnp.concatenate([*sets.values()]))
  ends = np.cumsum([0, *map(len, sets.values())])
  rows = {
    name: jax.tree.map(lambda x, a=a, b=b: x[a:b], features)
    for name, a, b in zip(sets, ends, ends[1:])
  }
  return rows, raw


@functools.partial(jax.jit, static_argnums=0)
def _features(method, backbone, image):
  """Return the features of images of one class, and what they normalize."""
  batch = {"image": image, "class_id": jnp.zeros(len(image), jnp.int32)}
  embed, out = backbone.image(image, **method.image_hooks)
  tokens = out[f"block{backbone.vision_layers:02d}"][:, 1:]
  raw, side = {"embed": embed, "tokens": tokens}, _side(tokens[..., 0])
  for scale in method.scales:
    chosen = windows.patches(side, scale)
    found = backbone.windows(image, chosen, **method.image_hooks)
    raw[f"windows_{scale}"] = found
  return method.encode(backbone, batch), raw


def _predictions(method, backbone, aux, queries, references):
  """Predict without references and with a memory bank of all references."""
  with_bank = _with_bank(method, queries, references)
  return [_predict(method, backbone, aux, x) for x in (queries, with_bank)]


def _with_bank(method, queries, references):
  """Return the features of queries with the memory bank of all references."""
  bank = method.build_memory_bank(jax.tree.map(lambda x: x[None], references))
  return {**queries, "memory_bank": bank}


@functools.partial(jax.jit, static_argnums=0)
def _predict(method, backbone, aux, features):
  """Return intermediate values of a prediction and its result."""
  probs = method.probabilities(aux, features)
  found = {"probs": probs, "text": method.map_from_text(probs)}
  if "memory_bank" in features:
    found["distances"] = method.distances(features)
    found["visual"] = method.map_from_references(found["distances"])
  return found | method.predict({}, {}, backbone, aux, features)


def _prompts(method, name):
  return json.dumps(method.state_prompts(name)).encode()


def _side(values):
  return round(values.shape[1] ** 0.5)


def _grid(values):
  return values.reshape(len(values), _side(values), -1)
