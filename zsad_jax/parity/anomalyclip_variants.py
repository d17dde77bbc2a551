"""Parity of AnomalyCLIP's ensembles and of AnomalyCLIP+ (few-shot)."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.backbones.clip import tokenizer
from zsad_jax.inference import ensemble, few_shot, predictor
from zsad_jax.layers import compound_prompts, memory_bank, similarity
from zsad_jax.methods import anomalyclip
from zsad_jax.parity import golden as golden_lib


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone, method = golden.backbone(), _method(entry.config)
  yield from _ensemble(method, backbone, entry)
  yield from _star(method, backbone, entry)
  yield from _plus(method, backbone, entry)
  yield from _given(entry)


def _method(config):
  """Build the method that the manifest describes."""
  return anomalyclip.Method(
    feature_layers=tuple(config["taps"]),
    vv_from=config["dual_from"],
    context_length=config["n_ctx"],
    deep_length=config["t_n_ctx"],
    deep_depth=config["depth"],
    temperature=config["temperature"],
    map_weight=float(config["lam"]),
    activation=config["act"],
    pos_resize=config["pos_resize"],
    round_fp16=config["round_fp16"],
    oc_weight=config["orth_weight"],
  )


def _params(method, entry, group):
  """Return the stored parameters of a learner."""
  return golden_lib.tree(
    entry,
    method.torch_names,
    f"{group}/param/",
    authors_name=golden_lib.prompt_learner,
  )


@functools.partial(jax.jit, static_argnums=0)
def _predicted(method, params, backbone, aux, features):
  """Return text embeddings and predictions."""
  result = method.forward(params, backbone, aux, features)
  size = similarity.image_size(backbone, features)
  return result["text_units"], method.to_prediction(result, size)


def _ensemble(method, backbone, entry):
  """Yield the members of Ensemble, and their mean."""
  aux = method.prepare(backbone, ())
  features = golden_lib.encode(method, backbone, entry.images("image_u8"))
  found = []
  for k in range(entry.config["K"]):
    params = _params(method, entry, f"ensemble/{k}")
    units, prediction = _predicted(method, params, backbone, aux, features)
    yield f"ensemble/{k}/text_features", units
    maps = golden_lib.smoothed(prediction["anomaly_map"], entry.config["sigma"])
    found.append({**prediction, "anomaly_map": maps})
    yield f"ensemble/map_{k}", maps
  yield "ensemble/scores", np.stack([each["pred_score"] for each in found])
  mean = ensemble.mean_prediction(found)
  yield "ensemble/score", mean["pred_score"]
  yield "ensemble/map", mean["anomaly_map"]


def _star(method, backbone, entry):
  """Yield Ensemble*: prompts, prediction, losses, gradients, training."""
  method = dataclasses.replace(method, num_anomalous=entry.config["M"])
  params, aux = _params(method, entry, "star"), method.prepare(backbone, ())
  texts = [t.text for t in method.prompt_templates() for _ in range(t.prompts)]
  yield "star/tokenized_prompts", tokenizer.encode(texts)
  features = golden_lib.encode(method, backbone, entry.images("image_u8"))
  run = functools.partial(
    golden_lib.train,
    method,
    given=(backbone, aux, features),
    batch=golden_lib.batch(entry),
    inspect=_inspect,
  )
  trained = run(params, {})
  values = trained.inspected
  yield "star/text_features_raw", values["text"]
  yield "star/text_features", values["text_units"]
  unit = dataclasses.replace(method, anomalous_mean="unit")
  yield "star/text_features_unitmean", unit.text_units(values["text"])
  yield "star/score", values["pred_score"]
  sigma = entry.config["sigma"]
  yield "star/map", golden_lib.smoothed(values["anomaly_map"], sigma)
  image = trained.parts["image_ce"]
  orth = compound_prompts.orthogonality(values["text"][1:], ordered=False)
  yield "star/image_loss", image
  yield "star/local_loss", trained.loss - image - method.oc_weight * orth
  yield "star/orth", orth
  yield "star/total", trained.loss
  for name, value in _named(method, trained.grads, entry).items():
    yield f"star/grad/{name}", value
  history, after, _ = golden_lib.trajectory(
    entry, golden_lib.steps(run), params, method.trainable_mask(params), {}
  )
  yield "star/traj/losses", history
  delta = jax.tree.map(jnp.subtract, after, params)
  for name, value in _named(method, delta, entry).items():
    yield f"star/traj/delta/{name}", value


def _inspect(method, params, stats, backbone, aux, features):
  """Return text embeddings and the prediction."""
  del stats
  result = method.forward(params, backbone, aux, features)
  size = similarity.image_size(backbone, features)
  return {**result, **method.to_prediction(result, size)}


def _named(method, tree, entry):
  return golden_lib.named(
    tree,
    entry,
    method.torch_names,
    "star/param/",
    authors_name=golden_lib.prompt_learner,
  )


def _plus(method, backbone, entry):
  """Yield AnomalyCLIP+ of the first learner, and both kinds of score."""
  layers = tuple(entry.config["plus_taps"])
  method = dataclasses.replace(method, feature_layers=layers)
  params = _params(method, entry, "ensemble/0")
  found = _few_shot(
    few_shot.WithMemoryBank(method, layers, method.vv_from, "patches"),
    params,
    backbone,
    method.prepare(backbone, ()),
    entry.images("image_u8"),
    entry.images("reference_u8"),
  )
  zero_shot, fused = found["zero_shot"], found["patches"]
  yield "plus/patch_scores", found["distances"]
  yield "plus/zero_shot_map", zero_shot["anomaly_map"]
  few = 2 * fused["anomaly_map"] - zero_shot["anomaly_map"]
  yield "plus/few_shot_map", few
  sigma = entry.config["sigma"]
  yield "plus/map", golden_lib.smoothed(fused["anomaly_map"], sigma)
  yield "plus/zero_shot_score", zero_shot["pred_score"]
  yield (
    "plus/few_shot_score",
    2 * fused["pred_score"] - zero_shot["pred_score"],
  )
  yield "plus/score", fused["pred_score"]
  yield "plus/score_upsampled_max", found["pixels"]["pred_score"]


@functools.partial(jax.jit, static_argnums=0)
def _few_shot(detector, params, backbone, aux, image, references):
  """Return distances and predictions; the class of all images is the same."""
  encode = lambda x: detector.encode(backbone, {"image": x})
  bank = predictor.shared_memory_bank(detector, encode(references))
  features = {**encode(image), "memory_bank": bank}
  zero_shot = detector.method.predict(
    params, {}, backbone, aux, features["method"]
  )
  fuse = lambda score: dataclasses.replace(
    detector, score=score
  ).fuse_with_references(zero_shot, features)
  return {
    "distances": jnp.stack(detector.distances(features)),
    "zero_shot": zero_shot,
    **{score: fuse(score) for score in ("patches", "pixels")},
  }


def _given(entry):
  """Yield the orthogonality loss and distances of given features."""
  loss = jax.jit(
    jax.value_and_grad(
      functools.partial(compound_prompts.orthogonality, ordered=False)
    )
  )
  features = entry["star/orth_given/features"]
  value, grad = loss(jnp.asarray(features, jnp.float32))
  yield "star/orth_given/orth", value
  yield "star/orth_given/grad", grad
  query, references = (
    similarity.unit(jnp.asarray(entry[f"plus/given/{name}"], jnp.float32))
    for name in ("query_tokens", "reference_tokens")
  )
  distance, _ = memory_bank.nearest(query[:, 1:], references[None, :, 1:])
  yield "plus/given/patch_scores", 0.5 * distance
