"""Parity of CoCoOp: prompts of each image, scores, losses, training."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax.backbones.clip import tokenizer
from zsad_jax.layers import class_prompts, similarity
from zsad_jax.methods import cocoop
from zsad_jax.parity import golden as golden_lib
from zsad_jax.parity import recipes
from zsad_jax.parity import text_pairs as pairs


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone, method = golden.backbone(), _method(entry.config)
  params = golden_lib.tree(entry, cocoop.TORCH_NAMES)
  names = entry.text("cls_names_utf8")
  groups = class_prompts.phrases(names, method.states)
  texts = [class_prompts.placeholder(method.words, x) for x in sum(groups, [])]
  yield "tokenized_prompts", tokenizer.encode(texts)
  aux = method.prepare(backbone, names)
  images = pairs.encode(method, backbone, entry)
  features = images.features
  yield "image_features", features["class_unit"]
  yield "patch_features", features["patch_units"]
  yield "meta/hidden", method.hidden(params, features["class_unit"])
  yield "meta/bias", method.shift(params, features["class_unit"])
  yield (
    "prompts",
    pairs.prompts(
      backbone,
      class_prompts.select(aux, features["class_id"]),
      method.vectors(params, features["class_unit"]),
      rows=entry["prompts"].shape[2],
    ),
  )
  text = _text(method, params, backbone, aux, features)
  yield "text_features", similarity.unit(text)
  logits = lambda ids: (
    backbone.logit_scale()
    * similarity.cosines(
      features["class_unit"],
      similarity.unit(_text(method, params, backbone, aux, images.of(ids))),
    )
  )
  count = len(images.embeds)
  yield "logits_all", pairs.all_logits(logits, len(names), count)
  yield from pairs.scores(entry, backbone, features, text)
  yield from _training(method, params, (backbone, aux, images), entry)
  yield from _anomalyclip(method, params, backbone, aux, entry)
  yield from recipes.optimizers(entry)


def _method(config):
  """Build the method that the manifest describes."""
  return cocoop.Method(
    context_length=config["n_ctx"],
    reduction=config["reduction"],
    states=pairs.states(config),
    **pairs.plain_settings(config),
  )


@functools.partial(jax.jit, static_argnames="method")
def _text(method, params, backbone, aux, features):
  """Embed the prompts of each image, (b, 2, d)."""
  return method.text(params, backbone, aux, features)


def _training(method, params, given, entry):
  backbone, aux, images = given
  batch = golden_lib.batch(entry)
  run = functools.partial(
    golden_lib.train,
    method,
    stats={},
    given=(backbone, aux, images.features),
    inspect=pairs.nothing,
  )
  named = functools.partial(_named, entry=entry)
  yield from pairs.losses(run(params, batch=batch), named)
  for name in entry.under("loss_single_"):
    # The other images are padding, which has no weight.
    weight = jnp.zeros(len(images.embeds)).at[int(name)].set(1.0)
    alone = run(params, batch={**batch, "weight": weight})
    yield f"loss_single_{name}", alone.loss

  def loss_and_grads(params):
    trained = run(params, batch=batch)
    return trained.loss, trained.grads

  yield from recipes.trajectories(entry, params, loss_and_grads, named)


def _anomalyclip(method, params, backbone, aux, entry):
  """Yield the quantities with the image side of AnomalyCLIP."""
  config = entry.config.get("ac")
  if not config:
    return
  method = dataclasses.replace(method, **pairs.anomalyclip_settings(config))
  images = pairs.encode(method, backbone, entry)
  yield "ac/image_features", images.features["class_unit"]
  yield "ac/patch_features", images.features["patch_units"]
  trained = golden_lib.train(
    method,
    params,
    {},
    (backbone, aux, images.features),
    golden_lib.batch(entry),
    _text_of,
  )
  yield "ac/text_features", similarity.unit(trained.inspected)
  yield from pairs.scores(
    entry,
    backbone,
    images.features,
    trained.inspected,
    "ac/",
    {"": method.temperature},
  )
  named = functools.partial(_named, entry=entry)
  yield from pairs.losses(trained, named, "ac/")


def _text_of(
  method: Any, params: Any, stats: Any, backbone: Any, aux: Any, features: Any
) -> jax.Array:
  """Return the embeddings of the prompts of each image."""
  del stats
  return method.text(params, backbone, aux, features)


def _named(tree, entry):
  return golden_lib.named(tree, entry, cocoop.TORCH_NAMES)
