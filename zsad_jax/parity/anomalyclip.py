"""Parity of AnomalyCLIP: image side, prompts, scores, losses, training."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax

from zsad_jax.backbones.clip import tokenizer
from zsad_jax.layers import similarity
from zsad_jax.methods import anomalyclip
from zsad_jax.parity import golden as golden_lib


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone, method = golden.backbone(), _method(entry.config)
  params = golden_lib.tree(
    entry, anomalyclip.TORCH_NAMES, authors_name=golden_lib.prompt_learner
  )
  aux = method.prepare(backbone, ())
  image = entry.images("image_u8")
  tokens = None
  for prefix, vv_from in (("plain/", None), ("", method.vv_from)):
    variant = dataclasses.replace(method, vv_from=vv_from)
    embed, tokens = golden_lib.image_side(
      variant, backbone, image, method.feature_layers
    )
    yield f"{prefix}image_features", embed
    for layer, x in zip(method.feature_layers, tokens):
      yield f"{prefix}patch_{layer}", x
  yield from _prompts(method, params, aux, backbone, entry)
  given = backbone, aux, golden_lib.encode(method, backbone, image)
  run = functools.partial(
    golden_lib.train,
    method,
    given=given,
    batch=golden_lib.batch(entry),
    inspect=_inspect,
  )
  trained = run(params, {})
  yield from _scores(method, trained.inspected, tokens, entry)
  yield from _losses(trained, entry)
  history, after, _ = golden_lib.trajectory(
    entry, golden_lib.steps(run), params, method.trainable_mask(params), {}
  )
  yield "traj/losses", history
  for name, value in _named(after, entry).items():
    yield f"traj/{name}_after", value


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
  )


def _prompts(method, params, aux, backbone, entry):
  words = " ".join(["X"] * method.context_length)
  texts = [f"{words} object.", f"{words} damaged object."]
  yield "tokenized_prompts", tokenizer.encode(texts)
  ours, rows = method.prompts(params, aux), entry["prompts"].shape[1]
  yield "prompts", golden_lib.padded(ours, backbone, rows)


def _inspect(method, params, stats, backbone, aux, features):
  """Return text embeddings, scores, and maps of single and of last layers."""
  del stats
  result = method.forward(params, backbone, aux, features)
  size, count = (
    similarity.image_size(backbone, features),
    len(method.feature_layers),
  )
  prob, maps = result["patch_prob"], {}
  for first in range(count):
    for last in {first + 1, count}:
      some = {**result, "patch_prob": prob[:, first:last]}
      maps[first, last] = method.to_prediction(some, size)["anomaly_map"]
  return {
    **result,
    "text": method.text(params, backbone, aux),
    "score": method.to_prediction(result, size)["pred_score"],
    "maps": maps,
  }


def _scores(method, values, tokens, entry):
  yield "text_features_raw", values["text"]
  yield "text_features", values["text_units"]
  yield "train/text_logits", values["image_logits"]
  yield "test/image_score", values["score"]
  # With the class token in front, as the authors compare it, too.
  compare = jax.jit(similarity.state_prob, static_argnames="temperature")
  for i, (layer, x) in enumerate(zip(method.feature_layers, tokens)):
    yield (
      f"similarity_{layer}",
      compare(
        similarity.unit(x), values["text_units"], temperature=method.temperature
      ),
    )
    yield f"similarity_map_{layer}", values["maps"][i, i + 1]
  count = len(method.feature_layers)
  for first in range(count):
    name = f"_from_layer_idx_{first}" if first else ""
    # The authors add up what `predict` averages.
    maps = (count - first) * values["maps"][first, count]
    yield f"test/anomaly_map_raw{name}", maps
    if not first:
      sigma = entry.config["sigma"]
      yield "test/anomaly_map", golden_lib.smoothed(maps, sigma)


def _losses(trained, entry):
  image = trained.parts["image_ce"]
  yield "train/image_loss", image
  yield "train/local_loss", trained.loss - image
  yield "train/total", trained.loss
  for name, value in golden_lib.gradients(_named(trained.grads, entry)):
    yield f"train/{name}", value


def _named(tree, entry):
  return golden_lib.named(
    tree,
    entry,
    anomalyclip.TORCH_NAMES,
    authors_name=golden_lib.prompt_learner,
  )
