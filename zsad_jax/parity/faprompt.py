"""Parity of FAPrompt: both passes, either choice of patches, training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from zsad_jax.clip import tokenizer
from zsad_jax.layers import dual_path, similarity
from zsad_jax.methods import faprompt
from zsad_jax.parity import golden as golden_lib

_VARIANTS = {"official": "first", "topm": "topk"}  # Of `prior_select`.


def quantities(golden, entry):
  """Yields (stored name, ours)."""
  backbone, method = golden.backbone(), _method(golden, entry)
  params = golden_lib.tree(
      entry, faprompt.TORCH_NAMES, authors_name=golden_lib.prompt_learner
  )
  aux = method.prepare(backbone, ())
  image = entry.images("image_u8")
  yield from _images(backbone, method, image)
  yield from _prompts(method, params, aux, backbone, entry)
  given = backbone, aux, _encode(method, backbone, image)
  for prefix, select in _VARIANTS.items():
    variant = dataclasses.replace(method, prior_select=select)
    result, prediction = _run(variant, params, *given)
    if prefix == "official":
      yield from _first_pass(variant, result, image.shape[1:3])
    for name, value in _second_pass(result, prediction, entry):
      yield f"{prefix}/{name}", value
    for name, value in _training(variant, params, given, entry):
      yield f"{prefix}/{name}", value
  yield from _trajectory(method, params, given, entry)


def _method(golden, entry):
  """The method that the manifest describes."""
  config = entry.config
  weights = config["loss_weights"]
  return faprompt.Method(
      tap=golden.backbone().config.vision_layers,
      vv_from=config["dual_from"],
      num_prompts=config["num_p"],
      normal_length=config["n_ctx_pos"],
      abnormal_length=config["n_ctx_neg"],
      num_patches=config["k"],
      deep_length=config["t_n_ctx"],
      deep_depth=config["depth"],
      temperature=config["temperature"],
      prior_weight=weights["prior"],
      oc_weight=weights["oc"],
      map_weights=(weights["map1"], weights["map2"]),
      max_weights=tuple(config["max_weights"]),
      act=config["act"],
      pos_resize=config["pos_resize"],
      round_fp16=config["round_fp16"],
  )


def _images(backbone, method, image):
  encode = functools.partial(
      dual_path.encode,
      taps=(method.tap,),
      vv_from=method.vv_from,
      act=method.act,
      pos_resize=method.pos_resize,
      class_ln_post=False,
  )
  embed, tokens = jax.jit(encode)(backbone, image)
  yield "image_features", embed
  yield "patch_features", tokens[0]


def _prompts(method, params, aux, backbone, entry):
  normal = " ".join(["N"] * method.normal_length)
  abnormal = " ".join(["A"] * method.abnormal_length)
  yield "tokenized_pos", tokenizer.encode([f"{normal} object."])
  texts = [f"{normal} {abnormal} damaged object."] * method.num_prompts
  yield "tokenized_neg", tokenizer.encode(texts)
  for name, x in zip(("prompts_pos", "prompts_neg"), method.prompts(params, aux)):
    yield name, golden_lib.padded(x, backbone, entry[name].shape[1])


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


def _first_pass(method, result, size):
  yield "pass1/text_pos", result["normal_text"]
  yield "pass1/text_neg", result["abnormal_text"]
  yield "pass1/text_features", result["text_units"]
  yield "pass1/similarity", result["patch_prob"]
  yield "pass1/max_score", result["maxima"][:, 0]
  scores = result["patch_prob"][..., 1]
  yield "pass1/topk_indices", jax.lax.top_k(scores, method.num_patches)[1]
  maps = similarity.to_map(result["patch_prob"], size, method="bilinear")
  yield "pass1/map", maps[..., 1]


def _second_pass(result, prediction, entry):
  yield "selected_tokens", result["selected"]
  yield "bias", result["prior"]
  yield "pass2_text_features", result["refined_units"]
  yield "pass2_text_neg_img0", result["refined_text"][0]
  yield "pass2_similarity", result["refined_prob"]
  yield "pass2_max_score", result["maxima"][:, 1]
  yield "image_logits", result["image_logits"]
  yield "image_prob", result["image_prob"]
  yield "image_score", prediction["pred_score"]
  yield "anomaly_map_raw", prediction["anomaly_map"]
  sigma = entry.config["sigma"]
  yield "anomaly_map", golden_lib.smoothed(prediction["anomaly_map"], sigma)


def _training(method, params, given, entry):
  batch = golden_lib.batch(entry)
  loss, parts, grads = _loss_and_grads(method, params, given, batch)
  yield "loss/local_map1", parts["map1"]
  # Each stored with the weight it has in the total, but for orthogonality.
  yield "loss/local_map2_half", parts["map2"]
  yield "loss/image_ce", parts["image_ce"]
  yield "loss/image_focal", parts["image_focal"]
  yield "loss/orthogonality", parts["orthogonality"] / method.oc_weight
  yield "loss/prior", parts["prior"]
  yield "loss/total", loss
  yield from golden_lib.gradients(_named(grads, entry))


def _named(tree, entry):
  return golden_lib.named(
      tree,
      entry,
      faprompt.TORCH_NAMES,
      authors_name=golden_lib.prompt_learner,
  )


def _trajectory(method, params, given, entry):
  batch = golden_lib.batch(entry)

  def step(params, state):
    loss, _, grads = _loss_and_grads(method, params, given, batch)
    return loss, grads, state

  history, after, _ = golden_lib.trajectory(
      entry, step, params, method.trained(params)
  )
  yield "traj/losses", jnp.asarray(history)
  for name, value in _named(after, entry).items():
    yield f"traj/{name}_after", value
