"""Parity of AdaptCLIP: adapters, fusion, losses, running statistics."""

import dataclasses
import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax.backbones.clip import convert as clip_convert
from zsad_jax.backbones.clip import model as clip_model
from zsad_jax.backbones.clip import tokenizer
from zsad_jax.layers import (
  prompt_learner,
  prompt_query,
  prompts,
  similarity,
  textual_adapter,
)
from zsad_jax.methods import adaptclip
from zsad_jax.parity import golden as golden_lib


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone, method = golden.backbone(), _method(entry.config)
  params = golden_lib.tree(
    entry, adaptclip.TORCH_NAMES, authors_name=_authors_name
  )
  aux = method.prepare(backbone, ())
  images = {
    part: entry.images(f"{part}_u8") for part in ("query", "prompt_pool")
  }
  for part, image in images.items():
    embed, tokens = golden_lib.image_side(
      method, backbone, image, method.feature_layers
    )
    yield f"{part}/image_features", embed
    for layer, x in zip(method.feature_layers, tokens):
      yield f"{part}/patch_{layer}", x
  yield from _text(backbone, method, params, aux, entry)
  run = _Run(
    method,
    backbone,
    aux,
    params,
    _stats(method, backbone, entry),
    {
      part: golden_lib.encode(method, backbone, image)
      for part, image in images.items()
    },
    entry,
  )
  yield from run.quantities()


def _method(config):
  """Build the method that the manifest describes."""
  return adaptclip.Method(
    feature_layers=tuple(config["taps"]),
    vv_from=config["dual_from"],
    context=config["pq_context"],
    context_length=config["n_ctx"],
    reduction=config["reduction"],
    head_widths=(config["mid"], config["mid2"]),
    pool_topk=config["pool_topk"],
    temperature=config["temperature"],
    sigma=float(config["sigma"]),
    activation=config["act"],
    pos_resize=config["pos_resize"],
  )


def _authors_name(stored):
  """Return the name in the authors' checkpoint: "pq/a" is "pq_learner.a"."""
  group, name = stored.split("/", 1)
  return f"{group}_learner.{name}"


def _stats(method, backbone, entry):
  """Return the stored running statistics, with a counter of updates at 0."""
  _, shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), backbone))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  stored = golden_lib.tree(entry, adaptclip.TORCH_STATS, "bn0/", _authors_name)
  return clip_convert.unflatten(
    {**clip_convert.flatten(zeros), **clip_convert.flatten(stored)}
  )


def _text(backbone, method, params, aux, entry):
  static_prompts = prompts.adaptclip()
  yield "static_prompts_utf8", json.dumps(static_prompts).encode()
  yield (
    "static_text_features",
    jax.jit(textual_adapter.fixed_text, static_argnames="activation")(
      backbone,
      prompt_learner.placeholders(backbone, sum(static_prompts, [])),
      activation=method.activation,
    ),
  )
  words = " ".join(["X"] * method.context_length)
  yield "learned_prompt_token_ids", tokenizer.encode([f"{words}."] * 2)
  yield (
    "learned_prompts",
    golden_lib.padded(
      textual_adapter.learned_prompts(params["textual"], aux),
      backbone,
      entry["learned_prompts"].shape[1],
    ),
  )
  text = jax.jit(textual_adapter.text, static_argnames="activation")
  yield (
    "learned_text_features",
    text(params["textual"], backbone, aux, activation=method.activation),
  )


def _adapters(method, params, stats, backbone, aux, features, weight):
  """Compute the adapters' outputs, before fusion, by stored name."""
  size = similarity.image_size(backbone, features)
  found, _ = method.branches(params, stats, backbone, aux, features, weight)
  outputs = {}
  for name, (logits, prob) in found.items():
    maps = similarity.to_map(prob, size, method="bilinear")
    outputs |= {f"{name}_logits": logits, f"{name}_map": maps[..., 1]}
  if "memory_bank" in features:
    levels, _ = method.compare(params, stats, features, size, weight)
    summary = prompt_query.summary(levels)
    outputs |= {
      "pq_logits": jnp.stack([x["logits"] for x in levels]),
      "pq_map_layer0": levels[0]["maps"][..., 1],
      "align_score_layer0": levels[0]["distance"],
      **dict(zip(("pq_map", "pq_score", "align_score"), summary)),
    }
  return outputs


def _training(method, params, stats, backbone, aux, features):
  weight = jnp.ones(len(features["image"]))
  return _adapters(method, params, stats, backbone, aux, features, weight)


@functools.partial(jax.jit, static_argnames="method")
def _evaluation(method, params, stats, backbone, aux, features):
  given = params, stats, backbone, aux, features
  outputs = _adapters(method, *given, weight=None)
  return outputs, method.predict(*given)


@dataclasses.dataclass
class _Run:
  """The stored queries, compared with different numbers of references."""

  method: adaptclip.Method
  backbone: clip_model.Clip
  aux: Any
  params: dict
  stats: dict
  images: dict  # Features of the queries and of the pool of references.
  entry: golden_lib.Entry

  def quantities(self):
    prefixes = {n.split("/")[0] for n in self.entry.expected()}
    for prefix in sorted(prefixes):
      if found := re.fullmatch(r"(eval|train)_k(\d+)(_nocontext)?", prefix):
        kind, shots, nocontext = found.groups()
        method = self.method
        if nocontext:
          method = dataclasses.replace(method, context=False)
        case = self.evaluation if kind == "eval" else self.training
        for name, value in case(method, int(shots)):
          yield f"{prefix}/{name}", value
    yield from self.steps()

  def features(self, kind, shots):
    """Return the queries' features, each with `shots` references."""
    features = self.images["query"]
    if not shots:
      return features
    chosen = self.entry[f"prompt_idx_{kind}"][:, :shots]
    pool = jax.tree.map(lambda x: x[chosen], self.images["prompt_pool"])
    return {**features, "memory_bank": self.method.build_memory_bank(pool)}

  def evaluation(self, method, shots):
    outputs, prediction = _evaluation(
      method,
      self.params,
      self.stats,
      self.backbone,
      self.aux,
      self.features("test", shots),
    )
    yield from outputs.items()
    sigma = self.entry.config["sigma"]
    maps = golden_lib.smoothed(prediction["anomaly_map"], sigma)
    yield "pixel_map", maps
    yield "image_score", prediction["pred_score"]

  def trainer(self, method, shots):
    """Return a function (params, stats) -> a training step's values."""
    given = self.backbone, self.aux, self.features("train", shots)
    return functools.partial(
      golden_lib.train,
      method,
      given=given,
      batch=golden_lib.batch(self.entry),
      inspect=_training,
    )

  def training(self, method, shots):
    trained = self.trainer(method, shots)(self.params, self.stats)
    yield from trained.inspected.items()
    for name, value in trained.parts.items():
      adapter, kind = name.rsplit("_", 1)
      adapter = {"prompt_query": "pq"}.get(adapter, adapter)
      yield f"loss_{kind}_{adapter}", value
    yield "loss", trained.loss
    yield from golden_lib.gradients(self.named(trained.grads))

  def steps(self):
    """Yield statistics after one step, and the state after all steps."""
    run = self.trainer(self.method, 1)
    stats = run(self.params, self.stats).stats
    for name, value in self.named_stats(stats).items():
      yield f"bn1/{name}", value
    history, params, stats = golden_lib.trajectory(
      self.entry,
      golden_lib.steps(run),
      self.params,
      self.method.trainable_mask(self.params),
      self.stats,
    )
    yield "traj/losses", history
    after = self.named(params) | self.named_stats(stats)
    for name, value in after.items():
      group, rest = name.split("/", 1)
      # The textual adapter's names are stored without their group.
      rest = rest if group == "textual" else f"{group}_{rest}"
      yield f"traj/{rest}_after", value

  def named(self, params):
    """Flatten parameters, or a tree like them, under the stored names."""
    return golden_lib.named(
      params, self.entry, adaptclip.TORCH_NAMES, authors_name=_authors_name
    )

  def named_stats(self, stats):
    """Flatten running statistics under the stored names."""
    return golden_lib.named(
      stats, self.entry, adaptclip.TORCH_STATS, "bn0/", _authors_name
    )
