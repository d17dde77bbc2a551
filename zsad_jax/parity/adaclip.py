"""Parity of AdaCLIP: every case of the manifest, forward and backward."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax.backbones.clip import model as clip_model
from zsad_jax.layers import prompts, semantic_fusion
from zsad_jax.methods import adaclip
from zsad_jax.parity import golden as golden_lib


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value) for every case and image."""
  backbone = golden.backbone()
  params = golden_lib.tree(entry, adaclip.TORCH_NAMES)
  class_names = entry.text("cls_names_utf8")
  texts = [prompts.adaclip(name) for name in class_names[:1]]
  yield "prompts_utf8", json.dumps(texts).encode()
  for case, settings in entry.config["cases"].items():
    method = _method(entry.config, settings)
    aux = method.prepare(backbone, class_names)
    for prefix, rows in _runs(case, settings, len(class_names)):
      run = _Run(method, backbone, aux, params, entry, prefix, rows)
      for name, value in run.quantities():
        yield f"{prefix}/{name}", value


def _method(config, case):
  """Build the method that the manifest describes."""
  return adaclip.Method(
    feature_layers=tuple(config["taps"]),
    prompt_length=config["length"],
    prompt_depth=config["depth"],
    prompt_branches="V" * case["visual_prompts"] + "L" * case["text_prompts"],
    prompt_types="S" * case["static"] + "D" * case["dynamic"],
    hsf="official" if case["hsf"] else "none",
    num_clusters=config["k"],
    hsf_top_factor=config["hsf_topk_factor"],
    hsf_mix=config["hsf_mix"],
    cosine_scale=config["cosine_scale"],
    activation=case["act"],
    pos_resize=config["pos_resize"],
    round_fp16=config["round_fp16"],
    text_prompt_first_layer=0 in config["text_prompt_blocks"],
    # The official rows are an effect of batch 1.
    dice=config["dice"] if case["batch"] == "per_image" else "image",
    remat=False,  # It changes no number, but takes long to compile.
  )


def _runs(case, settings, images):
  """Return prefixes of stored names, each with the images of one batch."""
  if settings["batch"] == "whole":
    return [(f"{case}/batch", slice(0, images))]
  return [(f"{case}/img{i}", slice(i, i + 1)) for i in range(images)]


@functools.partial(jax.jit, static_argnames="method")
def _encode(method, backbone, batch):
  return method.encode(backbone, batch)


@functools.partial(jax.jit, static_argnames="method")
def _forward(method, params, backbone, aux, features, labels):
  """Run the method; compiled once for all images of a case."""
  return method.forward(params, backbone, aux, features, labels)


@functools.partial(jax.jit, static_argnames="method")
def _losses_and_grads(method, params, *given, batch):
  """Compute the official loss and the one with Dice per image, together.

  Returns:
    Both losses (2,), their gradients, every leaf (2, ...), and the terms of
    the first: (b,) of the image and (b, levels, 3) of pixels.
  """
  textbook = dataclasses.replace(method, dice="image")

  def losses(params):
    result = method.forward(params, *given)
    terms = [m.loss_terms(result, batch) for m in (method, textbook)]
    total = lambda parts: sum(jnp.mean(t, axis=0).sum() for t in parts)
    values = jnp.stack([total(parts) for parts in terms])
    return values, (values, terms[0])

  grads, (values, terms) = jax.jacrev(losses, has_aux=True)(params)
  return values, grads, terms


@dataclasses.dataclass
class _Run:
  """One case on one batch of the stored images."""

  method: adaclip.Method
  backbone: clip_model.Clip
  aux: Any
  params: dict
  entry: golden_lib.Entry
  prefix: str
  rows: slice

  def stored(self, name):
    return f"{self.prefix}/{name}" in self.entry

  def quantities(self):
    image = self.entry.images("image_u8")
    class_id = jnp.arange(image.shape[0])  # One class name per image.
    features = _encode(
      self.method,
      self.backbone,
      {"image": image[self.rows], "class_id": class_id[self.rows]},
    )
    if "image_embed" in features:
      yield "prompt_free_image_features", features["image_embed"]
      only_dynamic = dataclasses.replace(self.method, prompt_types="D")
      for tower in ("visual", "text"):
        layers = only_dynamic.prompts(self.params, features, tower)
        yield f"dynamic_{tower}_prompts", layers[:, 0]
    yield from self.forward(features)
    if self.stored("loss"):
      yield from self.backward(features)
    if self.stored("traj/losses"):
      yield from self.trajectory(features)

  def labels(self):
    """Return the stored cluster labels, which scikit-learn drew."""
    name = f"{self.prefix}/hsf_cluster_labels"
    return jnp.asarray(self.entry[name]) if name in self.entry else None

  def named(self, tree):
    """Flatten a tree like the parameters under the stored names."""
    return golden_lib.named(tree, self.entry, adaclip.TORCH_NAMES)

  def given(self, features):
    """Return the arguments of `Method.forward` after the parameters."""
    return self.backbone, self.aux, features, self.labels()

  def forward(self, features):
    result = _forward(self.method, self.params, *self.given(features))
    yield "cls_feature", result["class_unit"]
    yield "text_features", jnp.moveaxis(result["text_units"], 1, 2)
    size = features["pixels"].shape[1:3]
    maps = self.method.level_maps(result, size)
    for i, layer in enumerate(self.method.feature_layers):
      yield f"patch_proj_{layer}", result["patch_units"][i]
      yield f"logits_{layer}", result["patch_logits"][:, i]
      yield f"train_map_{layer}", maps[:, i, ..., 1]
    yield "train_score", result["image_prob"]
    if "fused" in result:
      prob = semantic_fusion.patch_anomaly_prob(result["patch_logits"])
      count = self.method.hsf_top_factor * self.method.num_clusters
      top = lambda p: semantic_fusion.top_patches(p, count)
      yield "hsf_topk_indices", jax.vmap(top)(prob)
      yield "hsf_feature", result["fused"]
    prediction = self.method.to_prediction(result, size)
    yield "anomaly_map", prediction["anomaly_map"]
    yield "anomaly_score", prediction["pred_score"]
    sigma = self.entry.config["sigma"]
    smoothed = golden_lib.smoothed(prediction["anomaly_map"], sigma)
    yield f"anomaly_map_gauss{sigma}", smoothed

  def batch(self):
    return {
      "mask": jnp.asarray(self.entry["mask"])[self.rows],
      "label": jnp.asarray(self.entry["label"])[self.rows],
    }

  def backward(self, features):
    values, both, (image, pixel) = _losses_and_grads(
      self.method, self.params, *self.given(features), batch=self.batch()
    )
    yield "loss_terms", jnp.append(image.mean(), pixel.mean(axis=0).reshape(-1))
    for i, suffix in enumerate(("", "_dice_per_image")):
      yield f"loss{suffix}", values[i]
      grads = jax.tree.map(lambda x, i=i: x[i], both)
      for name, grad in self.named(grads).items():
        yield f"grad{suffix}/{name}", grad
        yield f"gradnorm{suffix}/{name}", jnp.sqrt(jnp.sum(jnp.square(grad)))

  def trajectory(self, features):
    """Yield the loss before each step, and the parameters after all."""
    given, batch = self.given(features), self.batch()

    def loss_and_grads(params, state):
      values, grads, _ = _losses_and_grads(
        self.method, params, *given, batch=batch
      )
      return values[0], jax.tree.map(lambda x: x[0], grads), state

    losses, params, _ = golden_lib.trajectory(
      self.entry,
      loss_and_grads,
      self.params,
      self.method.trainable_mask(self.params),
    )
    yield "traj/losses", losses
    for name, value in self.named(params).items():
      yield f"traj/after/{name}", value
