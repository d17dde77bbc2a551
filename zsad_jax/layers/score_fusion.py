"""Fusion of several maps and scores into one, and scaling of scores."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zsad_jax.layers import smoothing
from zsad_jax.types import Prediction


def mean(values: Sequence[Float[Array, "*b"]]) -> Float[Array, "*b"]:
  """Return the arithmetic mean of several arrays."""
  return sum(values[1:], start=values[0]) / len(values)


def harmonic_mean(values: Sequence[Float[Array, "*b"]]) -> Float[Array, "*b"]:
  """Return n / sum(1 / x); 0 where a value is 0."""
  result = len(values) / sum(1.0 / x for x in values)
  return jnp.where(jnp.isfinite(result), result, 0.0)


def top_mean(values: Float[Array, "b n"], share: float) -> Float[Array, " b"]:
  """Return the mean of the largest values of each row.

  Args:
    values: of which int(n * share), at least one, are averaged.
    share: in (0, 1].
  """
  count = max(1, int(values.shape[1] * share))
  return jax.lax.top_k(values, count)[0].mean(axis=1)


def min_max(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
  """Scale values to [0, 1] by the least and the largest; 0 if all are equal."""
  values = np.asarray(values)
  low, high = values.min(), values.max()
  if low == high:
    return np.zeros_like(values)
  return (values - low) / (high - low)


def fuse(
  maps: Sequence[Float[Array, "b h w"]],
  scores: Sequence[Float[Array, " b"]],
  distance: Float[Array, "b h w"] | None,
  *,
  mode: Literal["official", "paper"],
  sigma: float,
) -> Prediction:
  """Fuse AdaptCLIP's maps and scores with the distance to references.

  Args:
    maps: of each adapter.
    scores: of each adapter.
    distance: to the nearest reference patches; None without references.
    mode: "paper", mean of the adapters; "official", with the map's maximum
      in the score, and harmonic means with the distance.
    sigma: of the Gaussian, in pixels, before a map's maximum is taken.

  Returns:
    The prediction.
  """
  if mode == "paper":
    return {"anomaly_map": mean(maps), "pred_score": mean(scores)}
  anomaly_map = mean(maps)
  if distance is not None:
    anomaly_map = harmonic_mean([anomaly_map, distance])
  peak = smoothing.gaussian(anomaly_map, sigma).max(axis=(1, 2))
  if distance is None:
    score = mean([*scores, peak])
  else:
    score = harmonic_mean([mean(scores), peak])
  return {"anomaly_map": anomaly_map, "pred_score": score}
