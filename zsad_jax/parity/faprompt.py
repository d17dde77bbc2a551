"""Parity of FAPrompt: both passes, either choice of patches, training."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax

from zsad_jax.backbones.clip import tokenizer
from zsad_jax.layers import similarity
from zsad_jax.methods import faprompt
from zsad_jax.parity import golden as golden_lib

_VARIANTS = {"official": "first", "topm": "topk"}  # Of `prior_select`.


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone = golden.backbone()
  method = _method(entry.config, backbone.vision_layers)
  params = golden_lib.tree(
    entry, faprompt.TORCH_NAMES, authors_name=golden_lib.prompt_learner
  )
  aux = method.prepare(backbone, ())
  image = entry.images("image_u8")
  embed, tokens = golden_lib.image_side(
    method, backbone, image, (method.feature_layer,)
  )
  yield "image_features", embed
  yield "patch_features", tokens[0]
  yield from _prompts(method, params, aux, backbone, entry)
  given = backbone, aux, golden_lib.encode(method, backbone, image)
  for prefix, select in _VARIANTS.items():
    variant = dataclasses.replace(method, prior_select=select)
    run = functools.partial(
      golden_lib.train,
      variant,
      given=given,
      batch=golden_lib.batch(entry),
      inspect=_inspect,
    )
    trained = run(params, {})
    if prefix == "official":
      yield from _first_pass(trained.inspected)
      yield from _trajectory(method, run, params, entry)
    for name, value in _second_pass(trained.inspected, entry):
      yield f"{prefix}/{name}", value
    for name, value in _losses(method, trained, entry):
      yield f"{prefix}/{name}", value


def _method(config, vision_layers):
  """Build the method that the manifest describes."""
  weights = config["loss_weights"]
  first, second = config["max_weights"]
  return faprompt.Method(
    feature_layer=vision_layers,
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
    max_weights=(float(first), float(second)),
    activation=config["act"],
    pos_resize=config["pos_resize"],
    round_fp16=config["round_fp16"],
  )


def _prompts(method, params, aux, backbone, entry):
  normal = " ".join(["N"] * method.normal_length)
  abnormal = " ".join(["A"] * method.abnormal_length)
  yield "tokenized_pos", tokenizer.encode([f"{normal} object."])
  texts = [f"{normal} {abnormal} damaged object."] * method.num_prompts
  yield "tokenized_neg", tokenizer.encode(texts)
  ours = jax.jit(method.prompts)(params, aux)
  for name, x in zip(("prompts_pos", "prompts_neg"), ours):
    yield name, golden_lib.padded(x, backbone, entry[name].shape[1])


def _inspect(method, params, stats, backbone, aux, features):
  """Return both passes, and the top patches and map of the first one."""
  del stats
  result = method.forward(params, backbone, aux, features)
  size, prob = similarity.image_size(backbone, features), result["patch_prob"]
  return {
    **result,
    **method.to_prediction(result, size),
    "top": jax.lax.top_k(prob[..., 1], method.num_patches)[1],
    "map": similarity.to_map(prob, size, method="bilinear")[..., 1],
  }


def _first_pass(values):
  yield "pass1/text_pos", values["normal_text"]
  yield "pass1/text_neg", values["abnormal_text"]
  yield "pass1/text_features", values["text_units"]
  yield "pass1/similarity", values["patch_prob"]
  yield "pass1/max_score", values["maxima"][:, 0]
  yield "pass1/topk_indices", values["top"]
  yield "pass1/map", values["map"]


def _second_pass(values, entry):
  yield "selected_tokens", values["selected"]
  yield "bias", values["prior"]
  yield "pass2_text_features", values["refined_units"]
  yield "pass2_text_neg_img0", values["refined_text"][0]
  yield "pass2_similarity", values["refined_prob"]
  yield "pass2_max_score", values["maxima"][:, 1]
  yield "image_logits", values["image_logits"]
  yield "image_prob", values["image_prob"]
  yield "image_score", values["pred_score"]
  yield "anomaly_map_raw", values["anomaly_map"]
  sigma = entry.config["sigma"]
  yield "anomaly_map", golden_lib.smoothed(values["anomaly_map"], sigma)


def _losses(method, trained, entry):
  parts = trained.parts
  yield "loss/local_map1", parts["map1"]
  # Each stored with the weight it has in the total, but for orthogonality.
  yield "loss/local_map2_half", parts["map2"]
  yield "loss/image_ce", parts["image_ce"]
  yield "loss/image_focal", parts["image_focal"]
  yield "loss/orthogonality", parts["orthogonality"] / method.oc_weight
  yield "loss/prior", parts["prior"]
  yield "loss/total", trained.loss
  yield from golden_lib.gradients(_named(trained.grads, entry))


def _trajectory(method, run, params, entry):
  history, after, _ = golden_lib.trajectory(
    entry, golden_lib.steps(run), params, method.trainable_mask(params), {}
  )
  yield "traj/losses", history
  for name, value in _named(after, entry).items():
    yield f"traj/{name}_after", value


def _named(tree, entry):
  return golden_lib.named(
    tree,
    entry,
    faprompt.TORCH_NAMES,
    authors_name=golden_lib.prompt_learner,
  )
