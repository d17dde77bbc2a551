"""Parity of TCP: written prompts, class tokens, scores, losses, training."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.backbones.clip import tokenizer
from zsad_jax.layers import class_prompts, similarity
from zsad_jax.methods import tcp
from zsad_jax.parity import golden as golden_lib
from zsad_jax.parity import recipes
from zsad_jax.parity import text_pairs as pairs

_FIXED = {"v1": "pair", "v2": "winclip"}  # Prefix of the names -> prompts.


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone, method = golden.backbone(), _method(entry.config)
  params = golden_lib.tree(entry, tcp.TORCH_NAMES)
  names = entry.text("cls_names_utf8")
  images = pairs.encode(method, backbone, entry)
  yield from _prompts(method, params, backbone, entry, names)
  for prefix, prompts in _FIXED.items():
    variant = dataclasses.replace(method, fixed_prompts=prompts)
    # Only `prepare` differs: with one method, the steps are compiled once.
    given = method, backbone, entry, images
    yield from _version(variant.prepare, params, given, f"{prefix}/", names)
    if prompts == "pair":
      yield f"{prefix}/fixed_sentences_utf8", _written(variant, names)
  aux = method.prepare(backbone, names)
  yield from _anomalyclip(method, params, backbone, aux, entry)
  yield from recipes.optimizers(entry)


def _method(config):
  """Build the method that the manifest describes."""
  return tcp.Method(
    context_length=config["n_ctx"],
    num_class_tokens=config["class_tokens"],
    class_token_block=config["class_token_block"],
    class_token_weight=config["weight"],
    reduction=config["reduction"],
    states=tuple(config["state_forms"]),
    fixed_weight=config["kg_weight"],
    **pairs.plain_settings(config),
  )


def _prompts(method, params, backbone, entry, names):
  groups = class_prompts.phrases(names, method.states)
  texts = [class_prompts.placeholder(method.words, x) for x in sum(groups, [])]
  yield "sentences_utf8", json.dumps(texts).encode()
  yield "tokenized_prompts", tokenizer.encode(texts)
  prompts = class_prompts.build(
    backbone, [[x] for x in sum(groups, [])], method.words
  )
  rows = entry["prompts"].shape[1]
  vectors = params["context"][None]
  yield "prompts", pairs.prompts(backbone, prompts, vectors, rows)[:, 0]


def _flat(x):
  """Return an array of all prompts instead of classes and states."""
  return x.reshape(-1, *x.shape[2:])


def _written(method, names):
  """Return the written prompts of all classes as a JSON document."""
  each = [texts for name in names for texts in method.written_prompts(name)]
  return json.dumps(sum(each, [])).encode()


def _version(prepare, params, given, prefix, names):
  """Yield the quantities of one kind of written prompts."""
  method, backbone, entry, images = given
  aux = prepare(backbone, names)
  yield f"{prefix}fixed_features", _flat(aux["fixed_units"])
  tokens = method.class_tokens(params, _flat(aux["fixed_units"]))
  yield f"{prefix}class_tokens", tokens
  run = functools.partial(
    _train, method, backbone=backbone, images=images, entry=entry
  )
  trained = run(params, aux, images.features["class_id"])
  text = trained.inspected
  yield f"{prefix}text_features", _flat(similarity.unit(text))
  features = images.features
  units = similarity.unit(text)
  logits = lambda ids: (
    backbone.logit_scale()
    * similarity.cosines(features["class_unit"], units[ids])
  )
  count = len(images.embeds)
  yield f"{prefix}logits_all", pairs.all_logits(logits, len(names), count)
  own = text[features["class_id"]]
  yield from pairs.scores(entry, backbone, features, own, prefix)
  yield from _losses(method, trained, entry, prefix)
  aux_of_one = prepare(backbone, names[:1])
  yield from _single(aux_of_one, params, given, prefix)
  if f"{prefix}absent/cls_index" in entry:
    yield from _absent(prepare, params, given, f"{prefix}absent/")
  yield from _target(prepare, params, given, prefix)

  def loss_and_grads(params):
    trained = run(params, aux, features["class_id"])
    return trained.loss, trained.grads

  named = functools.partial(_named, entry=entry)
  yield from recipes.trajectories(entry, params, loss_and_grads, named, prefix)


def _train(method, params, aux, class_id, *, backbone, images, entry):
  """Train on the stored images, as images of given classes."""
  return golden_lib.train(
    method,
    params,
    {},
    (backbone, aux, images.of(class_id)),
    golden_lib.batch(entry),
    _text,
  )


def _text(
  method: Any, params: Any, stats: Any, backbone: Any, aux: Any, features: Any
) -> jax.Array:
  """Return the embeddings of the prompts of all classes, (n, 2, d)."""
  del stats, features
  return method.text(params, backbone, aux, jnp.arange(len(aux["fixed_units"])))


def _losses(method, trained, entry, prefix):
  yield f"{prefix}kg", trained.parts["fixed_text"] / method.fixed_weight
  named = functools.partial(_named, entry=entry)
  yield from pairs.losses(trained, named, prefix)


def _single(aux, params, given, prefix):
  """Yield the loss of the first class, with its images alone."""
  method, backbone, entry, images = given
  rows = np.flatnonzero(entry["cls_index"] == 0)
  take: Any = lambda x: x[rows]
  features = jax.tree.map(take, dict(images.features))
  batch = jax.tree.map(take, dict(golden_lib.batch(entry)))
  trained = golden_lib.train(
    method, params, {}, (backbone, aux, features), batch, pairs.nothing
  )
  yield f"{prefix}single/loss", trained.loss


def _absent(prepare, params, given, prefix):
  """Yield the quantities of other classes, one of them without an image."""
  method, backbone, entry, images = given
  names = entry.text(f"{prefix}cls_names_utf8")
  class_id = jnp.asarray(entry[f"{prefix}cls_index"], jnp.int32)
  aux = prepare(backbone, names)
  trained = _train(
    method,
    params,
    aux,
    class_id,
    backbone=backbone,
    images=images,
    entry=entry,
  )
  text = trained.inspected
  yield f"{prefix}fixed_features", _flat(aux["fixed_units"])
  yield f"{prefix}text_features", _flat(similarity.unit(text))
  yield from pairs.scores(
    entry, backbone, images.of(class_id), text[class_id], prefix
  )
  yield from _losses(method, trained, entry, prefix)


def _target(prepare, params, given, prefix):
  """Yield the text embeddings of a class that was not trained on."""
  method, backbone, entry, _ = given
  if "target_utf8" not in entry:
    return
  aux = prepare(backbone, [entry.text("target_utf8")])
  text = _jit_text(method, params, backbone, aux)
  yield f"{prefix}target/text_features", similarity.unit(text)[0]


@functools.partial(jax.jit, static_argnames="method")
def _jit_text(method, params, backbone, aux):
  return _text(method, params, {}, backbone, aux, {})


def _anomalyclip(method, params, backbone, aux, entry):
  """Yield the quantities with the image side of AnomalyCLIP."""
  config = entry.config.get("ac")
  if not config:
    return
  fields: Mapping[str, Any] = pairs.anomalyclip_settings(config)
  # The stored loss has no term of the written prompts.
  method = dataclasses.replace(method, **fields, fixed_weight=0.0)
  images = pairs.encode(method, backbone, entry)
  yield "ac/image_features", images.features["class_unit"]
  yield "ac/patch_features", images.features["patch_units"]
  class_id = images.features["class_id"]
  trained = _train(
    method,
    params,
    aux,
    class_id,
    backbone=backbone,
    images=images,
    entry=entry,
  )
  yield from pairs.scores(
    entry,
    backbone,
    images.features,
    trained.inspected[class_id],
    "ac/",
    {"": method.temperature},
  )
  named = functools.partial(_named, entry=entry)
  yield from pairs.losses(trained, named, "ac/")


def _named(tree, entry):
  return golden_lib.named(tree, entry, tcp.TORCH_NAMES)
