"""Parity of AnomalyCLIP: image side, prompts, scores, losses, training."""

import dataclasses
import functools

import jax
import numpy as np

from zsad_jax.clip import tokenizer
from zsad_jax.layers import dual_path, similarity
from zsad_jax.methods import anomalyclip
from zsad_jax.parity import golden as golden_lib


def quantities(golden, entry):
  """Yields (stored name, ours)."""
  backbone, config = golden.backbone(), entry.config
  method = anomalyclip.Method(
      taps=tuple(config["taps"]),
      vv_from=config["dual_from"],
      context_length=config["n_ctx"],
      deep_length=config["t_n_ctx"],
      deep_depth=config["depth"],
      temperature=config["temperature"],
      map_weight=config["lam"],
      act=config["act"],
      pos_resize=config["pos_resize"],
      round_fp16=config["round_fp16"],
  )
  params = golden_lib.tree(
      entry, anomalyclip.TORCH_NAMES, authors_name=golden_lib.prompt_learner
  )
  aux = method.prepare(backbone, ())
  image = entry.images("image_u8")
  yield from image_side(backbone, method, method.taps, image)
  words = " ".join(["X"] * method.context_length)
  texts = [f"{words} object.", f"{words} damaged object."]
  yield "tokenized_prompts", tokenizer.encode(texts)
  rows = entry["prompts"].shape[1]
  yield "prompts", golden_lib.padded(method.prompts(params, aux), backbone, rows)
  given = backbone, aux, _encode(method, backbone, image)
  yield from _forward(method, params, given, entry)
  yield from _training(method, params, given, entry)


def image_side(backbone, method, taps, image):
  """Embeddings of the image and of all tokens per tap, with DPAM and without.

  Names of layers without a stored array are left out by the caller.
  """
  settings = dict(
      act=method.act, pos_resize=method.pos_resize, class_ln_post=False
  )
  run = jax.jit(
      functools.partial(dual_path.encode, taps=taps, **settings),
      static_argnames="vv_from",
  )
  for prefix, vv_from in (("", method.vv_from), ("plain/", None)):
    embed, tokens = run(backbone, image, vv_from=vv_from)
    yield f"{prefix}image_features", embed
    for tap, x in zip(taps, tokens):
      yield f"{prefix}patch_{tap}", x


@functools.partial(jax.jit, static_argnames="method")
def _encode(method, backbone, image):
  return method.encode(backbone, {"image": image})


@functools.partial(jax.jit, static_argnames="method")
def _run(method, params, backbone, aux, features):
  result = method.forward(params, backbone, aux, features)
  size = similarity.image_size(backbone, features)
  return result, method.read(result, size)


@functools.partial(jax.jit, static_argnames="method")
def _loss_and_grads(method, params, given, batch):
  def loss(params):
    return method.loss(params, {}, *given, batch, None)

  (value, (parts, _)), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return value, parts, grads


def _forward(method, params, given, entry):
  backbone, aux, features = given
  yield "text_features_raw", method.text(params, backbone, aux)
  result, _ = _run(method, params, *given)
  yield "text_features", result["text_units"]
  yield "train/text_logits", result["image_logits"]
  # With the class token in front, as the authors compare it, too.
  whole = dual_path.encode(
      backbone,
      entry.images("image_u8"),
      taps=method.taps,
      vv_from=method.vv_from,
      act=method.act,
      pos_resize=method.pos_resize,
      class_ln_post=False,
  )[1]
  for i, tap in enumerate(method.taps):
    units = similarity.unit(whole[i])
    yield f"similarity_{tap}", similarity.state_prob(
        units, result["text_units"], method.temperature
    )
    yield f"similarity_map_{tap}", _map(method, params, given, i, i + 1)
  yield "test/image_score", jax.nn.softmax(result["image_logits"])[:, 1]
  for first in range(len(method.taps)):
    name = f"_from_layer_idx_{first}" if first else ""
    # The authors add up what `predict` averages.
    count = len(method.taps) - first
    maps = count * _map(method, params, given, first, len(method.taps))
    yield f"test/anomaly_map_raw{name}", maps
    if not first:
      sigma = entry.config["sigma"]
      yield "test/anomaly_map", golden_lib.smoothed(maps, sigma)


def _map(method, params, given, first, last):
  """The anomaly map of some of the taps."""
  backbone, aux, features = given
  some = dataclasses.replace(method, taps=method.taps[first:last])
  patches = features["patch_units"][:, first:last]
  features = {**features, "patch_units": patches}
  _, prediction = _run(some, params, backbone, aux, features)
  return np.asarray(prediction["anomaly_map"])


def _training(method, params, given, entry):
  batch = golden_lib.batch(entry)
  loss, parts, grads = _loss_and_grads(method, params, given, batch)
  yield "train/image_loss", parts["image_ce"]
  yield "train/local_loss", loss - parts["image_ce"]
  yield "train/total", loss
  back = functools.partial(
      golden_lib.named,
      entry=entry,
      table=anomalyclip.TORCH_NAMES,
      authors_name=golden_lib.prompt_learner,
  )
  for name, value in golden_lib.gradients(back(grads)):
    yield f"train/{name}", value

  def step(params, state):
    loss, _, grads = _loss_and_grads(method, params, given, batch)
    return loss, grads, state

  history, after, _ = golden_lib.trajectory(
      entry, step, params, method.trained(params)
  )
  yield "traj/losses", history
  for name, value in back(after).items():
    yield f"traj/{name}_after", value


