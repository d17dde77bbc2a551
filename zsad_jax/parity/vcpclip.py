"""Parity of VCP-CLIP: prompts, both branches, losses, dropout, training."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax import losses
from zsad_jax.backbones.clip import tokenizer
from zsad_jax.layers import resample, score_fusion, similarity, visual_context
from zsad_jax.methods import vcpclip
from zsad_jax.parity import golden as golden_lib
from zsad_jax.torch_io import rules
from zsad_jax.types import ANOMALOUS

_UNUSED = ("prompt_text_projection",)
_PLACEHOLDER, _PLACEHOLDER_ID = "<|class|>", 49408  # In the authors' code.
_SINGLE = 1  # Image of the batch of a single image.
_BRANCHES = ("base", "post")


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone, method = golden.backbone(), _method(entry.config)
  params = golden_lib.tree(entry, vcpclip.TORCH_NAMES, unused=_UNUSED)
  aux, image = method.prepare(backbone, ()), entry.images("image_u8")
  yield from _prompts(backbone)
  yield from _image_side(method, backbone, image)
  features = golden_lib.encode(method, backbone, image)
  given = backbone, aux, features
  yield from _without_image(method, params, given)
  run = functools.partial(
    golden_lib.train,
    method,
    given=given,
    batch=golden_lib.batch(entry),
    inspect=_inspect,
  )
  trained = run(params, {})
  yield from _forward(method, trained.inspected)
  yield from _test(entry, trained.inspected)
  yield from _losses(method, trained, entry)
  yield from _dropout(method, params, given, entry)
  yield from _trajectory(method, run, params, entry)
  yield from _given_losses(entry)
  norm = params["deep"]["norm"], jnp.asarray(entry["prompt_norm_in"], "float32")
  epsilon = method.token_norm_epsilon
  yield "prompt_norm_out", visual_context.token_norm(*norm, epsilon)


def _method(config):
  """Build the method that the manifest describes."""
  return vcpclip.Method(
    feature_layers=tuple(config["taps"]),
    num_class_vectors=config["prompt_len"],
    deep_length=config["deep_prompt_len"],
    dropout=config["dropout"],
    token_norm_epsilon=config["prompt_norm_eps"],
    use_global=config["use_global"],
    num_heads=config["heads"],
    base_weight=config["alpha"],
    top_pixels=config["top_pixels"],
    dice="image" if len(config["labels"]) > 1 else "rows",
    activation=config["act"],
    pos_resize=config["pos_resize"],
  )


def _prompts(backbone):
  texts = [text.removesuffix("X") + _PLACEHOLDER for text in vcpclip.PROMPTS]
  yield "sentences_utf8", json.dumps([[text] for text in texts]).encode()
  length = backbone.config.context_length
  ids = tokenizer.encode(vcpclip.PROMPTS, context_length=length)
  hole = tokenizer.end_positions(ids) - 1
  ids[np.arange(len(ids)), hole] = _PLACEHOLDER_ID
  yield "token_ids", ids


def _image_side(method, backbone, image):
  side = image.shape[1] // backbone.patch_size
  table = backbone.params["visual"]["positional_embedding"]
  yield (
    "visual.positional_embedding",
    resample.resize_position_table(
      table, (side, side), method=method.pos_resize
    ),
  )
  features = golden_lib.encode(method, backbone, image)
  yield "image_features", features["image_embed"]
  for i, layer in enumerate(method.feature_layers):
    yield f"patch_{layer}", features["patch_tokens"][:, i]


def _without_image(method, params, given):
  """Yield class vectors and text that depend on the image, and that do not."""
  backbone, aux, features = given
  for suffix, use_global in (("", True), ("_no_global", False)):
    image_embed = features["image_embed"] if use_global else None
    vectors = visual_context.class_vectors(params["class_vectors"], image_embed)
    yield f"class_token{suffix}", vectors
    variant = dataclasses.replace(method, use_global=use_global)
    text = jax.jit(variant.text)
    yield (
      f"text_embeddings{suffix}",
      text(params, backbone, aux, features["image_embed"]),
    )


def _inspect(method, params, stats, backbone, aux, features):
  """Return the result of `forward`, maps by branch and layer, predictions."""
  del stats
  result = method.forward(params, backbone, aux, features)
  size = similarity.image_size(backbone, features, "patch_tokens")
  maps = {
    branch: similarity.prob_maps(result[branch], size)[..., ANOMALOUS]
    for branch in _BRANCHES
  }
  prediction = method.to_prediction(result, size)
  return {**result, "maps": maps, "prediction": prediction}


def _forward(method, values):
  for i, layer in enumerate(method.feature_layers):
    yield f"post_text_{layer}", values["post_units"][:, i]
    for branch in _BRANCHES:
      yield f"{branch}_logits_{layer}", values[branch][:, i]
      yield f"test/{branch}_map_{layer}", values["maps"][branch][:, i]


def _test(entry, values):
  """Yield what the authors' test computes; the batch is their category."""
  for branch in _BRANCHES:
    yield f"test/{branch}_map", values["maps"][branch].mean(axis=1)
  prediction = values["prediction"]
  sigma = entry.config["sigma"]
  smooth = golden_lib.smoothed(prediction["anomaly_map"], sigma)
  yield "test/map_smooth", smooth
  yield "test/map", score_fusion.min_max(smooth.ravel()).reshape(smooth.shape)
  score = 2 * np.asarray(prediction["pred_score"])  # They add up both branches.
  yield "test/score_raw", score
  yield "test/score", score_fusion.min_max(score)


def _branch(parts, name):
  """Return the loss of a branch."""
  return parts[f"{name}_focal"] + parts[f"{name}_dice"]


def _losses(method, trained, entry):
  yield "loss", trained.loss
  for branch in _BRANCHES:
    yield f"loss_{branch}", _branch(trained.parts, branch)
  yield from golden_lib.gradients(_named(trained.grads, entry))
  # The authors' Dice of a batch of one image is one of each row of pixels.
  one = slice(_SINGLE, _SINGLE + 1)
  take = lambda tree: jax.tree.map(lambda x: x[one], tree)
  result = {branch: trained.inspected[branch] for branch in _BRANCHES}
  rows = dataclasses.replace(method, dice="rows")
  parts = rows.loss_parts(take(result), take(golden_lib.batch(entry)))
  yield "loss_single", losses.total(parts)


def _dropout(method, params, given, entry):
  """Yield text, loss and gradients with the stored masks."""
  # Stored by state, image and text block; ours are by image first.
  keep = jnp.asarray(np.moveaxis(entry["dropout/keep"], 0, 1), bool)
  batch = golden_lib.batch(entry)

  @jax.jit
  def run(params, given):
    def loss(params):
      result = method.forward(params, *given, keep)
      return losses.total(method.loss_parts(result, batch)), result

    return jax.value_and_grad(loss, has_aux=True)(params)

  (value, result), grads = run(params, given)
  yield "dropout/loss", value
  yield "dropout/text_embeddings", result["text_units"]
  for name, grad in golden_lib.gradients(_named(grads, entry)):
    yield f"dropout/{name}", grad


def _trajectory(method, run, params, entry):
  """Yield losses before each step, and the changes of parameters by all."""
  settings = entry.config["traj"]
  paths = [
    rules.rename({name: np.zeros(())}, vcpclip.TORCH_NAMES)
    for name in settings["temperatures"]
  ]
  group = {
    "params": "|".join(path for each in paths for path in each),
    "learning_rate": settings["lr_temperatures"],
  }
  history, after, _ = golden_lib.trajectory(
    entry,
    golden_lib.steps(run),
    params,
    method.trainable_mask(params),
    {},
    groups={"temperatures": group},
  )
  yield "traj/losses", history
  delta = jax.tree.map(jnp.subtract, after, params)
  for name, value in _named(delta, entry).items():
    yield f"traj/delta/{name}", value


def _given_losses(entry):
  """Yield losses of stored probabilities and of a mask with fractions."""
  prob = jnp.moveaxis(jnp.asarray(entry["loss_given/prob"]), 1, -1)
  mask = jnp.asarray(entry["loss_given/mask"], jnp.float32)
  mask = vcpclip.binarize(mask)
  yield "loss_given/mask_used", mask

  def parts(prob):
    terms = losses.segmentation(prob, mask, dice_over="image").mean(axis=0)
    return terms[0], terms[1]

  (focal, dice), grad = parts(prob), jax.grad(lambda p: parts(p)[0])(prob)
  yield "loss_given/focal", focal
  yield "loss_given/dice", dice
  yield "loss_given/focal_grad", jnp.moveaxis(grad, -1, 1)


def _named(tree, entry):
  return golden_lib.named(tree, entry, vcpclip.TORCH_NAMES, unused=_UNUSED)
