"""Parity of InCTRL: features, both groupings, losses, AdamW, predictions.

Of the stored statistics those of the unused normalization are inputs alone.
The steps of a trajectory are computed in float64, from float32 features: with
so few rows, BatchNorm multiplies the rounding of float32 by about 1000 (in
float32 five arrays of the case "official" differ by 2 to 6 tolerances).
"""

import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax import losses
from zsad_jax.layers import prompts
from zsad_jax.methods import inctrl
from zsad_jax.parity import golden as golden_lib
from zsad_jax.parity import recipes
from zsad_jax.training import optimizer

# Stored name -> settings: the code as it is, and each image by itself.
_CASES: dict[str, dict[str, Any]] = {
  "official": {"grouping": "mixed", "loss_input": "logits"},
  "clean": {"grouping": "image", "loss_input": "probabilities"},
}
_STORED = {  # Stored name -> ours.
  "patch_residual": "patch_residual",
  "image_residual": "image_residual",
  "image_residual_score": "image_score",
  "holistic": "holistic",
  "holistic_score": "head_score",
  "final_score": "score",
}


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  backbone, method = golden.backbone(), _method(entry)
  params = golden_lib.tree(entry, inctrl.TORCH_NAMES)
  stats = golden_lib.tree(entry, inctrl.TORCH_STATS, "bn0/")
  for norm in (n for head in stats.values() for n in head.values()):
    norm["count"] = jnp.zeros((), jnp.int32)
  names = list(dict.fromkeys(entry.config["names"]))
  texts = [prompts.inctrl(n) for n in names[: _num_prompts(entry)]]
  yield "prompts_utf8", json.dumps(texts).encode()
  aux = method.prepare(backbone, names)
  for name, units in zip(names, aux["text_units"]):
    yield f"text_features/{name}", units
  queries, tests, tokens = _encode_all(method, backbone, entry)
  yield "train/class_embeddings", queries["embed"]
  flat = jnp.swapaxes(queries["memory_bank"]["embed"], 0, 1)
  yield "train/reference_class_embeddings_flat", flat.reshape(-1, flat.shape[2])
  for layer, x in tokens.items():
    yield f"train/tokens_{layer}_img0", x
  ids = [names.index(name) for name in entry.config["names"]]
  queries["class_id"] = jnp.asarray(ids, jnp.int32)
  for case, settings in _CASES.items():
    variant = dataclasses.replace(method, **settings)
    given = params, stats, (backbone, aux, queries)
    yield from _training(variant, *given, entry, case)
  index = names.index(entry.config["test_name"])
  tests["class_id"] = jnp.full(len(tests["embed"]), index, jnp.int32)
  yield from _predictions(method, params, stats, aux, tests)
  yield from _adamw(entry)


def _num_prompts(entry):
  return len(entry.text("prompts_utf8"))


def _method(entry):
  """Build the method that the manifest describes."""
  config = entry.config
  return inctrl.Method(
    feature_layers=tuple(config["taps"]),
    grid=round(entry["param/diff_head.bn1.weight"].shape[0] ** 0.5),
    reduction=config["adapter_reduction"],
    head_widths=tuple(config["head_hidden"]),
    train_shots=config["k_shot"],
    temperature=1 / config["logit_scale"],
    activation=config["act"],
    pos_resize=config["pos_resize"],
  )


def _encode_all(method, backbone, entry):
  """Encode queries and test images with their references, in one call.

  Returns:
    Features of both, with memory banks, and all tokens of the first query.
  """
  b, k = entry["reference_u8"].shape[:2]
  flat = entry["reference_u8"].reshape(b * k, *entry["reference_u8"].shape[2:])
  names = ("query_u8", "test_u8", "test_reference_u8")
  images = [*map(entry.images, names), _images(flat)]
  found, tokens = _encode(method, backbone, jnp.concatenate(images))
  ends = np.cumsum([0, *map(len, images)])
  query, test, shared, own = (
    jax.tree.map(lambda x, a=a, z=z: x[a:z], found)
    for a, z in zip(ends, ends[1:])
  )
  own = jax.tree.map(lambda x: x.reshape(b, k, *x.shape[1:]), own)
  query["memory_bank"] = method.build_memory_bank(own)
  shared = jax.tree.map(lambda x: x[None], shared)
  test["memory_bank"] = method.build_memory_bank(shared)
  return query, test, tokens


def _images(pixels):
  """Convert uint8 images (b, 3, h, w) to inputs."""
  return jnp.asarray(
    golden_lib.clip_model.normalize(np.moveaxis(pixels, 1, -1))
  )


@functools.partial(jax.jit, static_argnums=0)
def _encode(method, backbone, image):
  class_id = jnp.zeros(len(image), jnp.int32)
  _, out = backbone.image(image, **method.image_hooks)
  tokens = {i: out[f"block{i:02d}"][0] for i in method.feature_layers}
  return method.encode(backbone, {"image": image, "class_id": class_id}), tokens


def _inspect(
  method: Any, params: Any, stats: Any, backbone: Any, aux: Any, features: Any
) -> dict[str, jax.Array]:
  """Return all values of a forward pass in training."""
  del backbone
  weight = jnp.ones(len(features["embed"]))
  return method.forward(params, stats, aux, features, weight)[0]


def _training(method, params, stats, given, entry, case):
  batch = {
    "label": jnp.asarray(entry["label"], jnp.int32),
    "weight": jnp.ones(len(entry["label"])),
  }
  run = functools.partial(
    golden_lib.train, method, given=given, batch=batch, inspect=_inspect
  )
  named, named_stats = (
    functools.partial(golden_lib.named, entry=entry, table=table, group=group)
    for table, group in (
      (inctrl.TORCH_NAMES, "param/"),
      (inctrl.TORCH_STATS, "bn0/"),
    )
  )
  trained = run(params, stats)
  found, prefix = trained.inspected, f"train/{case}"
  yield "train/text_score", found["text_score"]
  for stored, ours in _STORED.items():
    yield f"{prefix}/{stored}", found[ours]
  yield f"{prefix}/max_residual", found["patch_residual"].max(axis=1)
  yield from _losses(found, batch, prefix)
  for name, value in named_stats(trained.stats).items():
    yield f"bn1/{case}/{name}", value
  for name, grad in named(trained.grads).items():
    yield f"{prefix}/grad/{name}", grad
  history, after, new = _trajectory(method, params, stats, given, batch, entry)
  yield f"{prefix}/traj/losses", history
  start = named(params)
  for name, value in named(after).items():
    yield f"{prefix}/traj/after/{name}", value
    yield f"{prefix}/traj/delta/{name}", value - start[name]
  for name, value in named_stats(new).items():
    yield f"{prefix}/traj/after/{name}", value


def _trajectory(method, params, stats, given, batch, entry):
  """Repeat the stored steps in float64, see the docstring of the module."""
  with jax.enable_x64(True):
    wide = lambda x: x.astype("float64") if x.dtype == jnp.float32 else x
    backbone, *rest = given
    params, stats, rest, batch = jax.tree.map(
      wide, (params, stats, rest, batch)
    )
    run = functools.partial(
      golden_lib.train,
      method,
      given=(backbone, *rest),
      batch=batch,
      inspect=_inspect,
    )
    trainable = method.trainable_mask(params)
    steps = golden_lib.steps(run)
    found = golden_lib.trajectory(entry, steps, params, trainable, stats)
    return jax.tree.map(np.asarray, found)


def _losses(found, batch, prefix):
  """Yield both forms of the loss; a method has one of them."""
  label = batch["label"].astype(jnp.float32)
  for stored, focal in (
    ("compat", losses.binary_focal_with_logits),
    ("prob", losses.binary_focal),
  ):
    both = [focal(found[k], label).mean() for k in ("score", "image_score")]
    yield f"{prefix}/loss_{stored}", sum(both)


def _predictions(method, params, stats, aux, tests):
  found, _ = _forward(method, params, stats, aux, tests)
  for stored, ours in _STORED.items():
    yield f"test/{stored}", found[ours]
  yield "test/text_score", found["text_score"]
  count = len(tests["embed"])
  repeat = lambda x: jnp.repeat(x, count, axis=0)
  bank = jax.tree.map(repeat, tests["memory_bank"])
  units, bank = inctrl.mixed(tests["layer_units"], bank)
  together = {**tests, "layer_units": units, "memory_bank": bank}
  found, _ = _forward(method, params, stats, aux, together)
  yield "test_batched/patch_residual", found["patch_residual"]
  yield "test_batched/final_score", found["score"]


@functools.partial(jax.jit, static_argnums=0)
def _forward(method, params, stats, aux, features):
  return method.forward(params, stats, aux, features)


def _adamw(entry):
  """Yield the steps of the optimizer on given gradients."""
  settings = dict(entry.config.get("optim_adamw", {}))
  if not settings:
    return
  read = lambda kind: {
    name: jnp.asarray(x, jnp.float32)
    for name, x in entry.under(f"optim/adamw/{kind}/").items()
  }
  params, grads = read("param"), read("grads")
  trainable = {n: n not in settings["not_updated"] for n in params}
  names = ("b1", "b2", "eps", "weight_decay")
  given = {name: settings[name] for name in names}
  tx = optimizer.make(
    settings["opt"], {"learning_rate": settings["lr"], **given}, trainable
  )
  absent = {n: jnp.zeros_like(x) for n, x in params.items() if n not in grads}
  _, after = recipes.advance(
    tx,
    params,
    lambda step, _: (0.0, {**absent, **{n: g[step] for n, g in grads.items()}}),
    settings["steps"],
  )
  for name, value in after.items():
    yield f"optim/adamw/delta/{name}", value - params[name]
