"""Parity of CLIP and CLIP-AC: prompts, embeddings, scores and maps."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax.backbones.clip import tokenizer
from zsad_jax.layers import similarity
from zsad_jax.methods import clip
from zsad_jax.parity import golden as golden_lib
from zsad_jax.types import ANOMALOUS

# Stored name -> settings.
_TEXTS: dict[str, dict[str, Any]] = {
  "clip": dict(prompts="pair_no_stop"),
  "clip_dot": dict(prompts="pair"),
  "clip_ac": dict(prompts="imagenet"),
  "clip_ac_rawmean": dict(prompts="imagenet", text_average="raw"),
}
_NORMS = {"ln": True, "noln": False}  # Stored name -> cls_ln_post.


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone, config = golden.backbone(), entry.config
  scale = jnp.exp(backbone.params["logit_scale"])
  yield "logit_scale", scale
  # The stored factors are inverse temperatures; one of them is a text.
  temperatures = {
    name: 1.0 / float(scale if isinstance(factor, str) else factor)
    for name, factor in config["temperatures"].items()
  }
  names = entry.text("cls_names_utf8")
  yield from _prompts(names)
  texts = {}
  for text, settings in _TEXTS.items():
    method = clip.Method(activation=config["act"], **settings)
    texts[text] = method.prepare(backbone, names)
    yield f"{text}/text_features", texts[text]["text_units"]
  images = entry.images("image_u8")
  for resize in config["pos_resize"]:
    methods = {
      norm: clip.Method(
        activation=config["act"], pos_resize=resize, cls_ln_post=ln_post
      )
      for norm, ln_post in _NORMS.items()
    }
    features, raw = _encode(
      tuple(methods.values()), backbone, images, jnp.asarray(entry["cls_index"])
    )
    yield f"{resize}/image_features_raw", raw[0]
    yield f"{resize}/image_features_noln_raw", raw[1]
    yield f"{resize}/patch_features", features[0]["patch_units"]
    for text, settings in _TEXTS.items():
      for label, temperature in temperatures.items():
        method = clip.Method(temperature=temperature, **settings)
        for norm, given in zip(methods, features):
          image, patches = _forward(method, texts[text], given)
          yield f"{text}/{resize}/prob_{norm}_{label}", image
        # Patches are the same for both.
        maps = _maps(patches, images.shape[1:3])
        yield f"{text}/{resize}/map_raw_{label}", maps
        smoothed = golden_lib.smoothed(maps, config["sigma"])
        yield f"{text}/{resize}/map_{label}", smoothed


def _prompts(names):
  of_class = [clip.Method(**_TEXTS["clip"]).state_prompts(n) for n in names]
  flat = [text for states in of_class for state in states for text in state]
  yield "clip/sentences_utf8", json.dumps(flat).encode()
  yield "clip/token_ids", tokenizer.encode(flat)


@functools.partial(jax.jit, static_argnums=0)
def _encode(methods, backbone, image, class_id):
  """Return the features of each method, and embeddings of any length."""
  batch, hooks = {"image": image, "class_id": class_id}, methods[0].image_hooks
  _, out = backbone.image(image, **hooks)
  raw = [backbone.project(out["class"], ln_post=n) for n in _NORMS.values()]
  return [method.encode(backbone, batch) for method in methods], raw


_forward = jax.jit(clip.Method.forward, static_argnums=0)


@functools.partial(jax.jit, static_argnums=1)
def _maps(patches, size):
  anomalous = patches[..., ANOMALOUS:]
  return similarity.to_map(anomalous, size, method="bilinear")[..., 0]
