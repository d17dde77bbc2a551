"""AdaCLIP's hybrid semantic fusion (HSF) of patches into one embedding."""

import jax
import jax.numpy as jnp

from zsad_jax.layers import kmeans, similarity
from zsad_jax.types import ANOMALOUS


def patch_anomaly_prob(patch_logits):
  """Anomalous probability per patch: (b, levels, l, 2) -> (b, l)."""
  return jax.nn.softmax(patch_logits.mean(axis=1))[..., ANOMALOUS]


def top_patches(prob, count):
  """Indices of the most anomalous patches, best first: (l,) -> (n,)."""
  return jax.lax.top_k(prob, min(prob.shape[0], count))[1]


def fuse(patch_units, prob, *, mode, k, count, seed, labels=None):
  """Hybrid semantic fusion of one image (App. 2.2).

  Args:
    patch_units: (levels, l, d) projected unit patch tokens.
    prob: (l,) anomalous probability per patch, see `patch_anomaly_prob`.
    mode: "official", "paper" or "topk_mean", see `Method.hsf`.
    k: number of clusters K.
    count: number of patches looked at, not in mode "paper".
    seed: of k-means.
    labels: (n,) clusters of `top_patches`, instead of k-means ("official").

  Returns:
    (d,), a unit vector. Gradient flows through the patches, not the choice.

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


def _best_cluster(patches, prob, k, seed):
  """Centre of the cluster with the highest mean probability, (d,)."""
  labels = kmeans.kmeans(jax.random.key(seed), patches, k)
  centres, size = kmeans.cluster_means(patches, labels, k)
  mean_prob, _ = kmeans.cluster_means(prob[:, None], labels, k)
  best = jnp.argmax(jnp.where(size > 0, mean_prob[:, 0], -1.0))
  return similarity.unit(centres[best])
