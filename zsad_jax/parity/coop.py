"""Parity of CoOp: prompts, scores, losses, training, variants."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax.backbones.clip import model as clip
from zsad_jax.backbones.clip import tokenizer
from zsad_jax.layers import class_prompts, similarity
from zsad_jax.methods import coop
from zsad_jax.parity import golden as golden_lib
from zsad_jax.parity import recipes
from zsad_jax.parity import text_pairs as pairs

# Settings of the stored variants; their parameters may be stored, too.
_VARIANTS = {
  "middle": {"class_position": "middle"},
  "middle_odd": {"class_position": "middle"},
  "front": {"class_position": "front"},
  "csc": {"class_contexts": True},
  "init": {"initial": "a photo of a"},
}


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone, method = golden.backbone(), _method(entry.config)
  params = golden_lib.tree(entry, coop.TORCH_NAMES)
  names = entry.text("cls_names_utf8")
  aux = method.prepare(backbone, names)
  images = pairs.encode(method, backbone, entry)
  yield "image_features_raw", images.embeds
  yield "image_features", images.features["class_unit"]
  yield "patch_features", images.features["patch_units"]
  yield "logit_scale", backbone.logit_scale()
  yield from _prompts(method, params, backbone, entry, names)
  text = _text(method, params, backbone, aux, len(names))
  yield "text_features_raw", text.reshape(-1, text.shape[-1])
  units = similarity.unit(text)
  yield "text_features", units.reshape(-1, units.shape[-1])
  logits = lambda ids: (
    backbone.logit_scale()
    * similarity.cosines(images.features["class_unit"], units[ids])
  )
  count = len(images.embeds)
  yield "logits_all", pairs.all_logits(logits, len(names), count)
  own = text[images.features["class_id"]]
  yield from pairs.scores(entry, backbone, images.features, own)
  yield from _target(method, params, backbone, entry, images)
  yield from _training(method, params, (backbone, aux, images), entry)
  yield from _anomalyclip(method, params, backbone, aux, text, entry)
  yield from recipes.optimizers(entry)
  stored = {n.split("/")[0] for n in entry.under("variant/")}
  for name in sorted(stored & set(_VARIANTS)):
    yield from _variant(method, params, backbone, images, entry, name)


def _method(config):
  """Build the method that the manifest describes."""
  return coop.Method(
    context_length=config["n_ctx"],
    states=pairs.states(config),
    **pairs.plain_settings(config),
  )


@functools.partial(jax.jit, static_argnames=("method", "count"))
def _text(method, params, backbone, aux, count):
  """Embed the prompts of all classes, (n, 2, d)."""
  return method.text(params, backbone, aux, jnp.arange(count))


def _texts(method, names):
  """Return the prompts with placeholders, in the order of the classes."""
  groups = class_prompts.phrases(names, method.states)
  return [
    class_prompts.placeholder(method.words, x)
    for group in groups
    for x in group
  ]


def _prompts(method, params, backbone, entry, names, prefix=""):
  texts = _texts(method, names)
  yield f"{prefix}sentences_utf8", json.dumps(texts).encode()
  yield f"{prefix}tokenized_prompts", tokenizer.encode(texts)
  if f"{prefix}prompts" in entry:
    rows = entry[f"{prefix}prompts"].shape[1]
    joint = method.prepare(backbone, names)["joint"]
    vectors = method.contexts(params, 1)
    yield (
      f"{prefix}prompts",
      pairs.prompts(backbone, joint, vectors, rows)[0],
    )


def _target(method, params, backbone, entry, images):
  """Yield the quantities of a class that was not trained on."""
  if "target_utf8" not in entry:
    return
  names = [entry.text("target_utf8")]
  yield from _prompts(method, params, backbone, entry, names, "target/")
  aux = method.prepare(backbone, names)
  text = _text(method, params, backbone, aux, 1)
  yield "target/text_features", similarity.unit(text)[0]
  features = images.of(jnp.zeros(len(images.embeds)))
  own = jnp.repeat(text, len(images.embeds), axis=0)
  yield from pairs.scores(entry, backbone, features, own, "target/")


def _training(method, params, given, entry):
  backbone, aux, images = given
  run = functools.partial(
    golden_lib.train,
    method,
    stats={},
    given=(backbone, aux, images.features),
    batch=golden_lib.batch(entry),
    inspect=pairs.nothing,
  )
  named = functools.partial(_named, entry=entry)
  trained = run(params)
  yield from pairs.losses(trained, named)

  def loss_and_grads(params):
    trained = run(params)
    return trained.loss, trained.grads

  yield from recipes.trajectories(entry, params, loss_and_grads, named)


def _anomalyclip(method, params, backbone, aux, text, entry):
  """Yield the quantities with the image side of AnomalyCLIP."""
  config = entry.config.get("ac")
  if not config:
    return
  method = dataclasses.replace(method, **pairs.anomalyclip_settings(config))
  images = pairs.encode(method, backbone, entry)
  yield "ac/image_features", images.features["class_unit"]
  yield "ac/patch_features", images.features["patch_units"]
  own = text[images.features["class_id"]]
  by_suffix = {"": method.temperature}
  yield from pairs.scores(
    entry, backbone, images.features, own, "ac/", by_suffix
  )
  trained = golden_lib.train(
    method,
    params,
    {},
    (backbone, aux, images.features),
    golden_lib.batch(entry),
    pairs.nothing,
  )
  named = functools.partial(_named, entry=entry)
  yield from pairs.losses(trained, named, "ac/")


def _variant(method, params, backbone, images, entry, name):
  """Yield the quantities of another context or position of the class."""
  names, prefix = entry.text("cls_names_utf8"), f"variant/{name}"
  settings: dict[str, Any] = dict(_VARIANTS[name])
  if settings.get("class_contexts"):
    settings["class_contexts"] = len(names)
  if f"{prefix}/param/ctx" in entry:
    params = golden_lib.tree(entry, coop.TORCH_NAMES, f"{prefix}/param/")
    settings["context_length"] = params["context"].shape[-2]
  method = dataclasses.replace(method, **settings)
  if method.initial:
    params, _ = method.init(jax.random.key(0), backbone)
    yield f"{prefix}/ctx", params["context"]
  yield from _prompts(method, params, backbone, entry, names, f"{prefix}/")
  aux = method.prepare(backbone, names)
  trained = golden_lib.train(
    method,
    params,
    {},
    (backbone, aux, images.features),
    golden_lib.batch(entry),
    _units,
  )
  units = trained.inspected
  yield f"{prefix}/text_features", units.reshape(-1, units.shape[-1])
  yield f"{prefix}/loss", trained.loss
  yield f"{prefix}/grad/ctx", trained.grads["context"]


def _units(
  method: Any,
  params: Any,
  stats: Any,
  backbone: clip.Clip,
  aux: Any,
  features: Any,
) -> jax.Array:
  """Return the unit embeddings of all classes."""
  del stats, features
  count = len(aux["each"]["end"])
  return similarity.unit(method.text(params, backbone, aux, jnp.arange(count)))


def _named(tree, entry):
  return golden_lib.named(tree, entry, coop.TORCH_NAMES)
