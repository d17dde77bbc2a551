"""Parity of APRIL-GAN: text, features, training step, maps and scores."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax.layers import prompts, similarity
from zsad_jax.methods import april_gan
from zsad_jax.parity import golden as golden_lib
from zsad_jax.types import ANOMALOUS


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone, method = golden.backbone(), _method(entry.config)
  params = golden_lib.tree(
    entry, april_gan.TORCH_NAMES, authors_name=_authors_name
  )
  name = entry.config["obj"]
  yield "prompts_utf8", json.dumps(prompts.april_gan(name)).encode()
  aux = method.prepare(backbone, [name])
  yield "text_features", aux["text_units"][0].T
  image, references = entry.images("image_u8"), entry.images("reference_u8")
  yield from _towers(method, backbone, image)
  features = _encode(method, backbone, image)
  trained = golden_lib.train(
    method,
    params,
    {},
    given=(backbone, aux, features),
    batch=golden_lib.batch(entry),
    inspect=_inspect,
  )
  yield from _training(trained, method, entry)
  bank = _bank(method, backbone, references)
  yield from _test(method, params, aux, backbone, features, bank)


def _authors_name(name):
  """Return the name in the checkpoint."""
  return f"trainable_linearlayer.{name}"


def _method(config):
  """Build the method that the manifest describes."""
  return april_gan.Method(
    feature_layers=tuple(config["taps"]),
    memory_layers=tuple(config["fs_taps"]),
    cosine_scale=config["logit_scale"],
    # The authors' Dice of a batch of one image is one of each row of pixels.
    dice="image" if len(config["labels"]) > 1 else "rows",
    activation=config["act"],
    pos_resize=config["pos_resize"],
  )


@functools.partial(jax.jit, static_argnames="method")
def _encode(method, backbone, image):
  class_id = jnp.zeros(len(image), jnp.int32)
  return method.encode(backbone, {"image": image, "class_id": class_id})


def _bank(method, backbone, references):
  """Return the memory bank of all references, for all images."""
  features = _encode(method, backbone, references)
  return method.build_memory_bank(jax.tree.map(lambda x: x[None], features))


def _towers(method, backbone, image):
  """Yield features before they are normalized, with both activations."""
  embed, out = jax.jit(lambda x: backbone.image(x, **method.image_hooks))(image)
  yield "image_features", embed
  for layer in range(1, backbone.vision_layers + 1):
    yield f"tokens_{layer}", out[f"block{layer:02d}"]
  quick = dataclasses.replace(method, activation="quick").image_hooks
  encode = jax.jit(lambda x: backbone.image(x, **quick)[0])
  embed = encode(image)
  for i in range(len(image)):
    yield f"quick/image_features_img{i}", embed[i : i + 1]


def _inspect(method, params, stats, backbone, aux, features):
  """Return the maps of all layers."""
  del stats
  logits = method.forward(params, aux, features)["patch_logits"]
  size = similarity.image_size(backbone, features, "patch_tokens")
  return similarity.prob_maps(logits, size)


def _training(trained, method, entry):
  yield "train/loss", trained.loss
  grads = golden_lib.named(
    trained.grads, entry, april_gan.TORCH_NAMES, authors_name=_authors_name
  )
  for name, value in golden_lib.gradients(grads):
    yield f"train/{name}", value
  for i, layer in enumerate(method.feature_layers):
    yield f"train/map_{layer}", trained.inspected[:, i, ..., ANOMALOUS]


def _test(method, params, aux, backbone, features, bank):
  """Yield what the authors' test computes; they add up all layers."""

  @jax.jit
  def predict(params, aux, features, bank):
    zero_shot = method.predict(params, {}, backbone, aux, features)
    given = {**features, "memory_bank": bank}
    return zero_shot, method.fuse_with_references(zero_shot, given)

  zero_shot, few_shot = predict(params, aux, features, bank)
  n, m = len(method.feature_layers), len(method.memory_layers)
  for i in range(len(zero_shot["pred_score"])):
    yield f"test/img{i}/image_score", zero_shot["pred_score"][i]
    yield f"test/img{i}/zero_shot_map", n * zero_shot["anomaly_map"][i]
    few = few_shot["anomaly_map"][i]
    yield f"test/img{i}/few_shot_map", (n + 2 * m) * few
