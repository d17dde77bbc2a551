"""Parity of AnoVL, of both scripts of its authors.

The random numbers of the adaptation are stored; with them, `Method.adapt`
repeats the authors' steps, for the second image with the optimizer's state of
the first one and without it.
"""

import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax.layers import similarity, views
from zsad_jax.methods import anovl
from zsad_jax.parity import golden as golden_lib
from zsad_jax.types import ANOMALOUS


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  config, backbone = entry.config, golden.backbone()
  first, second = _method(config), _method(config, "visa")
  names = [config[key] for key in ("object", "texture", "visa_object")]
  for name in names[:2]:
    prompts = first.state_prompts(name)
    yield f"sentences/{name}_utf8", json.dumps(prompts).encode()
  aux = first.prepare(backbone, names)
  for name, text in zip(names, aux["text_units"]):
    yield f"text_features/{name}", text.T
  yield f"prompt_bank/{names[0]}", aux["prompt_units"][0]
  images = entry.images("image_u8")
  features = _encode(first, backbone, images)
  yield from _image_side(first, images, features, aux["text_units"][0])
  given = (aux["text_units"][0], aux["prompt_units"][0])
  size = images.shape[1:3]
  yield from _first_script(first, entry, features["tokens"], given, size)
  yield from _stored_text(first, entry, features["tokens"], size)
  yield from _second_script(second, entry, backbone, aux["text_units"][2])


def _method(config, variant=""):
  """Return the method of a script, with the stored settings."""
  settings = dict(
    steps=config["steps"],
    learning_rate=config["traj"]["lr"],
    noise_std=config["noise_std"],
    mix=config["mix"],
    vv_from=config["dual_from"],
    activation=config["act"],
    pos_resize=config["pos_resize"],
  )
  return anovl.Method(**{**settings, **anovl.VARIANTS.get(variant, {})})


@functools.partial(jax.jit, static_argnums=0)
def _encode(method, backbone, image):
  batch = {"image": image, "class_id": jnp.zeros(len(image), jnp.int32)}
  return method.encode(backbone, batch)


def _image_side(method, images, features, text):
  """Yield views, tokens, and what depends on no adapter."""
  made = jax.jit(views.anovl)(images[:1])[0]
  yield "img0/views", jnp.moveaxis(made, -1, 1)[..., ::7, ::7]
  units = features["view_units"]
  probs = similarity.state_prob(units, text, 1.0)[..., ANOMALOUS]
  for i, found in enumerate(probs):
    yield f"img{i}/view_class_features", units[i]
    yield f"img{i}/view_probs", found
    yield f"img{i}/score", found.mean()
  tokens = features["tokens"][:1]
  yield "img0/patch_tokens", tokens[0]
  size = images.shape[1:3]
  direct = method.to_map(similarity.unit(tokens), text, size)
  yield "img0/map_no_adapter", direct


def _first_script(method, entry, tokens, given, size):
  """Yield the adaptation with the prompts of the class."""
  run = functools.partial(_adapt, method, given=given, size=size)
  found = run(*_stored(entry, "img0"), tokens=tokens[:1])
  side = round(tokens.shape[1] ** 0.5)
  yield "img0/step1_probs", found["probs"].reshape(2, side, side, 2)
  yield "img0/losses", found["losses"]
  yield "img0/map", found["map"]
  yield "img0/adapted_tokens", found["units"][0]
  yield from _torch("img0/grad", found["grads"])
  stored = _stored(entry, "img1")
  kept = run(*stored, tokens=tokens[1:2], state=found["state"])
  fresh = run(*stored, tokens=tokens[1:2])
  for suffix, found in (("", kept), ("_fresh", fresh)):
    yield f"img1/losses{suffix}", found["losses"]
    yield f"img1/map{suffix}", found["map"]


def _stored_text(method, entry, tokens, size):
  """Yield the adaptation with stored text, the optimizer's state kept."""
  given = _float(entry["tta/text_features"].T), _float(entry["tta/prompt_bank"])
  state = None
  for i in range(2):
    stored = _stored(entry, f"tta/img{i}")
    found = _adapt(method, *stored, tokens[i : i + 1], given, size, state=state)
    state = found["state"]
    yield from _results(f"tta/img{i}", found)


def _second_script(method, entry, backbone, text):
  """Yield the adaptation of the script for VisA, to two tiles."""
  wide = entry.images("wide_u8")
  height, width = wide.shape[1:3]
  tiles = jnp.concatenate([wide[:, :, :height], wide[:, :, width - height :]])
  features = _encode(method, backbone, tiles)
  stored = _float(entry["visa_tta/text_features"].T)
  for group, states in (("visa", text), ("visa_tta", stored)):
    probs = jax.nn.softmax(features["view_units"][:, 0] @ states.T)
    yield f"{group}/score", probs[:, ANOMALOUS].mean()
    given = states, None
    found = _adapt(
      method,
      *_stored(entry, group),
      tokens=features["tokens"],
      given=given,
      size=(height, width),
    )
    yield from _results(group, found)


def _results(group, found):
  yield f"{group}/losses", found["losses"]
  yield f"{group}/map", found["map"]
  yield from _torch(f"{group}/grad", found["grads"])
  yield from _torch(f"{group}/delta", found["delta"])


def _torch(group, tree):
  """Yield a tree like the adapter under the stored names."""
  yield f"{group}/ad.weight", tree["kernel"].T
  yield f"{group}/ad.bias", tree["bias"]


def _float(x):
  return jnp.asarray(x, jnp.float32)


def _stored(entry, group):
  """Return the stored adapter and noise of a group."""
  adapter = {
    "kernel": _float(entry[f"param/{group}/ad.weight"].T),
    "bias": _float(entry[f"param/{group}/ad.bias"]),
  }
  noise = _float(entry[f"noise/{group}"])
  return adapter, noise.reshape(*noise.shape[:2], -1, noise.shape[-1])


@functools.partial(jax.jit, static_argnames=("method", "size"))
def _adapt(method, adapter, noise, tokens, given, size, state=None):
  """Return intermediate values of an adaptation and its results.

  Args:
    method: the method.
    adapter: initial adapter.
    noise: of each step.
    tokens: of the tiles.
    given: embeddings of the states and of the prompts.
    size: of the image in pixels.
    state: of the optimizer; None for a new one.
  """
  grads, probs = jax.grad(method.objective, has_aux=True)(
    adapter, tokens, noise[0], *given, size
  )
  state = method.optimizer.init(adapter) if state is None else state
  (after, state), losses = method.adapt(
    adapter, state, tokens, noise, *given, size
  )
  units = method.apply_adapter(after, tokens, given[1])
  return {
    "grads": grads,
    "probs": probs,
    "losses": losses,
    "state": state,
    "delta": jax.tree.map(jnp.subtract, after, adapter),
    "units": units,
    "map": method.to_map(units, given[0], size),
  }
