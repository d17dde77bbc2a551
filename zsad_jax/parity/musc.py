"""Parity of MuSc. Distances are halved in this package, not in the files."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.methods import musc
from zsad_jax.parity import golden as golden_lib


def quantities(
  golden: golden_lib.Golden, entry: golden_lib.Entry
) -> Iterator[tuple[str, Any]]:
  """Yield (stored name, our value)."""
  config, backbone = entry.config, golden.backbone()
  method = musc.Method(
    feature_layers=tuple(config["layers"]),
    neighborhoods=tuple(config["r_list"]),
    nearest_images=config["top_fraction"],
    similar_images=tuple(config["k_list"]),
    activation=config["act"],
    pos_resize=config["pos_resize"],
  )
  image = entry.images("image_u8")
  features, out = _encode(method, backbone, image)
  yield "class_features", features["class_unit"]
  for layer in method.feature_layers:
    yield f"tokens_{layer}_img0", out[f"block{layer:02d}"][0]
  for size in method.neighborhoods:
    found = method.aggregate(features["tokens"][0], size)
    yield f"aggregated_r{size}_img0", jnp.moveaxis(found, 0, 1)
  yield from _of_set(method, backbone, features, "")
  for group, settings in config.items():  # The first n images alone.
    if isinstance(settings, dict) and "n" in settings:
      first = jax.tree.map(lambda x, n=settings["n"]: x[:n], features)
      numbers = tuple(settings["k_list"])
      own = dataclasses.replace(method, similar_images=numbers)
      yield from _of_set(own, backbone, first, f"{group}/")


@functools.partial(jax.jit, static_argnums=0)
def _encode(method, backbone, image):
  """Return the features of images, and their tokens."""
  batch = {"image": image, "class_id": jnp.zeros(len(image), jnp.int32)}
  _, out = backbone.image(image, **method.image_hooks)
  return method.encode(backbone, batch), out


@functools.partial(jax.jit, static_argnums=0)
def _predict(method, backbone, features):
  """Return the patch scores of a set and its predictions."""
  distances = method.compare(features, features)
  index = jnp.arange(len(distances))
  given = {**features, "comparisons": distances, "set_index": index}
  scores = method.patch_scores(distances, index)
  return scores, method.predict({}, {}, backbone, {}, given)


def _of_set(method, backbone, features, prefix):
  """Yield the scores of a set of images."""
  scores, found = _predict(method, backbone, features)
  scores = 2.0 * np.asarray(scores)
  for i, size in enumerate(method.neighborhoods):
    yield f"{prefix}layer_scores_r{size}", scores[:, :, i].swapaxes(0, 1)
  yield f"{prefix}patch_scores", scores.mean(axis=(1, 2))
  yield f"{prefix}maps", 2.0 * found["anomaly_map"]
  yield f"{prefix}score_max", 2.0 * found["pred_score"]
  terms = np.asarray(found["score_terms"])
  yield f"{prefix}score", method.category_scores(terms)
