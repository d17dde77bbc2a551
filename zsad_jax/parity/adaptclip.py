"""Parity of AdaptCLIP: adapters, fusion, losses, running statistics."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip import names, tokenizer
from zsad_jax.layers import (
    dual_path,
    prompt_learner,
    prompt_query,
    prompts,
    similarity,
)
from zsad_jax.methods import adaptclip
from zsad_jax.parity import golden as golden_lib


def quantities(golden, entry):
  """Yields (stored name, ours)."""
  backbone, method = golden.backbone(), _method(entry.config)
  params = golden_lib.tree(
      entry, adaptclip.TORCH_NAMES, authors_name=_authors_name
  )
  stats = _stats(method, backbone, entry)
  aux = method.prepare(backbone, ())
  yield from _embeddings(backbone, method, entry)
  yield from _text(backbone, method, params, aux, entry)
  run = _Run(method, backbone, aux, params, stats, entry)
  yield from run.quantities()


def _method(config):
  """The method that the manifest describes."""
  return adaptclip.Method(
      taps=tuple(config["taps"]),
      vv_from=config["dual_from"],
      context=config["pq_context"],
      context_length=config["n_ctx"],
      reduction=config["reduction"],
      head_widths=(config["mid"], config["mid2"]),
      pool_topk=config["pool_topk"],
      temperature=config["temperature"],
      sigma=float(config["sigma"]),
      act=config["act"],
      pos_resize=config["pos_resize"],
  )


def _authors_name(stored):
  """Name in the authors' checkpoint: "pq/..." is "pq_learner....", etc."""
  group, name = stored.split("/", 1)
  return f"{group}_learner.{name}"


def _stats(method, backbone, entry):
  """The stored running statistics, with a counter of updates from 0 on."""
  _, stats = method.init(jax.random.key(0), backbone)
  stored = golden_lib.tree(
      entry, adaptclip.TORCH_STATS, "bn0/", _authors_name
  )
  return names.unflatten({**names.flatten(stats), **names.flatten(stored)})


def _embeddings(backbone, method, entry):
  encode = functools.partial(
      dual_path.encode,
      taps=method.taps,
      vv_from=method.vv_from,
      act=method.act,
      pos_resize=method.pos_resize,
      class_ln_post=False,
  )
  for prefix, images in (("query", "query"), ("prompt_pool", "prompt_pool")):
    embed, tokens = jax.jit(encode)(backbone, entry.images(f"{images}_u8"))
    yield f"{prefix}/image_features", embed
    for tap, x in zip(method.taps, tokens):
      yield f"{prefix}/patch_{tap}", x


def _text(backbone, method, params, aux, entry):
  yield "static_prompts_utf8", json.dumps(prompts.adaptclip()).encode()
  sentences = prompt_learner.placeholders(backbone, sum(prompts.adaptclip(), []))
  yield "static_text_features", method.static_text(backbone, sentences)
  words = " ".join(["X"] * method.context_length)
  yield "learned_prompt_token_ids", tokenizer.encode([f"{words}."] * 2)
  yield "learned_prompts", golden_lib.padded(
      method.learned_prompts(params, aux),
      backbone,
      entry["learned_prompts"].shape[1],
  )
  yield "learned_text_features", method.text(params, backbone, aux)


@functools.partial(jax.jit, static_argnames="method")
def _encode(method, backbone, image):
  return method.encode(backbone, {"image": image})


@functools.partial(jax.jit, static_argnames=("method", "training"))
def _adapters(method, params, stats, backbone, aux, features, training):
  """All that the three adapters say, before fusion."""
  size = similarity.image_size(backbone, features)
  weight = jnp.ones(len(features["image"])) if training else None
  found, _ = method.branches(params, stats, backbone, aux, features, weight)
  levels = []
  if "memory" in features:
    levels, _ = method.compare(params, stats, features, size, weight)
  maps = {
      name: similarity.to_map(prob, size, method="bilinear")[..., 1]
      for name, (_, prob) in found.items()
  }
  return {name: logits for name, (logits, _) in found.items()}, maps, levels


@functools.partial(jax.jit, static_argnames="method")
def _predict(method, params, stats, backbone, aux, features):
  return method.predict(params, stats, backbone, aux, features)


@functools.partial(jax.jit, static_argnames="method")
def _loss_and_grads(method, params, stats, given, batch):
  def loss(params):
    return method.loss(params, stats, *given, batch, None)

  return jax.value_and_grad(loss, has_aux=True)(params)


@dataclasses.dataclass
class _Run:
  """The stored queries beside different numbers of references."""

  method: adaptclip.Method
  backbone: object
  aux: dict
  params: dict
  stats: dict
  entry: object

  def quantities(self):
    prefixes = {n.split("/")[0] for n in self.entry.expected()}
    for prefix in sorted(prefixes):
      if found := re.fullmatch(r"(eval|train)_k(\d+)(_nocontext)?", prefix):
        kind, shots, nocontext = found.groups()
        method = self.method
        if nocontext:
          method = dataclasses.replace(method, context=False)
        features = self.features(kind, int(shots))
        run = self.evaluation if kind == "eval" else self.training
        for name, value in run(method, features):
          yield f"{prefix}/{name}", value
    features = self.features("train", 1)
    yield from self.trajectory(features)
    yield from self.statistics(features)

  def features(self, kind, shots):
    """The queries' features, with a memory of `shots` references for each."""
    kind = {"eval": "test", "train": "train"}[kind]
    images = self.entry.images("query_u8")
    features = _encode(self.method, self.backbone, images)
    if not shots:
      return features
    pool = _encode(
        self.method, self.backbone, self.entry.images("prompt_pool_u8")
    )
    chosen = self.entry[f"prompt_idx_{kind}"][:, :shots]
    pool = jax.tree.map(lambda x: x[chosen], pool)
    return {**features, "memory": self.method.remember(pool)}

  def adapters(self, method, features, training):
    logits, maps, levels = _adapters(
        method, self.params, self.stats, self.backbone, self.aux, features,
        training=training,
    )  # fmt: skip
    for name in logits:
      yield f"{name}_logits", logits[name]
      yield f"{name}_map", maps[name]
    if levels:
      yield "pq_logits", jnp.stack([x["logits"] for x in levels])
      yield "pq_map_layer0", levels[0]["maps"][..., 1]
      yield "align_score_layer0", levels[0]["distance"]
      summary = prompt_query.summary(levels)
      yield from zip(("pq_map", "pq_score", "align_score"), summary)

  def evaluation(self, method, features):
    yield from self.adapters(method, features, training=False)
    prediction = _predict(
        method, self.params, self.stats, self.backbone, self.aux, features
    )
    sigma = self.entry.config["sigma"]
    maps = golden_lib.smoothed(prediction["anomaly_map"], sigma)
    yield "pixel_map", maps
    yield "image_score", prediction["pred_score"]

  def step(self, method, features, params, stats):
    given = self.backbone, self.aux, features
    batch = golden_lib.batch(self.entry)
    (loss, (parts, stats)), grads = _loss_and_grads(
        method, params, stats, given, batch
    )
    return loss, parts, stats, grads

  def named(self, tree, table=adaptclip.TORCH_NAMES, group="param/"):
    return golden_lib.named(tree, self.entry, table, group, _authors_name)

  def training(self, method, features):
    yield from self.adapters(method, features, training=True)
    loss, parts, _, grads = self.step(
        method, features, self.params, self.stats
    )
    for name, value in parts.items():
      adapter, kind = name.rsplit("_", 1)
      adapter = {"prompt_query": "pq"}.get(adapter, adapter)
      yield f"loss_{kind}_{adapter}", value
    yield "loss", loss
    yield from golden_lib.gradients(self.named(grads))

  def statistics(self, features):
    _, _, stats, _ = self.step(
        self.method, features, self.params, self.stats
    )
    for name, value in self.named(
        stats, adaptclip.TORCH_STATS, "bn0/"
    ).items():
      yield f"bn1/{name}", value

  def trajectory(self, features):
    def step(params, stats):
      loss, _, stats, grads = self.step(self.method, features, params, stats)
      return loss, grads, stats

    history, params, stats = golden_lib.trajectory(
        self.entry,
        step,
        self.params,
        self.method.trained(self.params),
        self.stats,
    )
    yield "traj/losses", np.asarray(history)
    after = self.named(params)
    after |= self.named(stats, adaptclip.TORCH_STATS, "bn0/")
    for name, value in after.items():
      group, rest = name.split("/", 1)
      # The textual adapter's names are stored without their group.
      yield f"traj/{rest if group == 'textual' else f'{group}_{rest}'}_after", value


