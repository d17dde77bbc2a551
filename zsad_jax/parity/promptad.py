"""Parity of PromptAD: prompts, features, losses, training, both branches."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.layers import (
  category_prompts,
  class_prompts,
  similarity,
  smoothing,
)
from zsad_jax.methods import promptad
from zsad_jax.parity import golden as golden_lib
from zsad_jax.parity import recipes
from zsad_jax.parity import text_pairs as pairs

_CLEAN: dict[str, Any] = {"scale": "exp", "triplet": "features"}


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone = golden.backbone()
  train, test = (entry.images(f"{name}_u8") for name in ("train", "test"))
  method = _method(entry.config, "seg")
  encode = lambda m: _split(m, backbone, train, test)
  ours, query = encode(method)
  yield "train_class_features", ours["class_unit"]
  yield "train_patch_features", ours["patch_units"]
  yield "test_class_features", query["class_unit"]
  yield "test_patch_features_img0", query["patch_units"][0]
  for suffix, before_mlp in (("", True), ("_clean", False)):
    variant = dataclasses.replace(method, before_mlp=before_mlp)
    references, images = encode(variant)
    for i, layer in enumerate(method.feature_layers):
      units = references["layer_units"][:, i]
      yield f"gallery_{layer}{suffix}", units.reshape(-1, units.shape[-1])
      if before_mlp:
        yield f"test_tap_{layer}_img0", images["layer_units"][0, i]
    visual = method.visual(images, references["layer_units"][None])
    yield f"visual_map{suffix}", _grid(visual)
  for branch in ("seg", "cls"):
    given = backbone, ours, query
    yield from _branch(_method(entry.config, branch), given, entry, branch)
  yield from _active(_method(entry.config, "cls"), backbone, ours, entry)
  yield from recipes.optimizers(entry)


def _method(config, branch):
  """Build the method of a branch that the manifest describes."""
  own = config[branch]
  return promptad.Method(
    branch=branch,
    num_normal=own["n_pro"],
    context_length=own["n_ctx"],
    num_anomalous=own["n_pro_ab"],
    anomalous_length=own["n_ctx_ab"],
    feature_layers=tuple(config["taps"]),
    match_weight=config["lambda_match"],
    score_side=config["out_size"],
    activation=config["act"],
    pos_resize=config["pos_resize"],
  )


def _split(method, backbone, train, test):
  """Encode references and queries in one call, all of class 0."""
  images = jnp.concatenate([train, test])
  found = _encode(method, backbone, images)
  rows = lambda part: jax.tree.map(lambda x: x[part], found)
  return rows(slice(len(train))), rows(slice(len(train), None))


@functools.partial(jax.jit, static_argnames="method")
def _encode(method, backbone, image):
  class_id = jnp.zeros(len(image), jnp.int32)
  return method.encode(backbone, {"image": image, "class_id": class_id})


def _prompts(method, backbone, params, entry, branch):
  """Yield the prompts of the branch's category."""
  name = entry.config[branch]["name"]
  texts = method.contexts.prompts(name)
  yield f"{branch}/sentences_utf8", json.dumps(texts).encode()
  yield f"{branch}/token_ids", backbone.tokenize(sum(texts, []))[0]
  rows = entry[f"{branch}/prompt_embeddings"].shape[1]
  groups = class_prompts.arrange(
    backbone, [sum(method.contexts.symbols(backbone, name), [])]
  )
  embeds = pairs.prompts(backbone, groups, method.vectors(params), rows)
  yield f"{branch}/prompt_embeddings", embeds[0]


def _text(
  method: Any, params: Any, stats: Any, backbone: Any, aux: Any, features: Any
) -> dict[str, jax.Array]:
  """Return embeddings of the prompts, anchors, logits and distances."""
  del stats
  text = method.text(params, backbone, aux, features["class_id"])
  anchors = category_prompts.anchors(text, aux["used"][features["class_id"]])
  units = method.features_of_branch(features)
  negatives = similarity.unit(text[:, method.num_normal :])
  targets = jnp.concatenate([anchors[:, :1], negatives], axis=1)
  scale = method.logit_scale(backbone)
  distances = method.distances_to_anchors(units, anchors)
  return {
    "text": text[0],
    "anchors": anchors[0],
    "logits": scale * similarity.cosines(units, targets),
    "hinge": distances[..., 0] - distances[..., 1],
  }


def _run(method, params, backbone, aux, features):
  batch = {"weight": jnp.ones(len(features["class_id"]))}
  given = backbone, aux, features
  return golden_lib.train(method, params, {}, given, batch, _text)


def _losses(trained, method, named, prefix):
  """Yield losses and gradients under their stored names."""
  parts = trained.parts
  yield f"{prefix}/loss_v2t", parts["contrastive"]
  yield f"{prefix}/loss_triplet", parts["triplet"]
  yield f"{prefix}/loss_match", parts["match"] / method.match_weight
  yield f"{prefix}/loss", trained.loss
  for name, grad in named(trained.grads).items():
    yield f"{prefix}/grad/{name}", grad


def _branch(method, given, entry, branch):
  backbone, ours, query = given
  group = f"param/{branch}/"
  params = golden_lib.tree(entry, promptad.TORCH_NAMES, group)
  named = functools.partial(_named, entry=entry, group=group)
  yield from _prompts(method, backbone, params, entry, branch)
  aux = method.prepare(backbone, [entry.config[branch]["name"]])
  trained = _run(method, params, backbone, aux, ours)
  found, n = trained.inspected, method.num_normal
  learned = method.contexts.learned
  yield f"{branch}/text_features_normal", found["text"][:n]
  yield f"{branch}/text_features_manual", found["text"][n:-learned]
  yield f"{branch}/text_features_learned", found["text"][-learned:]
  yield from _anchors(found, branch)
  yield f"{branch}/text_gallery", found["anchors"]
  image = branch == "cls"
  logits = found["logits"][:, 0] if image else found["logits"][0]
  yield f"{branch}/logits", logits
  yield from _losses(trained, method, named, branch)
  clean = dataclasses.replace(method, **_CLEAN)
  other = _run(clean, params, backbone, aux, ours)
  yield from _losses(other, clean, named, f"{branch}/clean")
  settings = entry.config["traj"]
  history, after = recipes.steps(
    settings,
    params,
    lambda _, p: _loss_and_grads(_run(method, p, backbone, aux, ours)),
    settings["steps"],
  )
  yield f"{branch}/traj/losses", np.stack(history)
  yield f"{branch}/traj/lr", recipes.learning_rates(settings)
  start = named(params)
  for name, value in named(after).items():
    yield f"{branch}/traj/after/{name}", value
    yield f"{branch}/traj/delta/{name}", value - start[name]
  exp = dataclasses.replace(method, scale="exp")
  bank = ours["layer_units"][None]
  cases = (method, params, "init"), (exp, params, "init_exp")
  for variant, values, stored in (*cases, (method, after, "traj")):
    yield from _inference(
      variant,
      _predict(variant, values, backbone, aux, query, bank),
      entry.config,
      f"{branch}/{stored}",
    )


def _loss_and_grads(trained):
  return trained.loss, trained.grads


def _anchors(found, prefix):
  yield f"{prefix}/anchor_normal", found["anchors"][0]
  yield f"{prefix}/anchor_abnormal", found["anchors"][1]


@functools.partial(jax.jit, static_argnames="method")
def _predict(method, params, backbone, aux, features, bank):
  """Return the prediction, its parts, and the anchors of the prompts."""
  text = _text(method, params, {}, backbone, aux, features)
  given = params, {}, backbone, aux, {**features, "memory_bank": bank}
  found, side = method.forward(*given), method.score_side
  return {
    "anchors": text["anchors"],
    "prob": found["prob"],
    "visual_max": method.largest(found["visual"]),
    "score": method.predict(*given)["pred_score"],
    # The stored maps have another size than the images.
    "map": similarity.value_map(found["value"], (side, side)),
  }


def _inference(method, found, config, prefix):
  if prefix.endswith("traj"):
    yield f"{prefix}/text_gallery", found["anchors"]
  if method.branch == "seg":
    yield f"{prefix}/text_map", _grid(found["prob"])
    sigma = float(config["sigma"])
    yield f"{prefix}/map", smoothing.gaussian(found["map"], sigma)
    return
  yield f"{prefix}/text_score", found["prob"][:, 0]
  yield f"{prefix}/visual_max", found["visual_max"]
  yield f"{prefix}/score", found["score"]


def _active(method, backbone, ours, entry):
  """Yield the losses of prompts for which the triplet loss is not 0."""
  branch, group = "cls_active", "param/cls_active/"
  if branch not in entry.config:
    return
  params = golden_lib.tree(entry, promptad.TORCH_NAMES, group)
  named = functools.partial(_named, entry=entry, group=group)
  aux = method.prepare(backbone, [entry.config[branch]["name"]])
  trained = _run(method, params, backbone, aux, ours)
  yield from _anchors(trained.inspected, branch)
  yield f"{branch}/hinge_argument", trained.inspected["hinge"][:, 0]
  yield from _losses(trained, method, named, branch)
  clean = dataclasses.replace(method, **_CLEAN)
  other = _run(clean, params, backbone, aux, ours)
  yield from _losses(other, clean, named, f"{branch}/clean")


def _named(tree, entry, group):
  return golden_lib.named(tree, entry, promptad.TORCH_NAMES, group)


def _grid(values):
  """Arrange values of patches (b, l) as a square."""
  side = round(values.shape[1] ** 0.5)
  return values.reshape(len(values), side, side)
