"""Hybrid semantic fusion (HSF) of patches into one embedding, from AdaCLIP."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zsad_jax.layers import kmeans, similarity
from zsad_jax.types import ANOMALOUS


def patch_anomaly_prob(
  patch_logits: Float[Array, "b levels l 2"],
) -> Float[Array, "b l"]:
  """Return the anomalous probability per patch of the mean logits."""
  return jax.nn.softmax(patch_logits.mean(axis=1))[..., ANOMALOUS]


def top_patches(prob: Float[Array, " l"], count: int) -> Int[Array, " n"]:
  """Return the indices of the most anomalous patches, highest first."""
  return jax.lax.top_k(prob, min(prob.shape[0], count))[1]


def fuse(
  patch_units: Float[Array, "levels l d"],
  prob: Float[Array, " l"],
  *,
  mode: str,
  k: int,
  count: int,
  seed: int,
  labels: Int[Array, " n"] | None = None,
) -> Float[Array, " d"]:
  """Fuse the patches of one image by hybrid semantic fusion (App. 2.2).

  Gradients flow through the patches, not through their selection.

  Args:
    patch_units: projected unit patch tokens.
    prob: anomalous probability per patch, see `patch_anomaly_prob`.
    mode: "official", "paper" or "topk_mean", see `adaclip.Method`.
    k: number of clusters K.
    count: number of selected patches; unused in mode "paper".
    seed: of k-means.
    labels: clusters of `top_patches`, instead of k-means ("official").

  Returns:
    A unit vector.

  Raises:
    ValueError: unknown mode.
  """
  if mode == "paper":
    return _best_cluster(patch_units.mean(axis=0), prob, k, seed)
  if mode not in ("official", "topk_mean"):
    raise ValueError(
      f'hsf is "official", "paper", "topk_mean" or "none", got {mode!r}.'
    )
  chosen = patch_units[:, top_patches(prob, count)]  # (levels, n, d)
  if mode == "topk_mean":
    return similarity.unit(chosen.mean(axis=(0, 1)))
  if labels is None:
    levels, n, d = chosen.shape
    rows = jnp.moveaxis(chosen, 0, 1).reshape(n, levels * d)
    labels = kmeans.kmeans(jax.random.key(seed), rows, k)
  centres, size = kmeans.cluster_means(chosen.mean(axis=0), labels, k)
  # An empty cluster has no centre and does not count.
  return similarity.unit(centres.sum(axis=0) / (size > 0).sum())


def fuse_images(
  patch_units: Float[Array, "b levels l d"],
  patch_logits: Float[Array, "b levels l 2"],
  labels: Int[Array, "b n"] | None,
  **settings: Any,
) -> Float[Array, "b d"]:
  """Fuse the patches of each image.

  Args:
    patch_units: projected unit patch tokens.
    patch_logits: logits of the states.
    labels: see `fuse`.
    **settings: see `fuse`.

  Returns:
    A unit vector per image.
  """
  prob = patch_anomaly_prob(patch_logits)
  one = functools.partial(fuse, **settings)
  if labels is None:
    return jax.vmap(one)(patch_units, prob)
  with_labels = lambda u, p, l: one(u, p, labels=l)
  return jax.vmap(with_labels)(patch_units, prob, labels)


def _best_cluster(patches, prob, k, seed):
  """Return the centre of the cluster with the highest mean probability."""
  labels = kmeans.kmeans(jax.random.key(seed), patches, k)
  centres, size = kmeans.cluster_means(patches, labels, k)
  mean_prob, _ = kmeans.cluster_means(prob[:, None], labels, k)
  best = jnp.argmax(jnp.where(size > 0, mean_prob[:, 0], -1.0))
  return similarity.unit(centres[best])
