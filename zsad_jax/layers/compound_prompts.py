"""FAPrompt's compound abnormality prompts and their data-dependent prior.

Zhu et al., ICCV 2025, Sec. 3.2 and 3.3. An abnormal prompt consists of the
normal prompt's learned vectors and vectors of its own; the prior of an image is
added to the own vectors.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from zsad_jax.layers import linear, similarity
from zsad_jax.types import ANOMALOUS, NORMAL, Params

PRIOR_REDUCTION = 16  # Of the prior network's hidden layer (authors' code).


def init_prior(
  rngs: tuple[jax.Array, jax.Array], c_in: int, c_out: int
) -> Params:
  """Initialize the prior network, two linear layers, as torch does."""
  hidden = c_in // PRIOR_REDUCTION
  return {
    "1": linear.init(rngs[0], c_in, hidden),
    "2": linear.init(rngs[1], hidden, c_out),
  }


def prior(
  params: Params, selected: Float[Array, "b m d"]
) -> Float[Array, "b c"]:
  """Compute the prior of each image from its selected patches."""
  x = selected.reshape(selected.shape[0], -1)
  hidden = linear.apply(params["1"], x)
  return linear.apply(params["2"], jax.nn.relu(hidden))


def select(
  patches: Float[Array, "b l d"],
  patch_prob: Float[Array, "b l 2"],
  *,
  mode: Literal["first", "topk"],
  count: int,
) -> Float[Array, "b m d"]:
  """Select the patches that the prior is computed from.

  Args:
    patches: unit patches.
    patch_prob: probabilities of the states per patch.
    mode: "first", in raster order, or "topk", the most anomalous ones.
    count: number of patches.
  """
  if mode == "first":
    return patches[:, :count]
  _, top = jax.lax.top_k(patch_prob[..., ANOMALOUS], count)
  return jnp.take_along_axis(patches, top[..., None], axis=1)


def refine(
  abnormal: Float[Array, "k t c"],
  prior: Float[Array, "b c"],
  *,
  first: int,
  length: int,
) -> Float[Array, "b k t c"]:
  """Add each image's prior to the abnormal prompts' own vectors (Eq. 4).

  Args:
    abnormal: token embeddings of the abnormal prompts.
    prior: of each image.
    first: position of the first own vector.
    length: number of own vectors.
  """
  position = jnp.arange(abnormal.shape[1])
  own = (position >= first) & (position < first + length)
  return abnormal[None] + prior[:, None, None] * own[:, None]


def orthogonality(
  abnormal: Float[Array, "k d"], *, ordered: bool
) -> Float[Array, ""]:
  """Sum |cosine| over all pairs of abnormal prompts (Eq. 2).

  Args:
    abnormal: embeddings of the abnormal prompts, first pass.
    ordered: count each pair twice.
  """
  units = similarity.unit(abnormal)
  pairs = jnp.triu(jnp.abs(units @ units.T), k=1).sum()
  return 2 * pairs if ordered else pairs


def prior_loss(
  prior: Float[Array, "b c"],
  label: Shaped[Array, " b"],
  weight: Float[Array, " b"],
  *,
  reduce: Literal["mean", "sum"],
) -> Float[Array, ""]:
  """Sum the squared priors of normal images (Eq. 5).

  Args:
    prior: of each image.
    label: state of each image.
    weight: 0 for padding.
    reduce: over the channels of a prior.
  """
  over_channels = {"mean": jnp.mean, "sum": jnp.sum}[reduce]
  size = over_channels(jnp.square(prior), axis=-1)
  return jnp.sum(size * weight * (label == NORMAL))


def prototypes(
  normal: Float[Array, "1 d"], abnormal: Float[Array, "k d"]
) -> Float[Array, "2 d"]:
  """Return unit embeddings of the normal and the mean abnormal prompt."""
  mean = abnormal.mean(axis=0, keepdims=True)
  return similarity.unit(jnp.concatenate([normal, mean]))
