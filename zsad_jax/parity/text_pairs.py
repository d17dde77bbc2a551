"""Parity of what CoOp, CoCoOp and TCP share: images, prompts, scores."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.backbones.clip import model as clip
from zsad_jax.layers import (
  class_prompts,
  dual_path,
  similarity,
  text_pairs,
  tokens,
)
from zsad_jax.parity import golden as golden_lib


def states(config: Mapping[str, Any]) -> tuple[str, str]:
  """Return the phrases of both states that a file describes."""
  normal, anomalous = config["state_words"]
  return f"{normal} {{}}", f"{anomalous} {{}}"


def plain_settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Return the fields of the plain image side that a file describes."""
  return {
    "feature_layer": None,
    "vv_from": None,
    "cls_ln_post": config["cls_ln_post"],
    "temperature": None,
    "map_weight": 0.0,
    "activation": config["act"],
    "pos_resize": config["pos_resize"],
  }


def anomalyclip_settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Return the fields of the image side and losses of AnomalyCLIP."""
  return {
    "feature_layer": config["tap"],
    "vv_from": config["dual_from"],
    "cls_ln_post": config["cls_ln_post"],
    "temperature": config["temperature"],
    "map_weight": float(config["lam"]),
  }


def temperatures(config: Mapping[str, Any]) -> dict[str, float | None]:
  """Return the temperatures of a file by suffix of the names."""
  return {
    suffix: None if isinstance(scale, str) else 1 / scale
    for suffix, scale in config.get("temperatures", {"": ""}).items()
  }


class Images(NamedTuple):
  """Encoded images of a file."""

  embeds: jax.Array  # (b, d), not of unit length.
  features: dict[str, jax.Array]  # See `text_pairs.encode`.

  def of(self, class_id: Any) -> dict[str, jax.Array]:
    """Return the features with other classes."""
    return {**self.features, "class_id": jnp.asarray(class_id, jnp.int32)}


def encode(
  method: Any,
  backbone: clip.Clip,
  entry: golden_lib.Entry,
  index: str = "cls_index",
) -> Images:
  """Encode the images of a file, of the classes that are stored as `index`."""
  embeds, patches = _encode(method, backbone, entry.images("image_u8"))
  features = {
    "class_unit": similarity.unit(embeds),
    "patch_units": similarity.unit(patches),
    "class_id": jnp.asarray(entry[index], jnp.int32),
  }
  return Images(embeds, features)


@functools.partial(jax.jit, static_argnames="method")
def _encode(method, backbone, image):
  embeds, layers = dual_path.encode(
    backbone,
    image,
    feature_layers=(method.feature_layer or backbone.vision_layers,),
    vv_from=method.vv_from,
    class_ln_post=method.cls_ln_post,
    **method.image_hooks,
  )
  return embeds, layers[0][:, 1:]


def prompts(
  backbone: clip.Clip,
  groups: class_prompts.Prompts,
  vectors: jax.Array,
  rows: int,
) -> np.ndarray:
  """Return the token embeddings of single prompts, (n, s, rows, c).

  Args:
    backbone: frozen CLIP.
    groups: see `class_prompts.build`.
    vectors: see `class_prompts.encode`.
    rows: number of tokens; shorter prompts are padded as the authors' are.
  """
  nodes = np.asarray(
    tokens.overwrite(groups["embeds"], vectors, groups["vector"])
  )
  mask, positions = map(
    np.asarray, (groups["attention_mask"], groups["positions"])
  )
  padding = np.asarray(backbone.embed_tokens(np.zeros(1, np.int32)))
  result = np.tile(padding, (*groups["end"].shape, rows, 1))
  for i, ends in enumerate(np.asarray(groups["end"])):
    for j, end in enumerate(ends):
      of_prompt = np.flatnonzero(mask[i, end])
      result[i, j, positions[i, of_prompt]] = nodes[i, of_prompt]
  return result


def scores(
  entry: golden_lib.Entry,
  backbone: clip.Clip,
  features: Mapping[str, jax.Array],
  text: jax.Array,
  prefix: str = "",
  by_suffix: Mapping[str, float | None] | None = None,
) -> Iterator[tuple[str, Any]]:
  """Yield logits, probabilities and maps under their stored names.

  Args:
    entry: the file.
    backbone: frozen CLIP.
    features: see `Images`.
    text: embeddings of the prompts of each image, (b, 2, d).
    prefix: of the stored names.
    by_suffix: temperatures, see `temperatures`, the default.
  """
  size = similarity.image_size(backbone, features)
  sigma = entry.config["sigma"]
  for suffix, temperature in (by_suffix or temperatures(entry.config)).items():
    result = _compare(backbone, dict(features), text, temperature)
    found = text_pairs.to_prediction(result, size)
    yield f"{prefix}logits{suffix}", result["image_logits"]
    yield f"{prefix}prob{suffix}", jax.nn.softmax(result["image_logits"])
    yield f"{prefix}patch_prob{suffix}", result["patch_prob"]
    yield f"{prefix}map_raw{suffix}", found["anomaly_map"]
    name = f"{prefix}map{suffix}"
    if name in entry:
      maps = golden_lib.smoothed(found["anomaly_map"], sigma)
      yield name, maps[0] if entry[name].ndim == 2 else maps


_compare = jax.jit(text_pairs.compare, static_argnames="temperature")


def all_logits(
  logits: Callable[[jax.Array], jax.Array], num_classes: int, count: int
) -> np.ndarray:
  """Return the logits of the prompts of all classes.

  Args:
    logits: class ids (b,) -> logits (b, 2).
    num_classes: n.
    count: number of images, b.

  Returns:
    (b, 2 n), in the order of the classes.
  """
  ids = [jnp.full(count, i, jnp.int32) for i in range(num_classes)]
  return np.concatenate([logits(x) for x in ids], axis=1)


def losses(
  trained: golden_lib.Trained,
  named: Callable[[Any], Mapping[str, Any]],
  prefix: str = "",
) -> Iterator[tuple[str, Any]]:
  """Yield the loss, its terms and gradients under their stored names."""
  image = trained.parts["image_ce"]
  yield f"{prefix}loss", trained.loss
  yield f"{prefix}ce", image
  yield f"{prefix}image_loss", image
  pixel = [
    x for n, x in trained.parts.items() if n.startswith(("pixel", "dice"))
  ]
  yield f"{prefix}local_loss", sum(pixel)
  for name, value in golden_lib.gradients(named(trained.grads)):
    yield f"{prefix}{name}", value


def nothing(method: Any, params: Any, stats: Any, *given: Any) -> None:
  """Return no intermediate values; for `golden.train`."""
  del method, params, stats, given
